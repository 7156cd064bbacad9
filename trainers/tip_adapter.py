"""Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification (Zhang et al., ECCV
2022), and Tip-Adapter-F."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from dassl.config.domains import Float, Int, List
from dassl.optim import build_optimizer
from dassl.utils import log

from .base import Features, Method, Towers
from .descriptions import of_imagenet
from .trainer import register_method

SMALLEST = 0.1  # alpha and beta of the search, as in the public code
SETTINGS: dict[str, Any] = {
    "INIT_BETA": Float(1.0, min=0, help="sharpness, where it is not searched, and in tuning"),
    "INIT_ALPHA": Float(1.0, min=0, help="weight of the cache, where it is not searched"),
    "SEARCH_SCALE": List((7.0, 3.0), Float(min=SMALLEST), length=2, help="bounds of beta, alpha"),
    "SEARCH_STEP": List((200, 20), Int(min=1, max=10000), length=2, help="how many of each to try"),
    "AUGMENT_EPOCH": Int(10, min=1, help="augmented views of an image that its key is the mean of"),
}


@register_method("TIPADAPTER", **SETTINGS)
class TipAdapter(Method):
    """A cache of the training images: keys are their features, values their labels.

    logits = s * f W + alpha * exp(-beta * (1 - f F)) L for unit image features f, with the texts'
    features W and logit scale s of CLIP, keys F (d, N), and values L (N, K), one-hot. Nothing is
    learned but alpha and beta, which have the best accuracy on the validation images.

    Left open or odd in the released code, and what is done here:

    - Where no validation images are there that are not test images, as with ImageNet, it searches
      on test images. Here one in four training images of each class (one of two or three) is kept
      out of the cache and searched on; with a single image of each class, INIT_ALPHA and INIT_BETA
      stay.
    - It averages features of any length over the views of an image; here they are of unit length.
    - Keys belong to the classes of training, so that other classes are refused.
    - Its files hold neither alpha nor beta: with these, INIT_ALPHA and INIT_BETA are taken.
    """

    checkpoint_name = "tip_adapter"
    public_files: tuple[str, ...] = ("keys_{shots}shots.pt", "values_{shots}shots.pt")
    fits_augmented = True
    cache_keys: Tensor
    cache_values: Tensor
    beta: Tensor
    alpha: Tensor

    @classmethod
    def bound_to_classes(cls, settings: Any) -> bool:
        return True

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.own_templates = of_imagenet(cfg.DATASET.NAME) or self.templates[:1]
        self.optim_cfg, self.batch_size = cfg.OPTIM, cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.register_buffer("cache_keys", torch.zeros(self.clip.config.embed_dim, 0))
        self.register_buffer("cache_values", torch.zeros(0, len(class_names)))
        self.register_buffer("beta", torch.tensor(float(self.settings.INIT_BETA)))
        self.register_buffer("alpha", torch.tensor(float(self.settings.INIT_ALPHA)))

    def class_features(self, towers: Towers) -> Features:
        return {"text": self.template_features(self.own_templates)}

    def cache_logits(self, affinity: Tensor, beta: Tensor | float) -> Tensor:
        """Return exp(-beta (1 - a)) L of cosines a (B, N) with the keys: (B, K)."""
        return (-beta * (1 - affinity)).exp() @ self.cache_values

    def logits(self, features: Features) -> Tensor:
        affinity = features["image"].float() @ self.cache_keys
        return super().logits(features) + self.alpha * self.cache_logits(affinity, self.beta)

    # Fitting -------------------------------------------------------------------------------------

    def fit(self, train: Any, val: Any) -> None:
        """Fill the cache, tune its keys if the method does so, and search alpha and beta."""
        passes = [self.frozen_features(train) for _ in range(self.settings.AUGMENT_EPOCH)]
        images = F.normalize(torch.stack([x for x, _ in passes]).mean(dim=0), dim=-1)
        labels = passes[0][1]
        if val is None:
            held_out = one_in_four(labels)
            searched = images[held_out], labels[held_out]
        else:
            held_out = torch.zeros_like(labels, dtype=torch.bool)
            searched = self.frozen_features(val)
        self.cache_keys = images[~held_out].t().contiguous().to(self.device)
        values = F.one_hot(labels[~held_out], len(self.class_names))
        self.cache_values = values.float().to(self.device)
        self.tune(train, ~held_out)
        if len(searched[1]) > 0:
            self.search(*(part.to(self.device) for part in searched))
        else:
            log.info("One training image of each class: INIT_BETA and INIT_ALPHA stay")

    def tune(self, train: Any, used: Tensor) -> None:
        """Tune the keys of the images that are ``used`` (N,); here they stay."""

    @torch.no_grad()
    def search(self, images: Tensor, labels: Tensor) -> None:
        """Set the first beta and alpha of the grid that classify most of the images (N, d)."""
        scales, steps = self.settings.SEARCH_SCALE, self.settings.SEARCH_STEP
        betas, alphas = (
            [SMALLEST + i * (scale - SMALLEST) / step for i in range(step)]
            for scale, step in zip(scales, steps, strict=True)
        )
        features = {"image": images, **self.class_features(Towers())}
        plain, affinity = super().logits(features), images @ self.cache_keys
        correct = []
        for beta in betas:
            cache = self.cache_logits(affinity, beta)
            found = [((plain + a * cache).argmax(dim=1) == labels).sum() for a in alphas]
            correct.append(torch.stack(found))
        counts = torch.stack(correct).cpu().numpy()
        row, column = np.unravel_index(counts.argmax(), counts.shape)
        self.beta.fill_(betas[row])
        self.alpha.fill_(alphas[column])
        accuracy = 100 * counts.max() / len(labels)
        log.info(
            f"Validation accuracy {accuracy:.1f}% on {len(labels)} images with beta "
            f"{betas[row]:.3f}, alpha {alphas[column]:.3f}"
        )

    # Checkpoints ---------------------------------------------------------------------------------

    def prepare_to_load(self, state: Mapping[str, Any], path: str) -> None:
        """Make room for the keys of a checkpoint."""
        keys = state.get("cache_keys")
        if isinstance(keys, Tensor) and keys.dim() == 2:
            count, own = keys.shape[1], self.cache_values
            self.cache_keys = self.cache_keys.new_zeros(len(self.cache_keys), count)
            self.cache_values = own.new_zeros(count, own.shape[1])

    def read_public_files(self, *contents: Any) -> dict[str, Tensor]:
        keys, values = contents
        settings = self.settings
        return {
            "cache_keys": keys.float(),
            "cache_values": values.float(),
            "beta": torch.tensor(float(settings.INIT_BETA)),
            "alpha": torch.tensor(float(settings.INIT_ALPHA)),
        }


@register_method("TIPADAPTER", **SETTINGS)
class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys are tuned, by OPTIM, with INIT_BETA and INIT_ALPHA.

    An epoch sees a new augmented view of each image, in random batches; the rate falls to zero
    along a cosine over all steps. The released code keeps the epoch with the best accuracy on the
    test images; here it is the last one.
    """

    checkpoint_name = "tip_adapter_f"
    public_files = ("best_F_{shots}shots.pt", "values_{shots}shots.pt")

    def tune(self, train: Any, used: Tensor) -> None:
        n_epochs, size = self.optim_cfg.MAX_EPOCH, self.batch_size
        keys = nn.Parameter(self.cache_keys.clone())
        optimizer = build_optimizer([keys], self.optim_cfg)
        n_steps = n_epochs * math.ceil(int(used.sum()) / size)
        schedule = CosineAnnealingLR(optimizer, n_steps)
        text = self.class_features(Towers())["text"]
        for epoch in range(n_epochs):
            images, labels = (part[used].to(self.device) for part in self.frozen_features(train))
            losses = []
            for batch in torch.randperm(len(labels)).split(size):
                cache = self.cache_logits(images[batch] @ keys, self.beta)
                logits = self.clip.similarity(images[batch], text) + self.alpha * cache
                loss = F.cross_entropy(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
            log.info(f"Epoch {epoch + 1}/{n_epochs}: loss {torch.stack(losses).mean():.4f}")
        self.cache_keys = keys.detach()

    def read_public_files(self, *contents: Any) -> dict[str, Tensor]:
        keys, values = contents
        return super().read_public_files(keys.detach().t(), values)


def one_in_four(labels: Tensor) -> Tensor:
    """Mark the last quarter of each class's images, at least one if there are two: (N,)."""
    marked = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        marked[own[len(own) - max(len(own) // 4, len(own) > 1) :]] = True
    return marked
