"""Small pictures from a seed: a drawn thing on a background, in some light.

Everything is computed with NumPy, so a picture depends only on its random generator and on the
sprite (a thing on a transparent ground), not on the graphics libraries of the machine. Random
numbers come from :class:`numpy.random.RandomState`, the only generator whose sequence NumPy
promises never to change.

A picture is a ``uint8`` array of shape (32, 32, 3), red-green-blue; a sprite is one of shape
(48, 48, 4), red-green-blue-alpha. Lengths are in pixels, y points down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Picture = npt.NDArray[np.uint8]
Sprite = npt.NDArray[np.uint8]
Random = np.random.RandomState

SIZE = 32
SPRITE_SIZE = 48
_HALF = SPRITE_SIZE // 2  # about the size at which a thing is seen

_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


def random_state(seed: int, *place: int) -> Random:
    """Return the generator of the picture at a place (numbers) in the set drawn from ``seed``."""
    return Random(np.array([seed, *place], dtype=np.uint32))


@dataclass(frozen=True)
class Look:
    """How a set of pictures is drawn. Pairs are limits of a uniform choice for each picture.

    Chances are in 0..1; ``size``, the longer side of the thing, and ``blur`` are in pixels,
    ``rotation`` in degrees, colors and noise in 0..1.
    """

    size: tuple[float, float] = (18.0, 30.0)
    rotation: float = 20.0
    stretch: float = 0.1  # largest change of the ratio of width to height
    background_color: float = 0.4  # saturation: 0 gray, 1 as colorful as can be
    clutter: int = 3  # maximum number of small things on the background
    occlusion: float = 0.1  # chance that a bar hides a part
    cast: tuple[float, float] = (0.0, 0.2)  # strength of colored light, of any color
    exposure: tuple[float, float] = (0.8, 1.15)
    contrast: tuple[float, float] = (0.8, 1.0)
    blur: tuple[float, float] = (0.0, 0.5)
    noise: tuple[float, float] = (0.0, 0.05)


def between(random: Random, limits: tuple[float, float]) -> float:
    return float(random.uniform(*limits))


def _blend(below: Array, above: Array, share: Array) -> Array:
    return below + share[..., None] * (above - below)


def random_color(random: Random, saturation: float) -> Array:
    gray = np.full(3, random.uniform(0.1, 0.95))
    return gray + saturation * (random.uniform(0, 1, 3) - gray)


def _background(random: Random, look: Look) -> Array:
    """Paint a background (32, 32, 3): a color gradient, at times with bands, and small things."""
    first = random_color(random, look.background_color)
    second = first + random.normal(0, 0.15, 3)
    angle = random.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * (_COLUMNS - SIZE / 2) + np.sin(angle) * (_ROWS - SIZE / 2)) / SIZE
    share = np.clip(ramp + 0.5, 0, 1)
    if random.uniform() < 0.25:
        share = share + 0.5 * np.sin(ramp * random.uniform(6, 25))
    canvas = _blend(np.broadcast_to(first, (SIZE, SIZE, 3)), second, share)
    for _ in range(random.randint(0, look.clutter + 1)):
        center = random.uniform(0, SIZE, 2)
        reach = random.uniform(1.0, 4.0, 2)
        from_center = np.hypot((_COLUMNS - center[0]) / reach[0], (_ROWS - center[1]) / reach[1])
        color = random_color(random, 1.2 * look.background_color)
        canvas = _blend(canvas, color, np.clip(2 - 1.5 * from_center, 0, 1))
    return canvas


def _blur(canvas: Array, width: float) -> Array:
    """Smooth by repeated three-tap filters to a standard deviation of about ``width`` pixels."""
    remaining = width**2
    while remaining > 0.02:
        side = min(remaining / 2, 0.25)
        remaining -= 2 * side
        padded = np.pad(canvas, ((1, 1), (0, 0), (0, 0)), mode="edge")
        canvas = (1 - 2 * side) * canvas + side * (padded[:-2] + padded[2:])
        padded = np.pad(canvas, ((0, 0), (1, 1), (0, 0)), mode="edge")
        canvas = (1 - 2 * side) * canvas + side * (padded[:, :-2] + padded[:, 2:])
    return canvas


def _place(sprite: Sprite, center: Array, angle: float, size: Array) -> tuple[Array, Array]:
    """Return the sprite on the picture's pixels, turned and scaled: color (32, 32, 3), opacity."""
    x, y = _COLUMNS - center[0], _ROWS - center[1]
    cosine, sine = np.cos(angle), np.sin(angle)
    column = (cosine * x + sine * y) * (_HALF / size[0]) + (_HALF - 1) / 2
    row = (cosine * y - sine * x) * (_HALF / size[1]) + (_HALF - 1) / 2
    texels = sprite.astype(np.float32) / 255
    texels[..., :3] *= texels[..., 3:]
    padded = np.zeros((_HALF + 2, _HALF + 2, 4), np.float32)
    padded[1:-1, 1:-1] = texels.reshape(_HALF, 2, _HALF, 2, 4).mean((1, 3))
    # what lies outside falls on the transparent border
    column, row = (np.clip(part + 1, 0, _HALF + 0.999) for part in (column, row))
    left, top = column.astype(np.int32), row.astype(np.int32)
    right_share, bottom_share = (column - left)[..., None], (row - top)[..., None]
    upper = padded[top, left] * (1 - right_share) + padded[top, left + 1] * right_share
    lower = padded[top + 1, left] * (1 - right_share) + padded[top + 1, left + 1] * right_share
    pixels = upper * (1 - bottom_share) + lower * bottom_share
    return pixels[..., :3], pixels[..., 3]


def paint(random: Random, sprite: Sprite, look: Look) -> Picture:
    """Paint a sprite into a scene; ``random`` chooses what ``look`` leaves open.

    Args:
        random: generator of this picture, see :func:`random_state`.
        sprite: the thing, (48, 48, 4).
        look: how the set is drawn.

    Returns:
        ``uint8`` picture (32, 32, 3).
    """
    side = between(random, look.size)
    ratio = 1 + random.uniform(-look.stretch, look.stretch)
    size = np.array([side * ratio, side / ratio])
    angle = np.deg2rad(random.uniform(-look.rotation, look.rotation))
    room = max((SIZE - 0.9 * side) / 2, 0.0)
    center = SIZE / 2 + random.uniform(-room, room, 2)
    color, opacity = _place(sprite, center, angle, size)
    canvas: Array = _background(random, look) * (1 - opacity[..., None]) + color
    if random.uniform() < look.occlusion:
        across = random.uniform(0, np.pi)
        through = center + random.uniform(-0.3, 0.3, 2) * side
        away = np.abs(
            np.cos(across) * (_COLUMNS - through[0]) + np.sin(across) * (_ROWS - through[1])
        )
        bar = np.clip(random.uniform(1.0, 2.6) - away, 0, 1)
        canvas = _blend(canvas, random_color(random, look.background_color), bar)
    light = 1 - between(random, look.cast) * (1 - random.uniform(0.1, 1.0, 3))
    canvas = canvas * light * between(random, look.exposure)
    middle = random.uniform(0.35, 0.65)
    canvas = middle + (canvas - middle) * between(random, look.contrast)
    canvas = _blur(canvas, between(random, look.blur))
    canvas = canvas + random.normal(0, 1, canvas.shape) * between(random, look.noise)
    return np.round(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
