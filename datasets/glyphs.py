"""Glyphs: capital letters and digits in many stroke fonts, classes such as "letter A" and "digit
7".
"""

from __future__ import annotations

from collections.abc import Iterable

from dassl.data.datasets import DATASET_REGISTRY

from .common import SPLITS
from .embedded import EmbeddedDataset, Example
from .embedded.drawing import Hand, draw_glyph, random_state
from .embedded.wording import glyph_classes, glyph_name

HAND = Hand(occlusion=0.3, clutter=3, shake=(0.03, 0.1), rotation=25.0, slant=0.45)


@DATASET_REGISTRY.register()
class Glyphs(EmbeddedDataset):
    """Written characters on colored backgrounds: 32 training, 8 validation and 20 test pictures of
    each of 36 classes."""

    folder = "glyphs"
    numbers = {"train": 32, "val": 8, "test": 20}
    templates = ["a photo of the {}.", "a picture of the {}.", "a written {}.", "the printed {}."]

    @classmethod
    def examples(cls) -> Iterable[Example]:
        for label, character in enumerate(glyph_classes()):
            for split, number in cls.numbers.items():
                for index in range(number):
                    random = random_state(6, label, SPLITS.index(split), index)
                    picture = draw_glyph(random, character, HAND)
                    yield Example(split, label, glyph_name(character), picture)
