"""Four shifted versions of Shapes for domain generalization: test pictures only, 12 of each of its
classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY

from .embedded import EmbeddedDataset, Example
from .embedded.drawing import Look
from .shapes import LOOK, Shapes, shape_examples

NUMBERS = {"test": 12}


@DATASET_REGISTRY.register()
class ShapesV2(EmbeddedDataset):
    """New pictures taken like those of Shapes, a little harder. The counterpart of ImageNetV2."""

    folder = "shapes_v2"
    numbers = NUMBERS
    templates = Shapes.templates

    @classmethod
    def examples(cls) -> Iterable[Example]:
        look = replace(
            LOOK, radius=(6.0, 10.0), rotation=35.0, clutter=4, occlusion=0.3, noise=(0.0, 0.08)
        )
        return shape_examples(2, [look], cls.numbers)


@DATASET_REGISTRY.register()
class ShapesSketch(EmbeddedDataset):
    """Pencil drawings on paper. The counterpart of ImageNet-Sketch."""

    folder = "shapes_sketch"
    numbers = NUMBERS
    templates = Shapes.templates

    @classmethod
    def examples(cls) -> Iterable[Example]:
        look = Look(
            medium="sketch",
            radius=(6.0, 11.0),
            wobble=0.07,
            contrast=(0.3, 0.7),
            noise=(0.03, 0.09),
            cast=(0.1, 0.5),
        )
        return shape_examples(3, [look], cls.numbers)


@DATASET_REGISTRY.register()
class ShapesNoise(EmbeddedDataset):
    """Small, half-hidden, noisy shapes on gaudy backgrounds. The counterpart of ImageNet-A."""

    folder = "shapes_noise"
    numbers = NUMBERS
    templates = Shapes.templates

    @classmethod
    def examples(cls) -> Iterable[Example]:
        look = replace(
            LOOK,
            radius=(5.5, 10.0),
            background_color=0.7,
            clutter=6,
            occlusion=0.6,
            noise=(0.04, 0.12),
            cast=(0.2, 0.6),
            warm=0.5,
        )
        return shape_examples(4, [look], cls.numbers)


@DATASET_REGISTRY.register()
class ShapesRendition(EmbeddedDataset):
    """Cartoons, mosaics and silkscreen prints. The counterpart of ImageNet-R."""

    folder = "shapes_rendition"
    numbers = NUMBERS
    templates = Shapes.templates

    @classmethod
    def examples(cls) -> Iterable[Example]:
        look = replace(LOOK, wobble=0.09, color_jitter=0.12, cast=(0.3, 0.7))
        looks = [replace(look, medium=medium) for medium in ("cartoon", "mosaic", "silkscreen")]
        return shape_examples(5, looks, cls.numbers)
