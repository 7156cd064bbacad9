"""KgCoOp: Visual-Language Prompt Tuning with Knowledge-guided Context Optimization (Yao et al.,
CVPR 2023)."""

from __future__ import annotations

from torch import Tensor

from dassl.config.domains import Float

from .base import Features
from .coop import SETTINGS, CoOp
from .trainer import register_method


@register_method(
    "COOP", **SETTINGS, W=Float(1.0, min=0, help="weight of the distance to the frozen features")
)
class KgCoOp(CoOp):
    """CoOp's context, held near the frozen features of the dataset's own template.

    Settings are CoOp's and ``W``, as in the public code.
    """

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return cross-entropy and W times the mean of 1 - cos(learned, frozen) over the classes.

        For unit features that is half the squared distance of the paper's equation; the weight
        of the public code, 8, belongs to this form.
        """
        distance = 1 - (features["text"] * self.frozen_text).sum(dim=-1).mean()
        terms = super().losses(features, logits, labels)
        return {**terms, "loss_kg": self.settings.W * distance}

    def public_copies(self) -> set[str]:
        """Name what is saved and never read, too."""
        unused = {"bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias"}
        return super().public_copies() | unused
