"""CoOp: Learning to Prompt for Vision-Language Models (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from clip import PromptTokens
from dassl.config.domains import Bool, Choice, Int, Words

from .base import Method, Towers
from .context import Context, ContextLearner, context_of_all_words
from .settings import MOST_PROMPTS
from .trainer import register_method

SETTINGS: dict[str, Any] = {
    "N_CTX": Int(16, min=1, max=MOST_PROMPTS, help="context tokens, where CTX_INIT has no words"),
    "CSC": Bool(False, help="every class has a context of its own"),
    "CTX_INIT": Words("", help="words that the context starts from, and that say its length"),
    "CLASS_TOKEN_POSITION": Choice(
        "end", "end", "middle", "front", help="position of the class name in the context"
    ),
}


@register_method("COOP", **SETTINGS)
class CoOp(Method):
    """Learned context tokens (m, d_t) before, around or after the class name.

    With ``CSC`` every class has its own: (K, m, d_t).  ``CTX_INIT`` gives the words to start from
    and then also their number; otherwise ``N_CTX`` tokens start from normal(0, 0.02).
    """

    checkpoint_name = checkpoint_scope = "prompt_learner"

    @classmethod
    def bound_to_classes(cls, settings: Any) -> bool:
        return bool(settings.CSC)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.context = self.start()
        per_class = (len(class_names),) if self.settings.CSC else ()
        ctx = self.context.start(self.clip.config.text_width, *per_class)
        self.prompt_learner = ContextLearner(ctx)

    def start(self) -> Context:
        """Return what the context starts from."""
        return context_of_all_words(self.clip, self.settings.CTX_INIT, self.settings.N_CTX)

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words, n_prompts, _ = self.context
        position = self.settings.CLASS_TOKEN_POSITION
        return self.prompt_tokens(class_names, words, n_prompts, position, self.context.key())

    def layers(self, condition: Tensor | None = None) -> Towers:
        return Towers(text=[self.prompt_learner.ctx])

    def public_copies(self) -> set[str]:
        return {"token_prefix", "token_suffix"}
