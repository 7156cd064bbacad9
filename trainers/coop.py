"""CoOp: Learning to Prompt for Vision-Language Models (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip import CLIP, PromptTokens
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .base import (
    PromptedCLIP,
    Prompts,
    PromptTrainer,
    check_range,
    context_of_all_words,
    trainer_defaults,
)

POSITIONS = ("end", "middle", "front")


class ContextLearner(nn.Module):
    """Owns the context, under the name that published checkpoints give it."""

    def __init__(self, ctx: Tensor):
        super().__init__()
        self.ctx = nn.Parameter(ctx)


class ContextCLIP(PromptedCLIP):
    """Learned context tokens (m, d_t) in front of, around or behind the class name.

    With ``CSC`` every class has its own: (K, m, d_t).  ``CTX_INIT`` gives the words to start from
    and then also their number; otherwise ``N_CTX`` tokens start from normal(0, 0.02).
    """

    prompt_learner: ContextLearner

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings = self.settings
        self.context = context_of_all_words(self.clip, settings.CTX_INIT, settings.N_CTX)
        per_class = (len(class_names),) if settings.CSC else ()
        ctx = self.context.start(self.clip.config.text_width, *per_class)
        self.prompt_learner = ContextLearner(ctx)

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words, n_prompts, _ = self.context
        position = self.settings.CLASS_TOKEN_POSITION
        return self.prompt_tokens(class_names, words, n_prompts, position)

    def prompts(self) -> Prompts:
        return Prompts(text=[self.prompt_learner.ctx])


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    model_class = ContextCLIP
    checkpoint_name = checkpoint_scope = "prompt_learner"
    config_node = trainer_defaults(
        "COOP", N_CTX=16, CSC=False, CTX_INIT="", CLASS_TOKEN_POSITION="end"
    )

    def check_settings(self, settings: Any, clip_model: CLIP) -> None:
        if settings.CLASS_TOKEN_POSITION not in POSITIONS:
            raise UserError(
                f"TRAINER.COOP.CLASS_TOKEN_POSITION is '{settings.CLASS_TOKEN_POSITION}', "
                f"allowed: {', '.join(POSITIONS)}"
            )
        if not settings.CTX_INIT:
            check_range("TRAINER.COOP.N_CTX", settings.N_CTX, 1)
