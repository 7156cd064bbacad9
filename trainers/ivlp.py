"""IVLP: independent prompts in the two towers, the baseline of MaPLe (Khattak et al., CVPR 2023)
and the basis of PromptSRC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from clip import CLIP, PromptTokens
from dassl.config.domains import Int, Words

from .base import Method, Towers
from .context import (
    ContextLearner,
    check_few_words,
    context_of_few_words,
    random_prompts,
)
from .settings import MOST_PROMPTS, check_vit
from .trainer import register_method


class TowerPrompts(nn.Module):
    """Prompts of one tower, under the names that the public code's patched CLIP gives them.

    ``VPT`` (m, width) enters the first layer of the vision tower (the text tower's is the prompt
    learner's ``ctx``); ``transformer.resblocks.<i>.VPT_shallow`` (m, width) enters layer
    i = 1..depth - 1.
    """

    def __init__(self, depth: int, n_prompts: int, width: int, first_layer: bool):
        super().__init__()
        self.first_layer = first_layer and depth > 0
        if self.first_layer:
            self.VPT = random_prompts(n_prompts, width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleDict()
        for i in range(1, depth):
            layer = nn.Module()
            layer.VPT_shallow = random_prompts(n_prompts, width)
            self.transformer.resblocks[str(i)] = layer

    def prompts(self) -> list[Tensor]:
        """Return the prompts layer by layer, starting with the first layer that they enter."""
        first = [self.VPT] if self.first_layer else []
        layers = cast(nn.ModuleDict, self.transformer.resblocks).values()
        return [*first, *(cast(Tensor, layer.VPT_shallow) for layer in layers)]


def ivlp_settings(n_ctx: int) -> dict[str, Any]:
    """Return the keys of IVLP and the methods built on it, with so many prompts by default."""
    return {
        "N_CTX_VISION": Int(n_ctx, min=0, max=MOST_PROMPTS, help="prompts of a vision layer"),
        "N_CTX_TEXT": Int(n_ctx, min=1, max=MOST_PROMPTS, help="prompts of a text layer"),
        "CTX_INIT": Words(
            "a photo of a", help="words that the text prompts start from where N_CTX_TEXT <= 4"
        ),
        "PROMPT_DEPTH_VISION": Int(9, min=0, help="first vision layers that have prompts"),
        "PROMPT_DEPTH_TEXT": Int(9, min=1, help="first text layers that have prompts"),
    }


@register_method("IVLP", **ivlp_settings(2))
class IVLP(Method):
    """Prompts in the first layers of both towers that know nothing of each other.

    Settings: ``N_CTX_TEXT``, ``PROMPT_DEPTH_TEXT``, ``N_CTX_VISION``, ``PROMPT_DEPTH_VISION`` and
    ``CTX_INIT``, words that the first text prompts start from where ``N_CTX_TEXT`` <= 4.
    """

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        node, layers = f"TRAINER.{cls.config_node}", clip_model.config.text_layers
        Int(min=1, max=layers).check(f"{node}.PROMPT_DEPTH_TEXT", settings.PROMPT_DEPTH_TEXT)
        if (depth := settings.PROMPT_DEPTH_VISION) > 0:  # 0: text prompts only, for a ResNet, too
            Int(min=0, max=check_vit(clip_model)).check(f"{node}.PROMPT_DEPTH_VISION", depth)
            Int(min=1).check(f"{node}.N_CTX_VISION", settings.N_CTX_VISION)
        check_few_words(node, settings.CTX_INIT, settings.N_CTX_TEXT)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, config = self.settings, self.clip.config
        m = settings.N_CTX_TEXT
        self.context = context_of_few_words(self.clip, settings.CTX_INIT, m)
        self.prompt_learner = ContextLearner(self.context.start(config.text_width))
        self.text_encoder = TowerPrompts(
            settings.PROMPT_DEPTH_TEXT, m, config.text_width, first_layer=False
        )
        self.image_encoder = TowerPrompts(
            settings.PROMPT_DEPTH_VISION,
            settings.N_CTX_VISION,
            config.vision_width,
            first_layer=True,
        )

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words, n_prompts, _ = self.context
        key = self.context.key("N_CTX_TEXT")
        return self.prompt_tokens(class_names, words, n_prompts, key=key)

    def layers(self, condition: Tensor | None = None) -> Towers:
        text = [self.prompt_learner.ctx, *self.text_encoder.prompts()]
        return Towers(text, self.image_encoder.prompts())

    def public_copies(self) -> set[str]:
        buffers = {"prompt_learner.token_prefix", "prompt_learner.token_suffix"}
        return buffers | self.copies_of_clip()
