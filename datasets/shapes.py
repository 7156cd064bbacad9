"""Shapes: 32 classes such as "red striped circle"."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from dassl.data.datasets import DATASET_REGISTRY

from .embedded import SceneDataset
from .embedded.drawing import Look, Random, Sprite
from .embedded.figures import INKS, shape_sprite
from .embedded.wording import shape_classes, shape_name
from .emoji import TEMPLATES


@DATASET_REGISTRY.register()
class Shapes(SceneDataset):
    """Colored and textured shapes in muted inks, among clutter, each in a light of its own: 32
    training, 8 validation and 285 test pictures of each of 32 classes."""

    folder = "shapes"
    seed = 1
    numbers = {"train": 32, "val": 8, "test": 285}
    look = Look(size=(11.0, 21.0), clutter=4, occlusion=0.2, cast=(0.2, 0.8))
    templates = TEMPLATES

    @classmethod
    def classes(cls) -> Iterable[tuple[str, Callable[[Random], Sprite]]]:
        for color, texture, shape in shape_classes():
            yield (
                shape_name(color, texture, shape),
                partial(shape_sprite, color=color, texture=texture, shape=shape, colors=INKS),
            )
