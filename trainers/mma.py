"""MMA: Multi-Modal Adapter for Vision-Language Models (Yang et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from clip import CLIP, Layer, PromptTokens
from dassl.config.domains import Float, Int, Text

from .adapters import ScaledGradient, bottleneck
from .base import Method, Towers
from .settings import deepest_layer
from .trainer import register_method


class AdapterLearner(nn.Module):
    """Bottlenecks of each tower, with a layer in the middle that both towers share.

    Names and shapes are those of the released code; keys are blocks, counted from 1.
    """

    def __init__(self, blocks: range, width: int, text_width: int, vision_width: int):
        super().__init__()
        self.text_adapter = nn.ModuleDict({f"{i}": bottleneck(text_width, width) for i in blocks})
        self.visual_adapter = nn.ModuleDict(
            {f"{i}": bottleneck(vision_width, width) for i in blocks}
        )
        self.shared_adapter = nn.ModuleDict(
            {f"{i}": nn.Sequential(nn.Linear(width, width), nn.ReLU()) for i in blocks}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def tower(self, adapters: Any, scale: float) -> list[Layer | None]:
        """Make y = scale * up(shared(down(h))), whose own tensors learn as if the scale were 1."""

        def branch(i: str, h: Tensor) -> Tensor:
            hidden = self.shared_adapter[i](adapters[i].down(ScaledGradient.apply(h, scale)))
            return ScaledGradient.apply(scale * adapters[i].up(hidden), 1 / scale)

        untouched = [None] * (min(map(int, adapters)) - 1)
        return [*untouched, *(Layer(block=partial(branch, i)) for i in adapters)]


@register_method(
    "MMADAPTER",
    TEXT_CTX_INIT=Text("", help="words in front of the class name"),
    ADAPTER_START=Int(4, min=1, help="first block with an adapter, counted from 1"),
    ADAPTER_END=Int(12, min=1, help="last block with an adapter"),
    ADAPTER_DIM=Int(32, min=1, max=10000, help="width of the adapters"),
    ADAPTER_SCALE=Float(0.1, above=0, help="factor of the adapters' output"),
    PREC="amp",
)
class MMA(Method):
    """A branch parallel to each of the upper blocks of both towers: x + attn + mlp + y."""

    checkpoint_name = checkpoint_scope = "adapter_learner"

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        node, deepest = "TRAINER.MMADAPTER", deepest_layer(clip_model)
        start = settings.ADAPTER_START
        Int(min=1, max=deepest).check(f"{node}.ADAPTER_START", start)
        Int(min=start, max=deepest).check(f"{node}.ADAPTER_END", settings.ADAPTER_END)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, clip = self.settings, self.clip.config
        blocks = range(settings.ADAPTER_START, settings.ADAPTER_END + 1)
        self.adapter_learner = AdapterLearner(
            blocks, settings.ADAPTER_DIM, clip.text_width, clip.vision_width
        )

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words = self.settings.TEXT_CTX_INIT.replace("_", " ")
        return self.prompt_tokens(class_names, words, 0, key="TEXT_CTX_INIT")

    def layers(self, condition: Tensor | None = None) -> Towers:
        learner, scale = self.adapter_learner, self.settings.ADAPTER_SCALE
        return Towers(
            learner.tower(learner.text_adapter, scale), learner.tower(learner.visual_adapter, scale)
        )

    def public_copies(self) -> set[str]:
        return {"token_embedding", "tokenized_prompts"}
