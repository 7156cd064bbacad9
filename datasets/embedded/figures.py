"""Sprites that are computed: colored and textured shapes, and letters in any color."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt

from .drawing import SPRITE_SIZE, Array, Random, Sprite

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.97, 0.52, 0.08),
    "yellow": (0.95, 0.88, 0.15),
    "green": (0.12, 0.62, 0.20),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.52, 0.15, 0.68),
    "pink": (0.98, 0.55, 0.75),
    "brown": (0.48, 0.28, 0.12),
}
# The same colors in the muted inks of old prints.
INKS: dict[str, tuple[float, float, float]] = {
    "red": (0.62, 0.13, 0.27),
    "orange": (0.80, 0.37, 0.16),
    "yellow": (0.80, 0.66, 0.18),
    "green": (0.29, 0.46, 0.27),
    "blue": (0.22, 0.42, 0.62),
    "purple": (0.45, 0.30, 0.62),
    "pink": (0.85, 0.52, 0.60),
    "brown": (0.42, 0.34, 0.24),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent")
GLYPHS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")

_SAMPLES = 3  # a pixel of a shape's mask is the mean of that many samples, squared
_RADIUS = SPRITE_SIZE / 2 - 2
_Y, _X = np.mgrid[0:SPRITE_SIZE, 0:SPRITE_SIZE] + 0.5


def _arc(start: float, end: float, pieces: int, radius: float = 1.0) -> Array:
    angles = np.linspace(start, end, pieces)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _outlines(shape: str) -> list[Array]:
    """Return closed outlines of a shape around the origin, about one unit in radius."""
    full = 2 * np.pi
    if shape == "circle":
        return [_arc(0, full, 49)[:-1]]
    if shape == "ring":
        return [_arc(0, full, 49)[:-1], _arc(0, full, 41, 0.52)[:-1]]
    if shape == "square":
        return [0.86 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])]
    if shape == "triangle":
        return [np.array([[0.0, -1.0], [1.0, 0.8], [-1.0, 0.8]])]
    if shape == "star":
        points = _arc(-np.pi / 2, 1.5 * np.pi, 11)[:-1]
        points[1::2] *= 0.42
        return [points]
    if shape == "cross":
        a, b = 0.34, 1.0
        quarter = np.array([[-a, -b], [a, -b], [a, -a]])
        turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
        corners = [quarter]
        for _ in range(3):
            corners.append(corners[-1] @ turn)
        return [np.concatenate(corners)]
    if shape == "heart":
        t = np.linspace(0, full, 49)[:-1]
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return [np.stack([x / 17, (-y - 2) / 16], axis=1)]
    if shape == "crescent":
        outer = _arc(0.30 * np.pi, 1.70 * np.pi, 37)
        inner = _arc(1.60 * np.pi, 0.40 * np.pi, 29, 0.85) + [0.325, 0.0]
        return [np.concatenate([outer, inner]) + [0.2, 0.0]]
    raise ValueError(f"unknown shape '{shape}'; known: {', '.join(SHAPES)}")


@cache
def _mask(shape: str) -> npt.NDArray[np.float64]:
    """Return how much of each pixel (48, 48) a shape covers, by the even-odd rule for holes."""
    n = SPRITE_SIZE * _SAMPLES
    y, x = ((np.mgrid[0:n, 0:n] + 0.5) / _SAMPLES - SPRITE_SIZE / 2) / _RADIUS
    inside = np.zeros((n, n), dtype=bool)
    for outline in _outlines(shape):
        for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            if y0 != y1:
                crosses = (y0 > y) != (y1 > y)
                inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside.reshape(SPRITE_SIZE, _SAMPLES, SPRITE_SIZE, _SAMPLES).mean((1, 3))


def _texture(random: Random, texture: str) -> Array:
    """Return how much of the second color each pixel (48, 48) takes, 0..1."""
    if texture == "plain":
        return np.zeros((SPRITE_SIZE, SPRITE_SIZE))
    period = _RADIUS * random.uniform(0.42, 0.62)
    angle = random.uniform(0, np.pi)
    shift = random.uniform(0, period, size=2)
    u = (np.cos(angle) * _X + np.sin(angle) * _Y + shift[0]) / period
    v = (-np.sin(angle) * _X + np.cos(angle) * _Y + shift[1]) / period
    if texture == "striped":
        amount = 0.5 + period * 0.35 * np.sin(2 * np.pi * u)
    elif texture == "dotted":
        du, dv = u * 0.9 % 1 - 0.5, v * 0.9 % 1 - 0.5
        amount = 0.5 + period * (0.31 - np.sqrt(du**2 + dv**2))
    elif texture == "checkered":
        amount = 0.5 + period * 0.5 * np.sin(np.pi * u) * np.sin(np.pi * v)
    else:
        raise ValueError(f"unknown texture '{texture}'; known: {', '.join(TEXTURES)}")
    return np.clip(amount, 0.0, 1.0)


def _sprite(color: Array, opacity: Array) -> Sprite:
    texels = np.concatenate([np.clip(color, 0, 1), opacity[..., None]], axis=2)
    return np.round(255 * texels).astype(np.uint8)


def shape_sprite(
    random: Random,
    color: str,
    texture: str,
    shape: str,
    colors: Mapping[str, tuple[float, float, float]] = COLORS,
) -> Sprite:
    """Make a shape (48, 48, 4), in a shade of the color and with a pattern of the texture.

    Args:
        random: generator of this picture.
        color, texture, shape: one of each.
        colors: what the names of colors stand for.

    Raises:
        KeyError, ValueError: the color, texture or shape is unknown.
    """
    main = np.array(colors[color]) + random.normal(0, 0.07, 3)
    # The second color of a pattern is a lighter or darker tone, never another hue, so that the
    # color word stays true.
    second = main + 0.72 * (1 - main) if random.uniform() < 0.6 else main * 0.25
    surface = main + _texture(random, texture)[..., None] * (second - main)
    return _sprite(surface, _mask(shape))


def glyph_sprite(random: Random, outlines: npt.NDArray[np.uint8]) -> Sprite:
    """Make a character (48, 48, 4) of any color, in one of the fonts, opacities (n, 48, 48)."""
    outline = outlines[random.randint(len(outlines))]
    color = random.uniform(0, 1, 3)
    return _sprite(np.broadcast_to(color, (*outline.shape, 3)), outline / 255)
