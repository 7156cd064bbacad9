"""The pictures: fixed by their seed, and showing what they are told to show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.embedded.drawing import (
    COLORS,
    GLYPHS,
    SHAPES,
    TEXTURES,
    Hand,
    Look,
    draw_glyph,
    draw_shape,
    random_state,
)

CLEAN = Look(
    radius=(12.0, 12.0),
    rotation=0.0,
    color_jitter=0.0,
    background_color=0.0,
    clutter=0,
    occlusion=0.0,
    cast=(0.0, 0.0),
    exposure=(1.0, 1.0),
    contrast=(1.0, 1.0),
    blur=(0.0, 0.0),
    noise=(0.0, 0.0),
    outline=0.0,
)
MEDIA = ("photo", "sketch", "cartoon", "mosaic", "silkscreen")


@pytest.mark.parametrize("medium", MEDIA)
def test_a_seed_and_a_number_fix_the_picture(medium: str) -> None:
    look = Look(medium=medium, wobble=0.03)

    def draw(seed: int, index: int) -> np.ndarray:
        return draw_shape(random_state(seed, index), "blue", "striped", "heart", look)

    assert draw(1, 2).shape == (32, 32, 3) and draw(1, 2).dtype == np.uint8
    assert (draw(1, 2) == draw(1, 2)).all()
    assert (draw(1, 2) != draw(1, 3)).any() and (draw(1, 2) != draw(2, 2)).any()


def test_other_random_numbers_do_not_matter() -> None:
    first = draw_glyph(random_state(1, 2), "Q", Hand())
    np.random.seed(5)
    np.random.rand(3)
    assert (first == draw_glyph(random_state(1, 2), "Q", Hand())).all()


@pytest.mark.parametrize("color", COLORS)
def test_plain_shape_has_its_color(color: str) -> None:
    picture = draw_shape(random_state(3, 1), color, "plain", "square", CLEAN)
    center = picture[12:20, 12:20].reshape(-1, 3).mean(0) / 255
    others = {name: np.abs(center - np.array(tone)).sum() for name, tone in COLORS.items()}
    assert min(others, key=lambda name: others[name]) == color


@pytest.mark.parametrize("texture", TEXTURES)
def test_texture_shows_as_contrast(texture: str) -> None:
    spread = np.mean(
        [
            draw_shape(random_state(4, i), "blue", texture, "square", CLEAN)[10:22, 10:22].std(
                (0, 1)
            )
            for i in range(8)
        ]
    )
    assert spread < 15 if texture == "plain" else spread > 25


def test_shapes_cover_what_they_should() -> None:
    look = replace(CLEAN, radius=(16.0, 16.0))

    def covered(shape: str, row: int, column: int) -> bool:
        picture = draw_shape(random_state(5, 1), "red", "plain", shape, look)
        red, green, _ = picture[row, column].astype(int)
        return red - green > 130

    assert [shape for shape in SHAPES if not covered(shape, 16, 16)] == ["ring", "crescent"]
    assert covered("square", 7, 7)
    assert not any(covered(shape, 7, 7) for shape in ("cross", "triangle", "star"))


def test_all_characters_differ() -> None:
    hand = Hand(
        height=(26.0, 26.0), rotation=0.0, slant=0.0, shake=(0.0, 0.0), serif=0.0, curvy=0.0,
        outlined=0.0, saturation=0.0, clutter=0, occlusion=0.0, blur=(0.0, 0.0),
        noise=(0.0, 0.0), coarse=0.0,
    )  # fmt: skip
    pictures = {draw_glyph(random_state(6, 0), character, hand).tobytes() for character in GLYPHS}
    assert len(GLYPHS) == 36 and len(pictures) == 36


def test_unknown_names() -> None:
    with pytest.raises(KeyError):
        draw_shape(random_state(1, 1), "mauve", "plain", "circle", Look())
    with pytest.raises(ValueError, match="striped"):
        draw_shape(random_state(1, 1), "red", "furry", "circle", Look())
    with pytest.raises(ValueError, match="crescent"):
        draw_shape(random_state(1, 1), "red", "plain", "blob", Look())
    with pytest.raises(KeyError):
        draw_glyph(random_state(1, 1), "a", Hand())
