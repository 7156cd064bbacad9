"""The transforms that ``cfg.INPUT.TRANSFORMS`` may name, and the order in which they are applied.

Training: resize to INPUT.SIZE (unless one of the random crops sets the size), then the named
transforms in the order of ``CHOICES``. Test: resize the shorter side to the longer side of
INPUT.SIZE, crop the center; of the named transforms only the normalizations. That is the behavior
of the public toolbox's last version, so CLIP models see what they see there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from dassl.compat import __getattr__  # noqa: F401
from dassl.config import check_domains
from dassl.errors import check_choice
from dassl.utils.logger import log

CHOICES = (
    "random_translation",
    "random_crop",
    "random_resized_crop",
    "random_flip",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
    "cutout",
    "normalize",
    "gaussian_noise",
    "instance_norm",
    "center_crop",  # accepted for old configs: the test transform always does it
)
INTERPOLATION_NAMES = ("bilinear", "bicubic", "nearest")


@dataclass
class Random2DTranslation:
    """With probability p: enlarges the image to 1.125 times (height, width) and crops at random.

    Otherwise: resizes to (height, width), which is the size of the result in both cases. Takes and
    returns PIL images.
    """

    height: int
    width: int
    p: float = 0.5
    interpolation: Image.Resampling = Image.Resampling.BILINEAR

    def __call__(self, img: Image.Image) -> Image.Image:
        if random.random() > self.p:
            return img.resize((self.width, self.height), self.interpolation)
        width, height = round(self.width * 1.125), round(self.height * 1.125)
        left = random.randint(0, width - self.width)
        top = random.randint(0, height - self.height)
        enlarged = img.resize((width, height), self.interpolation)
        return enlarged.crop((left, top, left + self.width, top + self.height))


@dataclass
class InstanceNormalization:
    """Gives each channel of an image tensor (..., channels, height, width) mean 0, deviation 1."""

    eps: float = 1e-8

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        mean = img.mean(dim=(-2, -1), keepdim=True)
        return (img - mean) / (img.std(dim=(-2, -1), keepdim=True) + self.eps)


@dataclass
class Cutout:
    """Sets squares of an image tensor (channels, height, width) to zero.

    Args:
        n_holes: number of squares.
        length: their side in pixels; they are cut off at the image's edges.
    """

    n_holes: int = 1
    length: int = 16

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        img = img.clone()
        for _ in range(self.n_holes):
            top = np.random.randint(img.shape[1]) - self.length // 2
            left = np.random.randint(img.shape[2]) - self.length // 2
            rows = slice(max(top, 0), max(top + self.length, 0))
            columns = slice(max(left, 0), max(left + self.length, 0))
            img[:, rows, columns] = 0.0
        return img


@dataclass
class GaussianNoise:
    """With probability p: adds normal noise to an image tensor."""

    mean: float = 0.0
    std: float = 0.15
    p: float = 0.5

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        if random.random() > self.p:
            return img
        return img + torch.randn_like(img) * self.std + self.mean


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> Callable[[Image.Image], Any] | None:
    """Make the transform from a PIL image to what the model takes, or None for INPUT.NO_TRANSFORM.

    Args:
        cfg: the config.
        is_train: for training (random) or test.
        choices: names instead of ``cfg.INPUT.TRANSFORMS``.

    Raises:
        UserError: a name is unknown, or a key of the node INPUT is outside its domain.
    """
    if cfg.INPUT.NO_TRANSFORM:
        log.info("Note: no transform is applied!")
        return None
    check_domains(cfg, section="INPUT.")
    names = cfg.INPUT.TRANSFORMS if choices is None else choices
    for name in names:
        check_choice("choices", name, CHOICES)

    from torchvision import transforms as T

    steps = _train_steps(cfg, names, T) if is_train else _test_steps(cfg, names, T)
    if cfg.VERBOSE:
        log.info(f"Transform for {'training' if is_train else 'test'}:")
        for step in steps:
            log.info(f"+ {step if hasattr(step, 'extra_repr') else type(step).__name__}")
    return T.Compose(steps)


def plain_transform(cfg: CfgNode) -> Callable[[Image.Image], torch.Tensor]:
    """Make the transform without any augmentation, which gives ``batch["img0"]``."""
    from torchvision import transforms as T

    mode = T.InterpolationMode(cfg.INPUT.INTERPOLATION)
    steps = [T.Resize(tuple(cfg.INPUT.SIZE), interpolation=mode), T.ToTensor()]
    if "normalize" in cfg.INPUT.TRANSFORMS:
        steps.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    return T.Compose(steps)


def _train_steps(cfg: CfgNode, names: Sequence[str], T: Any) -> list[Any]:
    settings = cfg.INPUT
    size = tuple(settings.SIZE)
    mode = T.InterpolationMode(settings.INTERPOLATION)
    policy = T.AutoAugmentPolicy
    makers: dict[str, Callable[[], Any]] = {
        "random_translation": lambda: Random2DTranslation(*size),
        "random_crop": lambda: T.RandomCrop(size, padding=settings.CROP_PADDING),
        "random_resized_crop": lambda: T.RandomResizedCrop(
            size, scale=tuple(settings.RRCROP_SCALE), interpolation=mode
        ),
        "random_flip": lambda: T.RandomHorizontalFlip(),
        "imagenet_policy": lambda: T.AutoAugment(policy.IMAGENET, interpolation=mode),
        "cifar10_policy": lambda: T.AutoAugment(policy.CIFAR10, interpolation=mode),
        "svhn_policy": lambda: T.AutoAugment(policy.SVHN, interpolation=mode),
        "randaugment": lambda: T.RandAugment(
            settings.RANDAUGMENT_N, settings.RANDAUGMENT_M, interpolation=mode
        ),
        "colorjitter": lambda: T.ColorJitter(
            settings.COLORJITTER_B,
            settings.COLORJITTER_C,
            settings.COLORJITTER_S,
            settings.COLORJITTER_H,
        ),
        "randomgrayscale": lambda: T.RandomGrayscale(settings.RGS_P),
        "gaussian_blur": lambda: T.RandomApply([T.GaussianBlur(settings.GB_K)], settings.GB_P),
    }
    tensor_makers: dict[str, Callable[[], Any]] = {
        "cutout": lambda: Cutout(settings.CUTOUT_N, settings.CUTOUT_LEN),
        "normalize": lambda: T.Normalize(settings.PIXEL_MEAN, settings.PIXEL_STD),
        "gaussian_noise": lambda: GaussianNoise(settings.GN_MEAN, settings.GN_STD),
        "instance_norm": lambda: InstanceNormalization(),
    }
    steps: list[Any] = []
    if "random_crop" not in names and "random_resized_crop" not in names:
        steps.append(T.Resize(size, interpolation=mode))
    steps += [make() for name, make in makers.items() if name in names]
    steps.append(T.ToTensor())
    steps += [make() for name, make in tensor_makers.items() if name in names]
    return steps


def _test_steps(cfg: CfgNode, names: Sequence[str], T: Any) -> list[Any]:
    size = tuple(cfg.INPUT.SIZE)
    mode = T.InterpolationMode(cfg.INPUT.INTERPOLATION)
    steps = [T.Resize(max(size), interpolation=mode), T.CenterCrop(size), T.ToTensor()]
    if "normalize" in names:
        steps.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    if "instance_norm" in names:
        steps.append(InstanceNormalization())
    return steps
