"""Image transforms by name. torchvision is imported when the first transform is built."""

from typing import Any

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


def __getattr__(name: str) -> Any:
    if name == "INTERPOLATION_MODES":
        from dassl.data.transforms import transforms

        return transforms.INTERPOLATION_MODES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
