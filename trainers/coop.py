"""CoOp: Learning to Prompt for Vision-Language Models (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from clip import CLIP, PromptTokens
from dassl.utils import UserError

from .base import Method, Towers
from .context import ContextLearner, context_of_all_words
from .settings import check_range
from .trainer import register_method

POSITIONS = ("end", "middle", "front")


@register_method("COOP", N_CTX=16, CSC=False, CTX_INIT="", CLASS_TOKEN_POSITION="end")
class CoOp(Method):
    """Learned context tokens (m, d_t) in front of, around or behind the class name.

    With ``CSC`` every class has its own: (K, m, d_t).  ``CTX_INIT`` gives the words to start from
    and then also their number; otherwise ``N_CTX`` tokens start from normal(0, 0.02).
    """

    checkpoint_name = checkpoint_scope = "prompt_learner"

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        if settings.CLASS_TOKEN_POSITION not in POSITIONS:
            raise UserError(
                f"TRAINER.COOP.CLASS_TOKEN_POSITION is '{settings.CLASS_TOKEN_POSITION}', "
                f"allowed: {', '.join(POSITIONS)}"
            )
        if not settings.CTX_INIT:
            check_range("TRAINER.COOP.N_CTX", settings.N_CTX, 1)

    @classmethod
    def bound_to_classes(cls, settings: Any) -> bool:
        return bool(settings.CSC)

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

    def layers(self, condition: Tensor | None = None) -> Towers:
        return Towers(text=[self.prompt_learner.ctx])

    def public_copies(self) -> set[str]:
        return {"token_prefix", "token_suffix"}
