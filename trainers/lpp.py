"""LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP (Huang et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.config.domains import Int
from dassl.utils import log

from .base import Features, Method, Towers
from .descriptions import of_imagenet
from .trainer import register_method


@register_method(
    "LPPP",
    TRAIN_EPOCH=Int(300, min=1, max=10**6, help="steps, each on all training images"),
    ALPHA_STEP=Int(10, min=1, help="steps of the prototypes for one of the multipliers"),
)
class LPpp(Method):
    """A linear probe whose weights are visual prototypes and multiples of the texts' features.

    logits_k = f . (w_k + alpha_k t_k) for unit features f of an image and t_k of class k, with
    prototypes w_k (d,) and multipliers alpha_k learned by block coordinate descent on the mean
    cross-entropy of N training images. Rates and start come from the data:

    - w_k starts as the sum of its class's features, and every alpha_k as 250 times the mean over
      classes of the mean f . t_k of their images.
    - The rate of w is 4 N / (largest eigenvalue of the sum of f f^T), that of alpha is
      N / (4 max_k sum (f . t_k)^2). Steps of w have momentum (OPTIM.MOMENTUM).

    The step with the best accuracy on the validation images, the last of several, is kept; without
    validation images that are not test images, the last step is.

    Left open or odd in the released code, and what is done here:

    - Its classifier has a bias, which starts at random; the paper has none, and so has this.
    - Its gradient of alpha is never set back to zero, so that a step takes the sum of all those
      before it; here each step takes the gradient at hand, as in the paper.
    - It chooses the kept step by the validation images while it tests each on the test images.
    """

    checkpoint_name = "lpp"
    fits_augmented = True
    alpha_vec: Tensor

    @classmethod
    def bound_to_classes(cls, settings: Any) -> bool:
        return True

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.own_templates = of_imagenet(cfg.DATASET.NAME) or self.templates[:1]
        self.momentum = cfg.OPTIM.MOMENTUM
        self.classifier = nn.Linear(self.clip.config.embed_dim, len(class_names), bias=False)
        self.alpha_vec = nn.Parameter(torch.zeros(1, len(class_names)))

    def class_features(self, towers: Towers) -> Features:
        return {"text": self.template_features(self.own_templates)}

    def logits(self, features: Features) -> Tensor:
        images = features["image"].float()
        return self.classifier(images) + self.alpha_vec * (images @ features["text"].t())

    def fit(self, train: Any, val: Any) -> None:
        text = self.class_features(Towers())["text"]
        images, labels = (part.to(self.device) for part in self.frozen_features(train))
        chosen_on = [p.to(self.device) for p in self.frozen_features(val)] if val else []
        w, alpha = self.classifier.weight, self.alpha_vec
        with torch.no_grad():
            w_start, alpha_start = start_of(images, labels, text)
            w.copy_(w_start)
            alpha.fill_(alpha_start)
        rate_w, rate_alpha = rates_of(images, text)
        log.info(
            f"Rates {rate_w:.4g} of w, {rate_alpha:.4g} of alpha; alpha from {alpha_start:.4g}"
        )
        settings, velocity = self.settings, torch.zeros_like(w)
        best, kept = -1, (w.detach().clone(), alpha.detach().clone())
        for step in range(1, settings.TRAIN_EPOCH + 1):
            loss = F.cross_entropy(self.logits({"image": images, "text": text}), labels)
            of_w, of_alpha = torch.autograd.grad(loss, [w, alpha])
            with torch.no_grad():
                velocity = self.momentum * velocity + of_w
                w -= rate_w * velocity
                if step % settings.ALPHA_STEP == 0:
                    alpha -= rate_alpha * of_alpha
                if chosen_on:
                    predicted = self.logits({"image": chosen_on[0], "text": text}).argmax(dim=1)
                    correct = int((predicted == chosen_on[1]).sum())
                    if correct >= best:
                        best, kept = correct, (w.clone(), alpha.clone())
        if chosen_on:
            with torch.no_grad():
                w.copy_(kept[0])
                alpha.copy_(kept[1])
            accuracy = 100 * best / len(chosen_on[1])
            log.info(f"Validation accuracy {accuracy:.1f}% on {len(chosen_on[1])} images")


def start_of(images: Tensor, labels: Tensor, text: Tensor) -> tuple[Tensor, float]:
    """Return the prototypes (K, d) and the multiplier to start from.

    Args:
        images: unit features (N, d).
        labels: (N,).
        text: unit features of the classes (K, d).
    """
    of_class = F.one_hot(labels, len(text)).float()
    cosines = (images * text[labels]).sum(dim=1)
    counts = of_class.sum(dim=0)
    means = (of_class.t() @ cosines)[counts > 0] / counts[counts > 0]
    return of_class.t() @ images, 250 * float(means.mean())


def rates_of(images: Tensor, text: Tensor) -> tuple[float, float]:
    """Return the rates of the prototypes and of the multipliers; arguments as ``start_of``'s."""
    largest = torch.linalg.eigvalsh(images.t().double() @ images.double())[-1]
    squares = (images @ text.t()).square().sum(dim=0).max()
    return 4 * len(images) / float(largest), len(images) / (4 * float(squares))
