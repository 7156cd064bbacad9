"""Shapes, the embedded benchmark's counterpart of ImageNet: 32 classes such as "red striped
circle".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dassl.data.datasets import DATASET_REGISTRY

from .common import SPLITS
from .embedded import EmbeddedDataset, Example
from .embedded.drawing import Look, draw_shape, random_state
from .embedded.wording import shape_classes, shape_name

# Every picture has strong evening light, which ViT-Mini has hardly seen: something that few-shot
# learning can adapt to for base and novel classes alike.
LOOK = Look(
    radius=(6.0, 11.0),
    clutter=3,
    background_color=0.5,
    occlusion=0.2,
    cast=(0.7, 0.95),
    warm=1.0,
    exposure=(0.6, 0.95),
)


def shape_examples(seed: int, looks: Sequence[Look], numbers: dict[str, int]) -> Iterable[Example]:
    """Yield pictures of all classes.

    Args:
        seed: seed of the set.
        looks: looks that successive pictures take in turn.
        numbers: pictures per class, by split.
    """
    for label, (color, texture, shape) in enumerate(shape_classes()):
        for split, number in numbers.items():
            for index in range(number):
                random = random_state(seed, label, SPLITS.index(split), index)
                look = looks[index % len(looks)]
                picture = draw_shape(random, color, texture, shape, look)
                yield Example(split, label, shape_name(color, texture, shape), picture)


@DATASET_REGISTRY.register()
class Shapes(EmbeddedDataset):
    """Colored and textured shapes in evening light among clutter: 32 training, 8 validation and 24
    test pictures of each of 32 classes."""

    folder = "shapes"
    numbers = {"train": 32, "val": 8, "test": 24}
    templates = [
        "a photo of a {}.",
        "a picture of the {}.",
        "a blurry photo of a {}.",
        "this is a {}.",
    ]

    @classmethod
    def examples(cls) -> Iterable[Example]:
        return shape_examples(1, [LOOK], cls.numbers)
