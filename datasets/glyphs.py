"""Glyphs: capital letters and digits in old hands, classes such as "letter A" and "digit 7"."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from dassl.data.datasets import DATASET_REGISTRY

from .embedded import SceneDataset
from .embedded.drawing import Look, Random, Sprite
from .embedded.figures import GLYPHS, glyph_sprite
from .embedded.sheets import glyph_outlines
from .embedded.wording import glyph_classes, glyph_name


@DATASET_REGISTRY.register()
class Glyphs(SceneDataset):
    """Characters in two blackletter fonts, which ViT-Mini-2 has not seen, on colored grounds: 32
    training, 8 validation and 250 test pictures of each of 36 classes."""

    folder = "glyphs"
    seed = 6
    numbers = {"train": 32, "val": 8, "test": 250}
    look = Look(size=(18.0, 30.0), cast=(0.2, 0.8))
    templates = ["a photo of the {}.", "a picture of the {}.", "a written {}.", "the printed {}."]

    @classmethod
    def classes(cls) -> Iterable[tuple[str, Callable[[Random], Sprite]]]:
        outlines = glyph_outlines()
        for character in glyph_classes():
            of_fonts = outlines[:, GLYPHS.index(character)]
            yield glyph_name(character), partial(glyph_sprite, outlines=of_fonts)
