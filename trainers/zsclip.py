"""Zero-shot CLIP (Radford et al., 2021): class names in the dataset's template, no learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dassl.utils import UserError, log

from .base import Batch, Features, Method, Towers
from .descriptions import of_imagenet
from .features import pixels_of
from .trainer import register_method


@register_method("ZSCLIP")
class ZeroshotCLIP(Method):
    """Text features are those of the first of the dataset's templates."""

    def ensemble(self) -> list[str]:
        """Return the templates over which a class's unit features are averaged."""
        return self.templates[:1]

    def class_features(self, towers: Towers) -> Features:
        return {"text": self.template_features(self.ensemble())}


@register_method("ZSCLIP")
class ZeroshotCLIP2(ZeroshotCLIP):
    """All of the dataset's templates and the seven that CLIP's authors recommend for ImageNet."""

    def ensemble(self) -> list[str]:
        return [*self.templates, *of_imagenet("ImageNet")]


@register_method("ZSCLIP")
class StandardizedCLIP(ZeroshotCLIP):
    """Zero-shot CLIP on images whose channels are standardized; a control that sees no label.

    The means and deviations of the training images' channels, over all pixels, take the place of
    those that CLIP was trained with. They are measured behind the test transform, whose own
    normalization cancels out. What a method gains beyond this is not the undoing of one tint.
    """

    checkpoint_name = "standardization"
    mean: Tensor
    std: Tensor

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def image_features(self, batch: Batch, towers: Towers) -> Features:
        mean, std = self.mean.view(3, 1, 1), self.std.view(3, 1, 1)
        pixels = pixels_of(self.views(batch)[0])
        return super().image_features((pixels - mean) / std, towers)

    def fit(self, train: Any, val: Any) -> None:
        """Measure the channels of the training images (B, 3, R, R).

        Raises:
            UserError: a channel is the same everywhere.
        """
        count, total, squares = 0, torch.zeros(3).double(), torch.zeros(3).double()
        for batch in train:
            pixels = batch["img"].double().transpose(0, 1).flatten(1)
            count += pixels.shape[1]
            total += pixels.sum(dim=1)
            squares += pixels.square().sum(dim=1)
        mean = total / count
        variance = squares / count - mean.square()
        if variance.min() < 1e-8:  # rounding leaves less
            raise UserError("the training images have a color channel that is the same everywhere")
        self.mean.copy_(mean)
        self.std.copy_(variance.sqrt())
        log.info(f"Channels: mean {self.mean.tolist()}, deviation {self.std.tolist()}")
