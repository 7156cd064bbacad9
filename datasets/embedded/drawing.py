"""Small pictures drawn from a seed: colored and textured shapes, letters and digits.

Everything is computed with NumPy from outlines made of straight segments, so a picture depends only
on its random generator, not on the fonts or graphics libraries of the machine. Random numbers come
from :class:`numpy.random.RandomState`, the only generator whose sequence NumPy promises never to
change.

A picture is a ``uint8`` array of shape (32, 32, 3), red-green-blue. Lengths are in pixels, y points
down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]
Random = np.random.RandomState

SIZE = 32

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
TEXTURES = ("plain", "striped", "dotted", "checkered")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent")


def random_state(seed: int, *place: int) -> Random:
    """Return the generator of the picture at a place (numbers) in the set drawn from ``seed``."""
    return Random(np.array([seed, *place], dtype=np.uint32))


# -------------------------------------------------------------------------------------------------
# Geometry
# -------------------------------------------------------------------------------------------------

_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE]
_PIXELS: Array = np.stack(
    [_COLUMNS.ravel() + 0.5, _ROWS.ravel() + 0.5], axis=1
)  # (1024, 2), x then y


def _segments(lines: Sequence[Array], closed: bool) -> tuple[Array, Array]:
    """Return start and end points, each (number of segments, 2), of all segments of some lines."""
    if closed:
        return np.concatenate(lines), np.concatenate([np.roll(line, -1, axis=0) for line in lines])
    return np.concatenate([line[:-1] for line in lines]), np.concatenate(
        [line[1:] for line in lines]
    )


def _distance(starts: Array, ends: Array) -> Array:
    """Return the distance (32, 32) of every pixel to the nearest segment."""
    along_x, along_y = (ends - starts).T[..., None]
    offset_x = _PIXELS[:, 0] - starts[:, :1]
    offset_y = _PIXELS[:, 1] - starts[:, 1:]
    length = np.maximum(along_x**2 + along_y**2, 1e-12)
    share = np.clip((offset_x * along_x + offset_y * along_y) / length, 0.0, 1.0)
    squared = (offset_x - share * along_x) ** 2 + (offset_y - share * along_y) ** 2
    return np.sqrt(squared.min(0)).reshape(SIZE, SIZE)


def _inside(starts: Array, ends: Array) -> npt.NDArray[np.bool_]:
    """Tell which pixels (32, 32) are inside closed outlines, by the even-odd rule for holes."""
    x, y = _PIXELS[:, 0][None], _PIXELS[:, 1][None]
    x0, y0, x1, y1 = (
        part[:, None] for part in (starts[:, 0], starts[:, 1], ends[:, 0], ends[:, 1])
    )
    crosses = (y0 > y) != (y1 > y)
    rise = np.where(y1 == y0, 1.0, y1 - y0)
    left = x < (x1 - x0) * (y - y0) / rise + x0
    return ((crosses & left).sum(0) % 2 == 1).reshape(SIZE, SIZE)


def _arc(start: float, end: float, pieces: int, radius: float = 1.0) -> Array:
    angles = np.linspace(start, end, pieces)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _outlines(shape: str) -> list[Array]:
    """Return closed outlines of a shape around the origin, about one unit in radius."""
    full = 2 * np.pi
    if shape == "circle":
        return [_arc(0, full, 25)[:-1]]
    if shape == "ring":
        return [_arc(0, full, 25)[:-1], _arc(0, full, 21, 0.52)[:-1]]
    if shape == "square":
        return [0.86 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])]
    if shape == "triangle":
        return [np.array([[0.0, -1.0], [1.0, 0.8], [-1.0, 0.8]])]
    if shape == "star":
        points = _arc(-np.pi / 2, 1.5 * np.pi, 11)[:-1]
        points[1::2] *= 0.42
        return [1.1 * points]
    if shape == "cross":
        a, b = 0.34, 1.0
        corners = [
            [-a, -b],
            [a, -b],
            [a, -a],
            [b, -a],
            [b, a],
            [a, a],
            [a, b],
            [-a, b],
            [-a, a],
            [-b, a],
            [-b, -a],
        ]
        return [np.array([*corners, [-a, -a]])]
    if shape == "heart":
        t = np.linspace(0, full, 29)[:-1]
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return [np.stack([x / 16, (-y - 2) / 15], axis=1)]
    if shape == "crescent":
        outer = _arc(0.30 * np.pi, 1.70 * np.pi, 19)
        inner = _arc(1.60 * np.pi, 0.40 * np.pi, 15, 0.85) + [0.325, 0.0]
        return [np.concatenate([outer, inner]) + [0.2, 0.0]]
    raise ValueError(f"unknown shape '{shape}'; known: {', '.join(SHAPES)}")


def _between(random: Random, limits: tuple[float, float]) -> float:
    return float(random.uniform(*limits))


# -------------------------------------------------------------------------------------------------
# Shapes
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """How a set of shape pictures is drawn. Pairs are limits of a uniform choice per picture.

    Chances are in 0..1; ``radius`` and ``blur`` are in pixels, ``rotation`` in degrees, colors and
    noise in 0..1.
    """

    radius: tuple[float, float] = (8.0, 13.0)
    rotation: float = 25.0
    color_jitter: float = 0.07
    background_color: float = (
        0.35  # saturation of the background: 0 gray, 1 as colorful as the shapes
    )
    clutter: int = 2  # maximum number of small things around the shape
    occlusion: float = 0.1  # chance that a bar hides a part
    cast: tuple[float, float] = (0.0, 0.15)  # strength of colored light
    warm: float = 0.5  # chance that colored light is warm, otherwise any color
    exposure: tuple[float, float] = (0.8, 1.15)
    contrast: tuple[float, float] = (0.8, 1.0)
    blur: tuple[float, float] = (0.0, 0.6)
    noise: tuple[float, float] = (0.0, 0.06)
    wobble: float = 0.0  # irregularity of the outline, as a share of the radius
    outline: float = 0.2  # chance of a drawn edge
    medium: str = "photo"  # photo | sketch | cartoon | mosaic | silkscreen


def _texture(random: Random, texture: str, radius: float) -> Array:
    """Return how much of the second color each pixel (32, 32) takes, 0..1."""
    if texture == "plain":
        return np.zeros((SIZE, SIZE))
    period = radius * random.uniform(0.42, 0.62)
    angle = random.uniform(0, np.pi)
    shift = random.uniform(0, period, size=2)
    x, y = _PIXELS[:, 0], _PIXELS[:, 1]
    u = (np.cos(angle) * x + np.sin(angle) * y + shift[0]) / period
    v = (-np.sin(angle) * x + np.cos(angle) * y + shift[1]) / period
    if texture == "striped":
        amount = 0.5 + period * 0.35 * np.sin(2 * np.pi * u)
    elif texture == "dotted":
        du, dv = u * 0.9 % 1 - 0.5, v * 0.9 % 1 - 0.5
        amount = 0.5 + period * (0.31 - np.sqrt(du**2 + dv**2))
    elif texture == "checkered":
        amount = 0.5 + period * 0.5 * np.sin(np.pi * u) * np.sin(np.pi * v)
    else:
        raise ValueError(f"unknown texture '{texture}'; known: {', '.join(TEXTURES)}")
    return np.clip(amount, 0.0, 1.0).reshape(SIZE, SIZE)


def _blend(below: Array, above: Array, share: Array) -> Array:
    return below + share[..., None] * (above - below)


def _random_color(random: Random, saturation: float) -> Array:
    gray = np.full(3, random.uniform(0.1, 0.95))
    return gray + saturation * (random.uniform(0, 1, 3) - gray)


def _background(random: Random, look: Look) -> Array:
    """Paint a background (32, 32, 3): a color gradient, at times with bands, and small things."""
    first = _random_color(random, look.background_color)
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
        canvas = _blend(
            canvas,
            _random_color(random, 1.2 * look.background_color),
            np.clip(2 - 1.5 * from_center, 0, 1),
        )
    return canvas


def _blur(canvas: Array, width: float) -> Array:
    """Smooth by repeated three-tap filters to a standard deviation of about ``width`` pixels."""
    remaining = width**2
    while remaining > 0.02:
        side = min(remaining / 2, 0.25)
        remaining -= 2 * side
        for axis in (0, 1):
            pad = [(1, 1) if a == axis else (0, 0) for a in range(canvas.ndim)]
            padded = np.pad(canvas, pad, mode="edge")
            low, high = (
                np.take(padded, range(SIZE), axis),
                np.take(padded, range(2, SIZE + 2), axis),
            )
            canvas = (1 - 2 * side) * canvas + side * (low + high)
    return canvas


def _finish(canvas: Array) -> Picture:
    return np.round(255 * np.clip(canvas, 0, 1)).astype(np.uint8)


def draw_shape(random: Random, color: str, texture: str, shape: str, look: Look) -> Picture:
    """Draw one shape; ``random`` chooses what the class leaves open, within ``look``.

    Args:
        random: generator of this picture, see :func:`random_state`.
        color, texture, shape: one of ``COLORS``, ``TEXTURES``, ``SHAPES``.
        look: how the set is drawn.

    Returns:
        ``uint8`` picture (32, 32, 3).

    Raises:
        KeyError, ValueError: the color, texture or shape is unknown.
    """
    radius = _between(random, look.radius)
    stretch = random.uniform(0.9, 1.1)
    angle = np.deg2rad(random.uniform(-look.rotation, look.rotation))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    room = max(SIZE / 2 - 0.85 * radius, 0.0)
    center = SIZE / 2 + random.uniform(-room, room, 2)
    outlines = []
    for outline in _outlines(shape):
        irregular = outline + look.wobble * random.normal(0, 1, outline.shape)
        outlines.append((irregular * [radius * stretch, radius / stretch]) @ turn + center)
    starts, ends = _segments(outlines, closed=True)
    edge = _distance(starts, ends)
    signed = np.where(_inside(starts, ends), -edge, edge)
    filled = np.clip(0.5 - signed, 0, 1)

    main = np.array(COLORS[color]) + random.normal(0, look.color_jitter, 3)
    # The second color of a pattern is a lighter or darker tone, never another hue, so that the
    # color word stays true.
    second = main + 0.72 * (1 - main) if random.uniform() < 0.6 else main * 0.25
    pattern = _texture(random, texture, radius)

    if look.medium == "sketch":
        paper = np.full((SIZE, SIZE, 3), random.uniform(0.85, 1.0)) + random.normal(
            0, 0.015, (SIZE, SIZE, 1)
        )
        pencil = np.clip(main, 0, 1) * random.uniform(0.6, 0.9)
        strength = random.uniform(0.7, 1.0)
        line = np.clip(random.uniform(1.0, 1.5) - edge, 0, 1)
        canvas = _blend(paper, pencil, 0.6 * filled * pattern * strength)
        canvas = _blend(canvas, pencil, line * strength)
    else:
        background = _background(random, look)
        if look.medium == "silkscreen":
            background = np.round(background * 2) / 2
        light_angle = random.uniform(0, 2 * np.pi)
        light = np.cos(light_angle) * (_COLUMNS - center[0]) + np.sin(light_angle) * (
            _ROWS - center[1]
        )
        shade = 1 + (0.25 * random.uniform(0, 1)) * light / radius
        if look.medium in ("cartoon", "silkscreen"):
            shade = np.ones_like(shade)
        surface = _blend(np.broadcast_to(main, (SIZE, SIZE, 3)), second, pattern) * shade[..., None]
        canvas = _blend(background, surface, filled)
        if look.medium == "cartoon" or random.uniform() < look.outline:
            tone = (
                np.zeros(3) if look.medium == "cartoon" else np.full(3, float(random.randint(0, 2)))
            )
            canvas = _blend(canvas, tone, np.clip(random.uniform(0.7, 1.4) - edge, 0, 1))
        if random.uniform() < look.occlusion:
            across = random.uniform(0, np.pi)
            through = center + random.uniform(-0.6, 0.6, 2) * radius
            away = np.abs(
                np.cos(across) * (_COLUMNS - through[0]) + np.sin(across) * (_ROWS - through[1])
            )
            bar = np.clip(random.uniform(1.0, 2.6) - away, 0, 1)
            canvas = _blend(canvas, _random_color(random, look.background_color), bar)

    if look.medium == "mosaic":
        tile = 2
        coarse = canvas.reshape(SIZE // tile, tile, SIZE // tile, tile, 3).mean((1, 3))
        canvas = np.repeat(np.repeat(coarse, tile, 0), tile, 1)
        canvas = canvas * random.uniform(0.85, 1.1, (SIZE // tile, SIZE // tile, 1)).repeat(
            tile, 0
        ).repeat(tile, 1)
    cast = _between(random, look.cast)
    tint = (
        np.array([1.0, 0.72, 0.30]) if random.uniform() < look.warm else random.uniform(0.2, 1.0, 3)
    )
    canvas = canvas * (1 - cast + cast * tint) * _between(random, look.exposure)
    middle = random.uniform(0.35, 0.65)
    canvas = middle + (canvas - middle) * _between(random, look.contrast)
    canvas = _blur(canvas, _between(random, look.blur))
    canvas = canvas + random.normal(0, 1, canvas.shape) * _between(random, look.noise)
    return _finish(canvas)


# -------------------------------------------------------------------------------------------------
# Letters and digits
# -------------------------------------------------------------------------------------------------

# Strokes are separated by '|', points by spaces; x points right and y up, in a unit square. A
# stroke that begins with '~' passes smoothly through its points. Several forms of one character
# are separated by ';'.
_STROKES: dict[str, str] = {
    "A": "0,0 .5,1 1,0 | .2,.38 .8,.38 ; 0,0 .1,.7 .35,1 .65,1 .9,.7 1,0 | .05,.4 .95,.4",
    "B": "0,0 0,1 |~ 0,1 .6,1 .85,.78 .6,.54 0,.54 |~ 0,.54 .7,.54 1,.28 .7,0 0,0",
    "C": "~ 1,.82 .75,.98 .4,.98 .08,.75 0,.5 .08,.25 .4,.02 .75,.02 1,.18",
    "D": "0,0 0,1 |~ 0,1 .5,1 .9,.8 1,.5 .9,.2 .5,0 0,0",
    "E": "1,1 0,1 0,0 1,0 | 0,.52 .8,.52",
    "F": "1,1 0,1 0,0 | 0,.52 .8,.52",
    "G": "~ 1,.82 .75,.98 .4,.98 .08,.75 0,.5 .08,.25 .4,.02 .8,.04 1,.22 | 1,.22 1,.46 .55,.46",
    "H": "0,0 0,1 | 1,0 1,1 | 0,.52 1,.52",
    "I": ".5,0 .5,1 | .2,1 .8,1 | .2,0 .8,0 ; .5,0 .5,1",
    "J": ".8,1 .8,.3 |~ .8,.3 .68,.06 .4,0 .14,.08 .04,.3 ;"
    ".4,1 1,1 | .75,1 .75,.3 |~ .75,.3 .6,.04 .35,0 .1,.1 .02,.28",
    "K": "0,0 0,1 | .95,1 0,.4 | .3,.58 1,0",
    "L": "0,1 0,0 .9,0",
    "M": "0,0 0,1 .5,.35 1,1 1,0 ; 0,0 .15,1 .5,.25 .85,1 1,0",
    "N": "0,0 0,1 1,0 1,1",
    "O": "~ .5,1 .15,.88 0,.5 .15,.12 .5,0 .85,.12 1,.5 .85,.88 .5,1",
    "P": "0,0 0,1 |~ 0,1 .65,1 1,.75 .65,.47 0,.47",
    "Q": "~ .5,1 .15,.88 0,.5 .15,.12 .5,0 .85,.12 1,.5 .85,.88 .5,1 | .58,.32 1,-.08",
    "R": "0,0 0,1 |~ 0,1 .65,1 .95,.76 .65,.5 0,.5 | .45,.5 1,0",
    "S": "~ .95,.85 .7,1 .3,1 .05,.78 .25,.56 .7,.46 .97,.24 .7,0 .3,0 .03,.16",
    "T": "0,1 1,1 | .5,1 .5,0",
    "U": "0,1 0,.32 |~ 0,.32 .14,.06 .5,0 .86,.06 1,.32 | 1,.32 1,1",
    "V": "0,1 .5,0 1,1",
    "W": "0,1 .25,0 .5,.72 .75,0 1,1",
    "X": "0,0 1,1 | 0,1 1,0",
    "Y": "0,1 .5,.5 1,1 | .5,.5 .5,0 ; 0,1 .5,.46 | 1,1 .25,0",
    "Z": "0,1 1,1 0,0 1,0 ; 0,1 1,1 0,0 1,0 | .25,.5 .75,.5",
    "0": "~ .5,1 .22,.88 .12,.5 .22,.12 .5,0 .78,.12 .88,.5 .78,.88 .5,1 ;"
    "~ .5,1 .22,.88 .12,.5 .22,.12 .5,0 .78,.12 .88,.5 .78,.88 .5,1 | .3,.2 .7,.8",
    "1": ".15,.75 .55,1 .55,0 ; .5,1 .5,0 ; .2,.75 .5,1 .5,0 | .2,0 .8,0 ; .3,.6 .6,1 .5,0",
    "2": "~ .05,.75 .2,.95 .5,1 .85,.9 .9,.68 .7,.42 0,0 | 0,0 1,0 ;"
    "~ .1,.8 .4,1 .8,.9 .8,.6 .4,.2 .05,.02 .3,.12 .6,0 1,.08",
    "3": "~ .05,.86 .4,1 .8,.92 .85,.7 .65,.54 .35,.52 |"
    "~ .35,.52 .75,.48 .95,.26 .75,.03 .35,0 .02,.14 ;"
    "0,1 .9,1 .4,.58 |~ .4,.58 .8,.52 .95,.28 .75,.04 .4,0 .02,.12",
    "4": ".7,0 .7,1 0,.3 1,.3 ; .15,1 .05,.45 1,.45 | .75,.9 .65,0 ;"
    ".6,1 .1,.4 .95,.4 | .7,.65 .55,0",
    "5": ".9,1 .15,1 .1,.55 |~ .1,.55 .5,.64 .88,.5 .95,.26 .75,.03 .4,0 .03,.12 ;"
    ".95,.95 .3,1 .2,.56 |~ .2,.56 .6,.6 .8,.35 .6,.05 .1,0",
    "6": "~ .85,.92 .5,1 .15,.75 .03,.35 .2,.05 .5,0 .85,.1 .95,.32 .8,.54 .5,.6 .18,.5 .04,.3 ;"
    "~ .6,1 .25,.7 .08,.3 .25,.03 .6,0 .85,.2 .7,.45 .4,.45 .12,.25",
    "7": "0,1 1,1 .4,0 ; 0,1 1,1 .4,0 | .35,.5 .9,.5 ;"
    ".05,.85 .1,1 .95,1 .5,0 ;~ 0,.9 .4,1 .9,.98 .7,.5 .5,0",
    "8": "~ .5,.54 .15,.68 .14,.9 .5,1 .86,.9 .85,.68 .5,.54 "
    ".08,.4 .04,.12 .5,0 .96,.12 .92,.4 .5,.54 ;"
    "~ .85,.9 .4,1 .2,.78 .5,.54 .8,.25 .55,0 .25,.1 .3,.35 .6,.6 .85,.9",
    "9": "~ .96,.66 .8,.46 .5,.4 .15,.48 .05,.7 .2,.94 .5,1"
    " .82,.92 .96,.66 .92,.3 .7,.06 .4,0 .12,.08 ;"
    "~ .9,.7 .6,.45 .2,.5 .1,.8 .45,1 .85,.9 .9,.7 | .9,.85 .8,0",
}
GLYPHS = tuple(_STROKES)


def _smooth(points: Array, pieces: int = 4) -> Array:
    """Return a Catmull-Rom curve through the points."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    a, b, c, d = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = (np.arange(pieces) / pieces)[None, :, None]
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def _parse(strokes: str) -> list[tuple[bool, Array]]:
    lines = []
    for stroke in strokes.split("|"):
        words = stroke.replace("~", " ").split()
        points = np.array([[float(number) for number in word.split(",")] for word in words])
        lines.append(("~" in stroke, points))
    return lines


_FORMS = {
    character: [_parse(form) for form in forms.split(";")] for character, forms in _STROKES.items()
}


@dataclass(frozen=True)
class Hand:
    """How a set of characters is written. Pairs are limits of a uniform choice per picture.

    ``height`` and ``blur`` are in pixels, ``width`` is relative to the height, ``thickness`` to the
    size.
    """

    height: tuple[float, float] = (15.0, 27.0)
    width: tuple[float, float] = (0.5, 0.95)
    thickness: tuple[float, float] = (0.05, 0.2)
    rotation: float = 10.0  # degrees
    slant: float = 0.25
    shake: tuple[float, float] = (0.0, 0.05)  # displacement of the control points
    serif: float = 0.3  # chance of bars at the ends of strokes
    curvy: float = 0.15  # chance that straight strokes become smooth
    outlined: float = 0.1  # chance of hollow letters
    saturation: float = 0.6
    least_contrast: float = 0.3
    clutter: int = 1
    occlusion: float = 0.05
    blur: tuple[float, float] = (0.0, 0.8)
    noise: tuple[float, float] = (0.0, 0.07)
    coarse: float = 0.1  # chance of a resolution of 8 x 8 to 16 x 16, smoothly enlarged


def _shrink_and_enlarge(canvas: Array, cells: int) -> Array:
    """Average over a grid of up to 32 x 32 cells and interpolate linearly back to 32 x 32."""
    edges = np.linspace(0, SIZE, cells + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(SIZE)[None]
    covered = np.clip(np.minimum(pixels + 1, high) - np.maximum(pixels, low), 0, None)
    average = covered / covered.sum(1, keepdims=True)
    position = np.clip((np.arange(SIZE) + 0.5) * cells / SIZE - 0.5, 0, cells - 1)
    spread = np.clip(1 - np.abs(position[:, None] - np.arange(cells)[None]), 0, None)
    matrix = spread @ average
    return (matrix @ canvas.transpose(2, 0, 1) @ matrix.T).transpose(1, 2, 0)


def draw_glyph(random: Random, character: str, hand: Hand) -> Picture:
    """Write one capital letter or digit; ``random`` chooses the rest, within ``hand``.

    Args:
        random: generator of this picture, see :func:`random_state`.
        character: one of ``GLYPHS``.
        hand: how the set is written.

    Returns:
        ``uint8`` picture (32, 32, 3).

    Raises:
        KeyError: the character is unknown.
    """
    forms = _FORMS[character]
    form = forms[random.randint(len(forms))]
    height = _between(random, hand.height)
    width = height * _between(random, hand.width)
    thickness = max(height * _between(random, hand.thickness), 1.0)
    shake = _between(random, hand.shake)
    curvy = random.uniform() < hand.curvy
    serif = 0.5 * random.uniform(0.15, 0.35) if random.uniform() < hand.serif else 0.0
    slant = random.uniform(-hand.slant, hand.slant)
    taper = random.uniform(-0.15, 0.15)
    angle = np.deg2rad(random.uniform(-hand.rotation, hand.rotation))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    room = np.maximum(SIZE / 2 - 0.5 * np.array([width, height]) - 0.5 * thickness, 0.5)
    center = SIZE / 2 + random.uniform(-1, 1, 2) * room

    lines = []
    for smooth, points in form:
        drawn = points + shake * random.normal(0, 1, points.shape)
        if smooth or (curvy and len(points) > 2):
            drawn = _smooth(drawn)
        lines.append(drawn)
        if serif and not smooth:
            for end in (drawn[0], drawn[-1]):
                lines.append(np.array([end - [serif, 0], end + [serif, 0]]))
    placed = []
    for line in lines:
        x, y = line[:, 0] - 0.5, 0.5 - line[:, 1]
        x = x * (1 + taper * y) - slant * y
        placed.append(np.stack([x * width, y * height], axis=1) @ turn + center)
    away = _distance(*_segments(placed, closed=False))
    ink = np.clip(0.5 + thickness / 2 - away, 0, 1)
    if thickness > 3.5 and random.uniform() < hand.outlined:
        ink = ink * (1 - np.clip(thickness / 2 - 0.8 - away, 0, 1))

    look = Look(background_color=hand.saturation, clutter=hand.clutter)
    background = _background(random, look)
    paint = _random_color(random, hand.saturation)
    while abs((paint - background.mean((0, 1))).mean()) < hand.least_contrast:
        paint = random.uniform(-0.1, 1.1) + hand.saturation * random.uniform(-0.5, 0.5, 3)
    canvas = _blend(background, paint, ink)
    if random.uniform() < hand.occlusion:
        row = random.uniform(6, SIZE - 6)
        bar = np.clip(
            random.uniform(0.8, 1.8)
            - np.abs(_ROWS - row + random.uniform(-0.5, 0.5) * (_COLUMNS - 16)),
            0,
            1,
        )
        canvas = _blend(canvas, _random_color(random, hand.saturation), bar)
    if random.uniform() < hand.coarse:
        canvas = _shrink_and_enlarge(canvas, random.randint(8, 17))
    canvas = _blur(canvas, _between(random, hand.blur))
    canvas = canvas + random.normal(0, 1, canvas.shape) * _between(random, hand.noise)
    return _finish(canvas)
