"""Pictures that people drew, with their names: the sprites that the repository ships.

Whose they are and under which licenses is in ``CREDITS.md`` beside this file.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from .drawing import SPRITE_SIZE, Sprite

COLUMNS = 20  # sprites in a row of a sheet
SHEETS = ("noto", "fluent_flat", "openmoji", "fluent_contrast")
_HERE = Path(__file__).parent


class Concept(NamedTuple):
    """Something that was drawn, with the words that people use for it (Unicode's CLDR)."""

    name: str
    words: tuple[str, ...]
    group: str
    subgroup: str


@cache
def concepts() -> dict[str, list[Concept]]:
    """Return the classes of each set, in label order."""
    content = json.loads((_HERE / "concepts.json").read_text(encoding="utf-8"))
    return {
        name: [Concept(e["name"], tuple(e["words"]), e["group"], e["subgroup"]) for e in entries]
        for name, entries in content.items()
    }


@cache
def sprites(style: str) -> dict[str, Sprite]:
    """Return {name: sprite} of all classes of all sets, as one style draws them."""
    with Image.open(_HERE / "sheets" / f"{style}.png") as picture:
        sheet = np.asarray(picture.convert("RGBA"))
    names = [concept.name for classes in concepts().values() for concept in classes]
    return {
        name: sheet[
            place // COLUMNS * SPRITE_SIZE : (place // COLUMNS + 1) * SPRITE_SIZE,
            place % COLUMNS * SPRITE_SIZE : (place % COLUMNS + 1) * SPRITE_SIZE,
        ]
        for place, name in enumerate(names)
    }


@cache
def glyph_outlines() -> npt.NDArray[np.uint8]:
    """Return the opacities (fonts, 36, 48, 48) of the characters in the fonts of Glyphs."""
    with Image.open(_HERE / "sheets" / "glyphs.png") as picture:
        sheet = np.asarray(picture.convert("L"))
    n = SPRITE_SIZE
    tiles = sheet.reshape(sheet.shape[0] // n, n, sheet.shape[1] // n, n)
    return tiles.transpose(0, 2, 1, 3)
