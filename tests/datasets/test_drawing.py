"""The pictures: fixed by their seed, and showing what they are told to show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

import datasets  # noqa: F401  (registers the datasets)
from benchmarks.vit_mini import collect, train
from benchmarks.vit_mini.sheets import SETS, interleaved
from dassl.data.datasets import DATASET_REGISTRY
from datasets.embedded import DrawnByPeople
from datasets.embedded.drawing import Look, paint, random_state
from datasets.embedded.figures import (
    COLORS,
    GLYPHS,
    SHAPES,
    TEXTURES,
    glyph_sprite,
    shape_sprite,
)
from datasets.embedded.sheets import SHEETS, concepts, glyph_outlines, sprites

CLEAN = Look(
    size=(24.0, 24.0),
    rotation=0.0,
    stretch=0.0,
    background_color=0.0,
    clutter=0,
    occlusion=0.0,
    cast=(0.0, 0.0),
    exposure=(1.0, 1.0),
    contrast=(1.0, 1.0),
    blur=(0.0, 0.0),
    noise=(0.0, 0.0),
)
CLOSE = replace(CLEAN, size=(60.0, 60.0))  # the thing's middle fills the picture
SETS_OF_PEOPLE = [
    cls
    for name in DATASET_REGISTRY.registered_names()
    if issubclass(cls := DATASET_REGISTRY.get(name), DrawnByPeople)
]


def plain(*color: int) -> npt.NDArray[np.uint8]:
    """Return a sprite that is full of one color."""
    return np.broadcast_to(np.array([*color, 255], np.uint8), (48, 48, 4))


def halves(left: int, right: int) -> npt.NDArray[np.uint8]:
    """Return a gray sprite whose two halves differ."""
    return np.concatenate([plain(*[left] * 3)[:, :24], plain(*[right] * 3)[:, 24:]], axis=1)


def painted(sprite: npt.NDArray[np.uint8], look: Look, index: int = 0) -> npt.NDArray[np.float64]:
    return paint(random_state(3, index), sprite, look).astype(float)


def opacity(look: Look, index: int) -> npt.NDArray[np.float64]:
    """Return how much of each pixel (32, 32) the thing covers."""
    white, black = (painted(plain(*[tone] * 3), look, index) for tone in (255, 0))
    return (white - black).mean(2) / 255


def test_a_place_fixes_the_picture() -> None:
    heart = shape_sprite(random_state(0), "blue", "striped", "heart")

    def draw(seed: int, index: int) -> npt.NDArray[np.uint8]:
        return paint(random_state(seed, index), heart, Look())

    first = draw(1, 2)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    np.random.seed(5)  # other random numbers do not matter
    np.random.rand(3)
    assert (draw(1, 2) == first).all()
    assert (draw(1, 3) != first).any() and (draw(2, 2) != first).any()


def test_colors_are_where_the_sprite_has_them() -> None:
    left_red = np.concatenate([plain(255, 0, 0)[:, :24], plain(0, 255, 0)[:, 24:]], axis=1)
    for index in range(5):
        red, green, blue = painted(left_red, CLEAN, index).transpose(2, 0, 1)
        is_red = (red > 220) & (green < 35) & (blue < 35)
        is_green = (green > 220) & (red < 35) & (blue < 35)
        assert 220 <= is_red.sum() <= 288 and 220 <= is_green.sum() <= 288  # 12 x 24 each
        (rows, columns), (other_rows, other_columns) = is_red.nonzero(), is_green.nonzero()
        assert columns.max() < other_columns.min()
        assert other_columns.mean() - columns.mean() == pytest.approx(12, abs=0.6)
        assert rows.mean() == pytest.approx(other_rows.mean(), abs=0.1)


@pytest.mark.parametrize("side", [12.0, 18.0])
def test_size_is_in_pixels_whatever_the_rotation_and_the_stretch(side: float) -> None:
    turned = replace(CLEAN, size=(side, side), rotation=180.0, stretch=0.1)
    covers = [opacity(turned, index) for index in range(12)]
    edges = [max(cover[[0, -1]].max(), cover[:, [0, -1]].max()) for cover in covers]
    whole = [cover.sum() for cover, edge in zip(covers, edges, strict=True) if edge < 0.01]
    assert len(whole) >= 3  # others reach beyond an edge
    assert whole == pytest.approx([side**2] * len(whole), rel=0.03)


def test_what_is_transparent_shows_the_background() -> None:
    nothing = np.zeros((48, 48, 4), np.uint8)
    look = replace(CLEAN, clutter=3, background_color=0.4)
    free = opacity(look, 0) == 0
    assert 200 < free.sum() < 32**2 - 22**2
    background = painted(nothing, look)
    for color in ((255, 0, 0), (10, 20, 30)):
        assert (painted(plain(*color), look)[free] == background[free]).all()


def test_white_light_leaves_gray_gray() -> None:
    for index in range(5):
        picture = painted(plain(128, 128, 128), CLOSE, index)
        assert (picture == 128).all()


def test_colored_light_is_another_in_each_picture() -> None:
    look = replace(CLOSE, cast=(0.5, 0.5))
    means = np.stack([painted(plain(128, 128, 128), look, i).mean((0, 1)) for i in range(200)])
    # a channel keeps 1 - 0.5 (1 - u) of the light, u uniform in 0.1..1
    assert means.mean(0) == pytest.approx(np.full(3, 128 * 0.775), rel=0.03)
    assert means.std(0) == pytest.approx(np.full(3, 128 * 0.45 / np.sqrt(12)), rel=0.15)
    assert np.corrcoef(means.T)[np.triu_indices(3, 1)] == pytest.approx(np.zeros(3), abs=0.2)


@pytest.mark.parametrize("name", ["Emoji", "Shapes", "Glyphs"])
def test_light_has_no_color_in_the_mean_of_a_set(name: str) -> None:
    whole = DATASET_REGISTRY.get(name)
    small = type(name, (whole,), {"numbers": {"test": 2}})
    means = np.stack([example.picture.mean((0, 1)) for example in small.examples()])
    tints = means / means.mean(1, keepdims=True)
    assert whole.look.cast[0] > 0
    assert (np.abs(tints.mean(0) - 1) < 0.06).all()
    assert (tints.std(0) > 0.1).all()


def test_exposure_contrast_blur_and_noise_are_what_they_are_called() -> None:
    bright = painted(plain(*[100] * 3), replace(CLOSE, exposure=(1.5, 1.5)))
    assert (bright == 150).all()
    weak = painted(halves(64, 192), replace(CLOSE, contrast=(0.5, 0.5)))
    assert weak.max() - weak.min() == pytest.approx(64, abs=1)
    noisy = painted(plain(*[128] * 3), replace(CLOSE, noise=(0.1, 0.1)))
    assert noisy.std() == pytest.approx(25.5, rel=0.05)

    def variance(picture: npt.NDArray[np.float64]) -> float:
        """Return the squared width of the edge between dark and bright, in pixels."""
        steps = np.diff(picture.mean((0, 2)))
        places, shares = np.arange(len(steps)), steps / steps.sum()
        return float(shares @ places**2 - (shares @ places) ** 2)

    sharp, blurred = (
        painted(halves(0, 255), replace(CLOSE, blur=(width, width))) for width in (0.0, 1.2)
    )
    assert variance(blurred) - variance(sharp) == pytest.approx(1.2**2, abs=0.05)


def test_a_bar_hides_a_part() -> None:
    hidden = [1 - opacity(replace(CLOSE, occlusion=1.0), index).mean() for index in range(10)]
    assert all(0.02 < share < 0.25 for share in hidden)


@pytest.mark.parametrize("style", SHEETS)
def test_drawings_of_a_style_are_distinct_and_fill_their_sprites(style: str) -> None:
    drawn = sprites(style)
    assert list(drawn) == [concept.name for classes in concepts().values() for concept in classes]
    assert len({sprite.tobytes() for sprite in drawn.values()}) == len(drawn)
    for sprite in drawn.values():
        rows, columns = sprite[..., 3].nonzero()
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 46
        assert (
            abs(rows.min() + rows.max() - 47) <= 1 and abs(columns.min() + columns.max() - 47) <= 1
        )
        assert (sprite[..., 3] > 127).mean() > 0.1


@pytest.mark.parametrize("cls", SETS_OF_PEOPLE)
def test_every_class_is_drawn_in_each_style_of_its_set(cls: type[DrawnByPeople]) -> None:
    unseen = {*cls.styles} - {*train.SEEN_STYLES}
    assert unseen == ({*cls.styles} if len(cls.styles) == 1 else {"fluent_flat"})
    makers = dict(cls.classes())
    assert list(makers) == [concept.name for concept in concepts()[cls.concepts]]
    for name, make in makers.items():
        shown = {make(random_state(5, index)).tobytes() for index in range(24)}
        assert shown <= {sprites(style)[name].tobytes() for style in cls.styles}
        assert len(shown) == len(cls.styles)


def test_classes_are_those_that_the_script_lists() -> None:
    assert {name: [c.name for c in classes] for name, classes in concepts().items()} == {
        name: interleaved(names.split(", ")) for name, names in SETS.items()
    }
    assert not {*collect.FONTS} & {*collect.FONTS_OF_GLYPHS}


@pytest.mark.parametrize(
    ("shape", "area"),  # of a shape of radius 1
    [
        ("circle", np.pi),
        ("ring", np.pi * (1 - 0.52**2)),
        ("square", (2 * 0.86) ** 2),
        ("triangle", 0.5 * 2 * 1.8),
        ("star", 5 * 0.42 * np.sin(np.pi / 5)),
        ("cross", 2 * (2 * 0.68) - 0.68**2),
    ],
)
def test_shapes_have_the_area_of_the_closed_form(shape: str, area: float) -> None:
    mask = shape_sprite(random_state(1), "red", "plain", shape)[..., 3] / 255
    assert mask.sum() == pytest.approx(22**2 * area, rel=0.02)


def test_shapes_have_holes_where_two_outlines_overlap() -> None:
    masks = {s: shape_sprite(random_state(1), "red", "plain", s)[..., 3] for s in SHAPES}
    assert [s for s in SHAPES if masks[s][22:26, 22:26].max() == 0] == ["ring", "crescent"]
    inside = masks["ring"] < masks["circle"]  # the hole, of 0.52 of the radius
    assert np.hypot(*(inside.nonzero() - np.array([[23.5], [23.5]]))).max() < 0.52 * 22 + 1
    assert len({mask.tobytes() for mask in masks.values()}) == len(SHAPES)


@pytest.mark.parametrize("color", COLORS)
def test_plain_shape_has_its_color(color: str) -> None:
    shown = np.mean(
        [shape_sprite(random_state(3, i), color, "plain", "square")[24, 24, :3] for i in range(40)],
        axis=0,
    )
    others = {name: np.abs(shown / 255 - np.array(tone)).max() for name, tone in COLORS.items()}
    assert min(others, key=lambda name: others[name]) == color and others[color] < 0.06


@pytest.mark.parametrize("texture", TEXTURES)
def test_texture_shows_as_contrast(texture: str) -> None:
    square = [shape_sprite(random_state(4, i), "blue", texture, "square") for i in range(8)]
    spread = np.mean([sprite[10:38, 10:38, :3].std((0, 1)) for sprite in square])
    assert spread == 0 if texture == "plain" else spread > 25


def test_all_characters_differ_in_every_font() -> None:
    outlines = glyph_outlines()
    assert outlines.shape[1:] == (len(GLYPHS), 48, 48) == (36, 48, 48)
    assert len({outline.tobytes() for font in outlines for outline in font}) == len(outlines) * 36
    assert outlines.mean((2, 3)).min() > 0.05 * 255


def test_a_character_has_one_color_and_the_outline_of_a_font() -> None:
    of_fonts = glyph_outlines()[:, GLYPHS.index("Q")]
    shown = [glyph_sprite(random_state(6, index), of_fonts) for index in range(60)]
    assert {sprite[..., 3].tobytes() for sprite in shown} == {o.tobytes() for o in of_fonts}
    assert all((sprite[..., :3] == sprite[0, 0, :3]).all() for sprite in shown)
    assert len({sprite[0, 0, :3].tobytes() for sprite in shown}) == 60


def test_unknown_names() -> None:
    with pytest.raises(KeyError):
        shape_sprite(random_state(1, 1), "mauve", "plain", "circle")
    with pytest.raises(ValueError, match="striped"):
        shape_sprite(random_state(1, 1), "red", "furry", "circle")
    with pytest.raises(ValueError, match="crescent"):
        shape_sprite(random_state(1, 1), "red", "plain", "blob")
