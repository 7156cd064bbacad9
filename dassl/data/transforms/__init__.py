"""Image transforms by name. torchvision is imported when the first transform is built."""

from dassl.compat import __getattr__
from dassl.data.transforms.transforms import (
    CHOICES,
    INTERPOLATION_NAMES,
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    Random2DTranslation,
    build_transform,
)

__all__ = [
    "CHOICES",
    "INTERPOLATION_MODES",
    "INTERPOLATION_NAMES",
    "Cutout",
    "GaussianNoise",
    "InstanceNormalization",
    "Random2DTranslation",
    "build_transform",
]
