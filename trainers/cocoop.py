"""CoCoOp: Conditional Prompt Learning for Vision-Language Models (Zhou et al., CVPR 2022)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip import PromptTokens
from dassl.config.domains import Int, Words

from .base import Method, Towers
from .context import context_of_all_words
from .settings import MOST_PROMPTS
from .trainer import register_method

REDUCTION = 16  # of the meta-net's hidden layer


class ConditionalContextLearner(nn.Module):
    """Context tokens, all shifted by what the meta-net makes of the image."""

    def __init__(self, ctx: Tensor, image_width: int):
        super().__init__()
        hidden = image_width // REDUCTION
        self.ctx = nn.Parameter(ctx)
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(image_width, hidden),
                relu=nn.ReLU(),
                linear2=nn.Linear(hidden, ctx.shape[-1]),
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """Make the context of each image (B, 1, m, d_t) from unit image features (B, d)."""
        return self.ctx + self.meta_net(image)[:, None, None]


@register_method(
    "COCOOP",
    N_CTX=Int(16, min=1, max=MOST_PROMPTS, help="context tokens, where CTX_INIT has no words"),
    CTX_INIT=Words("", help="words that the context starts from, and that say its length"),
)
class CoCoOp(Method):
    """Every image is compared with text features of its own.

    ``CTX_INIT`` gives the words to start from and then also their number; otherwise ``N_CTX``
    tokens start from normal(0, 0.02).
    """

    checkpoint_name = checkpoint_scope = "prompt_learner"
    conditional = True

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings = self.settings
        self.context = context_of_all_words(self.clip, settings.CTX_INIT, settings.N_CTX)
        ctx = self.context.start(self.clip.config.text_width)
        self.prompt_learner = ConditionalContextLearner(ctx, self.clip.config.embed_dim)

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words, n_prompts, _ = self.context
        return self.prompt_tokens(class_names, words, n_prompts, key=self.context.key())

    def layers(self, condition: Tensor | None = None) -> Towers:
        return Towers(text=[self.prompt_learner(condition)])

    def public_copies(self) -> set[str]:
        return {"token_prefix", "token_suffix"}
