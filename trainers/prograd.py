"""ProGrad: Prompt-aligned Gradient for Prompt Tuning (Zhu et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.config import register_defaults
from dassl.config.domains import Choice, Float
from dassl.engine.optimize import Update
from dassl.utils import UserError

from .base import Batch, Features
from .context import Context, chosen_words, context_from_words, count_tokens
from .coop import SETTINGS, CoOp
from .trainer import register_method

SMALLEST = 1e-12  # length that a gradient is divided by

# Beside the method's node, as in the public code.
register_defaults(
    "LOSS",
    {
        "NAME": Choice("prograd", "prograd", help="what is done with the two gradients"),
        "T": Float(1.0, above=0, help="temperature of the distance to the frozen logits"),
        "LAMBDA": Float(1.0, min=0, help="share of the conflicting component that is taken away"),
    },
    trainer="ProGrad",
)


@register_method("COOP", **SETTINGS)
class ProGrad(CoOp):
    """CoOp's context, whose steps do not go against what the frozen CLIP knows.

    Of the gradient g of the cross-entropy, its component along the gradient of the distance to the
    frozen logits, with the direction d, is taken away where the two conflict:
    g <- g - LAMBDA * min(g . d, 0) * d. The distance, T^2 times the cross-entropy of
    softmax(logits / T) against softmax(frozen logits / T), is never added to the loss.

    With ``CTX_INIT`` True the context ends with the words of the dataset's template, and begins
    with zeros; what follows the class name in the template stands in front: "a type of pet, a photo
    of a". Frozen texts are these words and the class name.

    Odd in the released code, and not here: it counts blanks, so that the last token of words with
    a comma is not learned; any words mean True; in amp it steps on both losses one by one, which
    fails.
    """

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.loss = cfg.LOSS
        super().build(cfg, class_names)

    def start(self) -> Context:
        """Return the words, in the last of N_CTX tokens, and zeros before them.

        Raises:
            UserError: there are more words than N_CTX has tokens.
        """
        setting, n_prompts = self.settings.CTX_INIT, self.settings.N_CTX
        words = words_of(self.templates[0]) if setting is True else chosen_words(setting)
        if not words:
            return context_from_words(self.clip, "", n_prompts)
        count = count_tokens(words)
        if count > n_prompts:
            raise UserError(
                f"TRAINER.COOP.N_CTX: expected at least {count}, as many tokens as '{words}' has "
                f"(CTX_INIT), got {n_prompts}"
            )
        init = context_from_words(self.clip, words, count).init
        assert init is not None
        missing = n_prompts - count
        whole = " ".join([*["X"] * missing, words])
        return Context(whole, n_prompts, F.pad(init, (0, 0, missing, 0)))

    def compute_frozen_text(self) -> Tensor:
        """Return unit features (K, d) of the template's words before the class."""
        return self.template_features([f"{words_of(self.templates[0])} {{}}.".lstrip()])

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy and the distance, which ``step`` treats one by one."""
        frozen = self.clip.similarity(features["image"], self.frozen_text)
        target = (frozen / self.loss.T).softmax(dim=1)
        distance = self.loss.T**2 * F.cross_entropy(logits / self.loss.T, target)
        return {**super().losses(features, logits, labels), "loss_kd": distance}

    def step(
        self, batch: Batch, labels: Tensor, update: Update
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, terms = self(batch, labels)
        ctx = self.prompt_learner.ctx
        (known,) = update.gradients(terms["loss_kd"], [ctx], keep_graph=True)
        direction = known / known.norm().clamp_min(SMALLEST)

        def aligned(gradient: Tensor) -> Tensor:
            along = torch.clamp((gradient * direction).sum(), max=0)
            return gradient - self.loss.LAMBDA * along * direction

        hook = ctx.register_hook(aligned)
        try:
            update(terms["loss_ce"])
        finally:
            hook.remove()
        return logits, terms


def words_of(template: str) -> str:
    """Return a template's words as they stand in front of the class name."""
    before, _, after = template.partition("{}")
    before, after = before.strip(), after.strip(" .,")
    if not after:
        return before
    return f"{after}, {before}" if before else f"a {after} of"
