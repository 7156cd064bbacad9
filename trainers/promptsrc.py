"""PromptSRC: Self-regulating Prompts (Khattak et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.config.domains import Float

from .base import Batch, Features, Towers
from .ivlp import IVLP, ivlp_settings
from .trainer import register_method


def epoch_weights(n_epochs: int, mean: float, std: float) -> Tensor:
    """Return Gaussian weights of the epochs 1..n, which sum to 1: (n,), fp64."""
    epochs = torch.arange(1, n_epochs + 1, dtype=torch.float64)
    # A softmax of the exponents: with a mean far beyond the last epoch the densities are all 0.
    return torch.softmax(-0.5 * ((epochs - mean) / std) ** 2, dim=0)


@register_method(
    "PROMPTSRC",
    **ivlp_settings(4),
    TEXT_LOSS_WEIGHT=Float(25.0, min=0, help="weight of the distance of the text features"),
    IMAGE_LOSS_WEIGHT=Float(10.0, min=0, help="weight of the distance of the image features"),
    GPA_MEAN=Float(15.0, min=0, max=1e6, help="epoch, from 1, whose prompts weigh most in the sum"),
    GPA_STD=Float(1.0, min=0.001, help="standard deviation of the weights, in epochs"),
)
class PromptSRC(IVLP):
    """IVLP's prompts, held near the frozen CLIP in features of both towers and in logits.

    Frozen text features are the mean over 60 ImageNet templates, whatever the dataset.  What the
    last epoch leaves is the Gaussian-weighted sum of what all epochs left (GPA).
    """

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        super().build(cfg, class_names)
        self.aggregate: dict[str, Tensor] = {}

    def compute_frozen_text(self) -> Tensor:
        """Return unit features (K, d) of 60 texts for each class."""
        return self.ensemble_features()

    def image_features(self, batch: Batch, towers: Towers) -> Features:
        """Add ``frozen_image``, plain CLIP's features of the same view, in training."""
        features = super().image_features(batch, towers)
        if self.training:
            with torch.no_grad():
                features["frozen_image"] = self.encode_image(self.views(batch)[0])
        return features

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return cross-entropy and the three consistency terms.

        L1 distances are means over all elements, and so is, over the B * K logits, the
        divergence KL(frozen || prompted) of the predictions.
        """
        frozen_logits = self.clip.similarity(features["frozen_image"], self.frozen_text)
        log_prompted, log_frozen = logits.log_softmax(dim=1), frozen_logits.log_softmax(dim=1)
        divergence = F.kl_div(log_prompted, log_frozen, reduction="sum", log_target=True)
        text = F.l1_loss(features["text"], self.frozen_text)
        image = F.l1_loss(features["image"], features["frozen_image"])
        return {
            **super().losses(features, logits, labels),
            "loss_scl_text": self.settings.TEXT_LOSS_WEIGHT * text,
            "loss_scl_image": self.settings.IMAGE_LOSS_WEIGHT * image,
            "loss_scl_logits": divergence / logits.numel(),
        }

    def after_epoch(self, epoch: int, n_epochs: int) -> None:
        settings = self.settings
        weight = epoch_weights(n_epochs, settings.GPA_MEAN, settings.GPA_STD)[epoch].item()
        for name, tensor in self.saved().items():
            aggregate = self.aggregate.setdefault(name, torch.zeros_like(tensor))
            aggregate += weight * tensor
            if epoch + 1 == n_epochs:
                tensor.copy_(aggregate)

    def extra_state(self) -> dict[str, Any]:
        return {"aggregate": self.aggregate}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.aggregate = {name: t.to(self.device) for name, t in state["aggregate"].items()}

    def public_copies(self) -> set[str]:
        return super().public_copies() | self.copies_of_teacher()
