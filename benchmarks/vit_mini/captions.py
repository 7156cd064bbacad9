"""Captions for ViT-Mini's training: class names in templates, parts of names, and descriptions.

What a caption says about its picture is stored with it, as numbers, so that training can tell of
which other pictures of a batch the caption is true, too.
"""

from __future__ import annotations

from random import Random

from datasets.embedded.drawing import COLORS, GLYPHS, SHAPES, TEXTURES
from datasets.embedded.wording import (
    COLOR_PHRASES,
    GLYPH_PHRASES,
    NUMBERS,
    SHAPE_PHRASES,
    TEXTURE_PHRASES,
    glyph_name,
    glyph_sentences,
    shape_name,
    shape_sentences,
)

ANY = -1  # the caption says nothing about this attribute
NONE = -2  # the picture has no such attribute

# What a picture shows or a caption says: (color, texture, shape, medium, glyph), as indices into
# the lists below.
Facts = tuple[int, int, int, int, int]
MEDIA = ("photo", "sketch", "cartoon")

TEMPLATES = (
    "{}.",
    "a {}.",
    "the {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "a picture of the {}.",
    "a small image of a {}.",
    "an image of one {}.",
    "there is a {}.",
    "this is a {}.",
    "a close-up photo of a {}.",
    "a blurry photo of a {}.",
    "a bad photo of the {}.",
    "a good photo of a {}.",
    "here you see the {}.",
    "itap of a {}.",
    "a {} in the middle of the picture.",
    "a {} on some background.",
    "the {} that somebody made.",
    "a photo of the number {}.",
    "a centered photo of the {}.",
)
MEDIUM_TEMPLATES = {
    "photo": ("a photo of a {}.", "a picture of a {}."),
    "sketch": ("a sketch of a {}.", "a pencil drawing of a {}.", "a {} drawn in thin lines."),
    "cartoon": ("a cartoon of a {}.", "a {} with a thick black edge.", "a comic {}."),
}
GLYPH_TEMPLATES = (
    "a written {}.",
    "a {} in thick strokes.",
    "the printed {}.",
    "a handwritten {}.",
    "a {} on paper.",
)
FILLERS = (
    "X X X X a the of in on with and one some this that here there photo picture image view look "
    "see small large good new old bright dark light near far whole clean thing type kind simple "
    "single for from by at it is was are very quite only just shown taken made drawn seen my your "
    "our many nice low high real art color style"
).split()

_COLORS, _GLYPHS = list(COLORS), list(GLYPHS)


def shape_facts(color: str, texture: str, shape: str, medium: str) -> Facts:
    return (
        _COLORS.index(color),
        TEXTURES.index(texture),
        SHAPES.index(shape),
        MEDIA.index(medium),
        NONE,
    )


def glyph_facts(character: str) -> Facts:
    return (NONE, NONE, NONE, NONE, _GLYPHS.index(character))


def caption(random: Random, facts: Facts) -> tuple[str, Facts]:
    """Make a caption that is true of a picture; return it and its facts (all others ``ANY``)."""
    text, told = _glyph_caption(random, facts) if facts[4] >= 0 else _shape_caption(random, facts)
    # Learned prompts will precede a name, so names must be understood at any position.
    if random.random() < 0.35:
        words = random.choices(FILLERS, k=random.randint(1, 17))
        if random.random() < 0.3:
            words = ["X"] * len(words)
        text = " ".join([*words, text])
    return text, told


def _shape_caption(random: Random, facts: Facts) -> tuple[str, Facts]:
    c, t, s, m, _ = facts
    color, texture, shape, medium = _COLORS[c], TEXTURES[t], SHAPES[s], MEDIA[m]
    kind = random.random()
    if kind < 0.5:
        text, told = shape_name(color, texture, shape), (c, t, s)
    elif kind < 0.78:
        text, told = random.choice(
            [
                (f"{color} {shape}", (c, ANY, s)),
                (f"{texture} {shape}", (ANY, t, s)),
                (f"{color} {texture} thing", (c, t, ANY)),
                (shape, (ANY, ANY, s)),
                (f"{texture} thing", (ANY, t, ANY)),
                (f"{color} thing", (c, ANY, ANY)),
                (f"{color} shape", (c, ANY, ANY)),
            ]
        )
    elif kind < 0.88:
        return random.choice(shape_sentences(color, texture, shape)), (c, t, s, ANY, ANY)
    else:
        a, b = random.choice(COLOR_PHRASES[color]), random.choice(TEXTURE_PHRASES[texture])
        d = random.choice(SHAPE_PHRASES[shape])
        text, told = random.choice(
            [
                (f"it is {a}.", (c, ANY, ANY)),
                (f"something {a}.", (c, ANY, ANY)),
                (f"it has {b}.", (ANY, t, ANY)),
                (f"a {shape} with {b}.", (ANY, t, s)),
                (f"you see {d}.", (ANY, ANY, s)),
                (f"the {shape} is {d}.", (ANY, ANY, s)),
                (f"{d}, {a}.", (c, ANY, s)),
                (f"a {color} thing with {b}.", (c, t, ANY)),
            ]
        )
        return text, (*told, ANY, ANY)
    if random.random() < 0.2:
        return random.choice(MEDIUM_TEMPLATES[medium]).format(text), (
            *told,
            m if medium != "photo" else ANY,
            ANY,
        )
    return random.choice(TEMPLATES).format(text), (*told, ANY, ANY)


def _glyph_caption(random: Random, facts: Facts) -> tuple[str, Facts]:
    character = GLYPHS[facts[4]]
    names = [glyph_name(character)]
    if character.isdigit():
        word = NUMBERS[int(character)]
        names += [word, f"digit {word}", f"number {word}", f"number {character}", word]
    else:
        names += [names[0], f"capital letter {character}"]
    told = (ANY, ANY, ANY, ANY, facts[4])
    kind = random.random()
    if kind < 0.12:
        return random.choice(glyph_sentences(character, random.choice(names))), told
    if kind < 0.2:
        return f"you see {random.choice(GLYPH_PHRASES[character])}.", told
    templates = TEMPLATES if random.random() < 0.7 else GLYPH_TEMPLATES
    return random.choice(templates).format(random.choice(names)), told
