"""MaPLe: Multi-modal Prompt Learning (Khattak et al., CVPR 2023)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip import CLIP, PromptTokens
from dassl.engine import TRAINER_REGISTRY

from .base import (
    PromptedCLIP,
    Prompts,
    PromptTrainer,
    check_range,
    check_vit,
    context_of_few_words,
    random_prompts,
    trainer_defaults,
)


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

    def forward(self) -> Prompts:
        """Per layer the text prompts (m, d_t) and, projected from them, the vision prompts
        (m, d_v): section 3.2.3 of the paper."""
        text = [self.ctx, *self.compound_prompts_text]
        projections = [self.proj, *self.compound_prompt_projections]
        vision = [project(p) for project, p in zip(projections, text, strict=True)]
        return Prompts(text, vision)


class MultiModalCLIP(PromptedCLIP):
    """The text prompts are learned, the vision prompts are linear functions of them.

    ``N_CTX`` tokens start from the words of ``CTX_INIT`` where they are at most four; the words
    left over stand between them and the class name (2 learned tokens, then "of a").
    """

    prompt_learner: MultiModalPromptLearner

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, config = self.settings, self.clip.config
        self.context = context_of_few_words(self.clip, settings.CTX_INIT, settings.N_CTX)
        ctx = self.context.start(config.text_width)
        self.prompt_learner = MultiModalPromptLearner(
            ctx, settings.PROMPT_DEPTH, config.vision_width
        )

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        return self.prompt_tokens(class_names, self.context.words, self.context.n_prompts)

    def prompts(self) -> Prompts:
        return self.prompt_learner()


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    model_class = MultiModalCLIP
    checkpoint_name = "MultiModalPromptLearner"
    config_node = trainer_defaults("MAPLE", N_CTX=2, CTX_INIT="a photo of a", PROMPT_DEPTH=9)

    def check_settings(self, settings: Any, clip_model: CLIP) -> None:
        layers = check_vit(clip_model)
        deepest = min(layers, clip_model.config.text_layers)
        check_range("TRAINER.MAPLE.PROMPT_DEPTH", settings.PROMPT_DEPTH, 1, deepest)
        check_range("TRAINER.MAPLE.N_CTX", settings.N_CTX, 1)
