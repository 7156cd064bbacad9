"""The linear probe of CLIP (Radford et al., 2021): logistic regression on frozen image features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dassl.utils import UserError, log

from .base import Features, Method, Towers
from .trainer import register_method

# Inverse regularization strengths to choose from; unit features need little regularization.
STRENGTHS = tuple(10.0**power for power in range(-2, 6))


@register_method("LINEAR_PROBE")
class LinearProbe(Method):
    """Logits are a linear function of the unit image features, fitted by scikit-learn.

    C is the one with the best validation accuracy, or 1 where there are no validation images, or
    none that are not test images, as with ImageNet.  Images are seen once and without
    augmentation, so there are no epochs.  The classifier knows only the classes that it was
    trained on.
    """

    checkpoint_name = "linear_probe"
    checkpoint_scope = "classifier"

    @classmethod
    def bound_to_classes(cls, settings: Any) -> bool:
        return True

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.classifier = nn.Linear(self.clip.config.embed_dim, len(class_names))

    def class_features(self, towers: Towers) -> Features:
        return {"text": self.classifier.weight}

    def logits(self, features: Features) -> Tensor:
        return self.classifier(features["image"])

    def fit(self, train: Any, val: Any) -> None:
        from sklearn.linear_model import LogisticRegression

        x, y = (part.numpy() for part in self.frozen_features(train))
        if len(set(y)) < 2:
            raise UserError(
                "the training images have one class, but a linear probe needs at least two"
            )
        chosen_on = [part.numpy() for part in self.frozen_features(val)] if val else []
        best: tuple[float, Any] = (-1.0, None)
        # Without a validation split nothing can be chosen: scikit-learn's default.
        for strength in STRENGTHS if val else (1.0,):
            classifier = LogisticRegression(C=strength, max_iter=2000).fit(x, y)
            accuracy = classifier.score(*chosen_on) if val else 0.0
            log.info(f"C {strength:g}: validation accuracy {100 * accuracy:.1f}%")
            if accuracy > best[0]:
                best = (accuracy, classifier)
        classifier = best[1]
        weight, bias = classifier.coef_, classifier.intercept_
        if len(classifier.classes_) == 2:  # one row, for the second class
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        with torch.no_grad():
            self.classifier.weight.copy_(torch.from_numpy(weight))
            self.classifier.bias.copy_(torch.from_numpy(bias))
