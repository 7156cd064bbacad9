"""MaPLe: Multi-modal Prompt Learning (Khattak et al., CVPR 2023)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip import CLIP, PromptTokens
from dassl.config.domains import Int, Words

from .base import Method, Towers
from .context import check_few_words, context_of_few_words, random_prompts
from .settings import MOST_PROMPTS, deepest_layer
from .trainer import register_method


class MultiModalPromptLearner(nn.Module):
    """Text prompts of the first layers, and what couples the vision prompts to them.

    Names and shapes of the tensors are those of the released code.

    Args:
        ctx: start of the first layer's text prompts (m, d_t).
        depth: number of layers J with prompts.
        vision_width: d_v.
    """

    def __init__(self, ctx: Tensor, depth: int, vision_width: int):
        super().__init__()
        m, text_width = ctx.shape
        self.ctx = nn.Parameter(ctx)
        self.proj = nn.Linear(text_width, vision_width)
        self.compound_prompts_text = nn.ParameterList(
            random_prompts(m, text_width) for _ in range(depth - 1)
        )
        # As in the released code the deeper projections all start from the same weights.
        start = nn.Linear(text_width, vision_width)
        self.compound_prompt_projections = nn.ModuleList(
            copy.deepcopy(start) for _ in range(depth - 1)
        )

    def forward(self) -> Towers:
        """Return text prompts (m, d_t), and vision prompts (m, d_v) projected from them, by layer.

        Section 3.2.3 of the paper.
        """
        text = [self.ctx, *self.compound_prompts_text]
        projections = [self.proj, *self.compound_prompt_projections]
        vision = [project(p) for project, p in zip(projections, text, strict=True)]
        return Towers(text, vision)


@register_method(
    "MAPLE",
    N_CTX=Int(2, min=1, max=MOST_PROMPTS, help="prompts of a layer, in each tower"),
    CTX_INIT=Words("a photo of a", help="words that the prompts start from where N_CTX <= 4"),
    PROMPT_DEPTH=Int(9, min=1, help="first layers that have prompts"),
)
class MaPLe(Method):
    """The text prompts are learned, the vision prompts are linear functions of them.

    ``N_CTX`` tokens start from the words of ``CTX_INIT`` where they are at most four; the words
    left over remain between them and the class name (2 learned tokens, then "of a").
    """

    checkpoint_name = "MultiModalPromptLearner"
    layers_suffice = True

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        node, deepest = f"TRAINER.{cls.config_node}", deepest_layer(clip_model)
        Int(min=1, max=deepest).check(f"{node}.PROMPT_DEPTH", settings.PROMPT_DEPTH)
        check_few_words(node, settings.CTX_INIT, settings.N_CTX)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, config = self.settings, self.clip.config
        self.context = context_of_few_words(self.clip, settings.CTX_INIT, settings.N_CTX)
        ctx = self.context.start(config.text_width)
        self.prompt_learner = MultiModalPromptLearner(
            ctx, settings.PROMPT_DEPTH, config.vision_width
        )

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words, n_prompts, _ = self.context
        return self.prompt_tokens(class_names, words, n_prompts, key=self.context.key())

    def layers(self, condition: Tensor | None = None) -> Towers:
        return self.prompt_learner()

    def public_copies(self) -> set[str]:
        buffers = {"prompt_learner.token_prefix", "prompt_learner.token_suffix"}
        return buffers | self.copies_of_clip()
