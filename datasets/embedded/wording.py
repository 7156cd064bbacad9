"""Words for the drawn pictures: class names, phrases about them, and description files.

The captions on which ViT-Mini-2 was trained are composed of the same phrases. The description files
in ``datasets/descriptions`` are written by ``python -m datasets.embedded.wording``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from .figures import COLORS, GLYPHS, SHAPES, TEXTURES
from .sheets import concepts

COLOR_PHRASES: dict[str, tuple[str, ...]] = {
    "red": ("red like a tomato", "as red as fire"),
    "orange": ("orange like a carrot", "as orange as a pumpkin"),
    "yellow": ("yellow like a lemon", "as yellow as the sun"),
    "green": ("green like grass", "as green as a leaf"),
    "blue": ("blue like the sea", "as blue as the evening sky"),
    "purple": ("purple like a plum", "as purple as grapes"),
    "pink": ("pink like a rose", "as pink as bubble gum"),
    "brown": ("brown like chocolate", "as brown as earth"),
}
TEXTURE_PHRASES: dict[str, tuple[str, ...]] = {
    "plain": ("one even color all over", "a smooth surface without any pattern"),
    "striped": ("parallel stripes across it", "straight bands that are light and dark in turn"),
    "dotted": ("small round dots all over", "many spots on its surface"),
    "checkered": (
        "a pattern like a chessboard",
        "small fields that alternate between light and dark",
    ),
}
SHAPE_PHRASES: dict[str, tuple[str, ...]] = {
    "circle": ("a full round disc", "a round figure without corners"),
    "square": ("a box with four equal sides", "a figure with four right angles"),
    "triangle": ("a figure with three sides", "a wedge with three corners"),
    "star": ("a figure with five sharp points", "rays that point outward"),
    "cross": ("two bars that cross in the middle", "a plus sign with four arms"),
    "heart": ("two round lobes above one point", "the sign of love"),
    "ring": ("a round band with a hole in the middle", "a hoop like a doughnut"),
    "crescent": ("a thin curved moon", "a sickle with two tips"),
}
GLYPH_PHRASES: dict[str, tuple[str, ...]] = {
    "A": ("two slanted strokes that meet at the top", "a bar between two legs"),
    "B": ("a tall stroke with two bows on its right", "two bellies, one above the other"),
    "C": ("an open curve with its gap on the right", "a round bow that does not close"),
    "D": ("a tall stroke with one big bow on its right", "a half round figure, flat on the left"),
    "E": ("a tall stroke with three arms to the right", "a comb with three teeth"),
    "F": ("a tall stroke with two arms to the right", "two arms at the top and a bare foot"),
    "G": ("an open curve with a short bar inside", "a round bow that ends in a hook"),
    "H": ("two tall strokes joined by a bar", "a ladder with one rung"),
    "I": ("one upright stroke", "a single column"),
    "J": ("a tall stroke that bends to the left at its foot", "a fishing hook"),
    "K": (
        "a tall stroke with one arm up and one leg down",
        "two slanted strokes that lean on a wall",
    ),
    "L": ("a tall stroke with one foot to the right", "a corner at the bottom left"),
    "M": ("two tall strokes with a valley between them", "two peaks side by side"),
    "N": ("two tall strokes joined by a diagonal", "a zigzag of three strokes"),
    "O": ("one closed round curve", "a wide round loop"),
    "P": ("a tall stroke with one bow at its top right", "a flag on a pole"),
    "Q": ("a round loop with a small tail", "a closed curve with a stroke at the bottom right"),
    "R": ("a bow at the top right and a slanted leg", "a flag on a pole with one leg out"),
    "S": ("a double curve like a snake", "one bow to the left above one bow to the right"),
    "T": ("a bar on top of one upright stroke", "a roof on a single post"),
    "U": ("a cup that is open at the top", "two tall strokes joined by a curve below"),
    "V": ("two slanted strokes that meet at the bottom", "a valley with a sharp foot"),
    "W": ("two valleys side by side", "four slanted strokes like a wave"),
    "X": ("two diagonals that cross", "four arms that meet in the middle"),
    "Y": ("two arms that meet on one post", "a fork with a single stem"),
    "Z": ("two level bars joined by a diagonal", "a sharp zigzag from left to right"),
    "0": ("a tall closed loop", "a narrow oval with nothing inside"),
    "1": ("one upright stroke with a small flag", "a single thin post"),
    "2": ("a bow at the top and a flat foot", "a swan with a curved neck"),
    "3": ("two bows that open to the left", "two curves, one above the other"),
    "4": ("an open corner crossed by an upright stroke", "a chair turned upside down"),
    "5": ("a flat top with a belly below", "a bar, a short neck and a round bow"),
    "6": ("a loop at the bottom with a stem that rises", "a curve that closes below"),
    "7": ("a level top with one slanted leg", "a bar and a long diagonal down"),
    "8": ("two closed loops, one above the other", "a snowman of two rings"),
    "9": ("a loop at the top with a stem that falls", "a curve that closes above"),
}
# What Unicode's groups of concepts are, and the parts of its subgroups' names: first parts that say
# what their concepts are, and second parts that say it alone.
GROUPS = {
    "smileys-emotion": "faces and feelings",
    "people-body": "people",
    "animals-nature": "animals and plants",
    "food-drink": "food and drinks",
    "travel-places": "places and vehicles",
    "activities": "things to do",
    "objects": "objects",
}
FAMILIES = ("animal", "food", "plant", "place", "transport", "person", "face")
KINDS = (
    "mammal",
    "bird",
    "amphibian",
    "reptile",
    "bug",
    "fruit",
    "vegetable",
    "flower",
    "building",
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def shape_name(color: str, texture: str, shape: str) -> str:
    """Name a class of shapes, such as "red striped circle"."""
    return f"{color} {texture} {shape}"


def glyph_name(character: str) -> str:
    """Name a character, such as "letter A" or "digit 7"."""
    return f"digit {character}" if character.isdigit() else f"letter {character}"


def shape_sentences(color: str, texture: str, shape: str) -> list[str]:
    """Return sentences about one class of shapes, all true of every picture of it."""
    name = shape_name(color, texture, shape)
    color_phrases, texture_phrases = COLOR_PHRASES[color], TEXTURE_PHRASES[texture]
    shape_phrases = SHAPE_PHRASES[shape]
    return [
        f"A {name} is {shape_phrases[0]}, it is {color_phrases[0]} and has {texture_phrases[0]}.",
        f"A picture of a {name}: {shape_phrases[1]}, {color_phrases[1]}, "
        f"with {texture_phrases[1]}.",
        f"You see {texture_phrases[0]} on a {color} {shape}, a {name}.",
        f"The {shape} is {color_phrases[1]}, and it has {texture_phrases[1]}.",
        f"There is {shape_phrases[0]}, a {name}.",
        f"With {texture_phrases[0]}, and {color_phrases[0]}, this is a {name}.",
    ]


def shape_phrases(color: str, texture: str, shape: str) -> list[tuple[str, tuple[str, str, str]]]:
    """Return phrases and what each says of a shape: the words, "" for what it leaves open."""
    pairs = []
    for a, b, d in itertools.product(
        COLOR_PHRASES[color], TEXTURE_PHRASES[texture], SHAPE_PHRASES[shape]
    ):
        pairs += [
            (f"it is {a}.", (color, "", "")),
            (f"it has {b}.", ("", texture, "")),
            (f"a {shape} with {b}.", ("", texture, shape)),
            (f"you see {d}.", ("", "", shape)),
            (f"{d}, {a}.", (color, "", shape)),
            (f"a {color} thing with {b}.", (color, texture, "")),
        ]
    return pairs


def glyph_names(character: str) -> list[str]:
    """List what people call a character."""
    if character.isdigit():
        word = NUMBERS[int(character)]
        return [f"digit {character}", f"number {character}", f"number {word}", word]
    return [f"letter {character}", f"capital letter {character}"]


def kind_of(subgroup: str) -> str:
    """Say what the concepts of a subgroup are: "smiling face" for "face-smiling"."""
    family, _, kind = subgroup.partition("-")
    if not kind or kind == "other":
        return family
    if family == "other" or kind in KINDS:
        return kind
    return f"{kind} {family}" if family in FAMILIES else subgroup.replace("-", " ")


def concept_sentences(name: str, words: Sequence[str], group: str, subgroup: str) -> list[str]:
    """Return sentences about something that people drew, from the words that go with it."""
    kind = kind_of(subgroup)
    about = [word for word in words if word not in name] or [kind]
    return [
        f"{name}, a kind of {kind}.",
        f"This is called {name}, think of {about[0]} and {about[-1]}.",
        f"Among {GROUPS[group]}: {name}.",
        f"A picture of {', '.join(about[:4])}: {name}.",
        f"A drawing of {name}, which has to do with {' and '.join(about[:3])}.",
    ]


def glyph_sentences(character: str, name: str) -> list[str]:
    """Return sentences that describe one letter or digit, which they call ``name``."""
    first, second = GLYPH_PHRASES[character]
    return [
        f"The {name} is {first}.",
        f"A written {name} looks like {second}.",
        f"You see {first}, this is the {name}.",
        f"There is {second}, a {name}.",
        f"A picture of the {name}: {first}, {second}.",
    ]


def shape_classes() -> list[tuple[str, str, str]]:
    """Return the classes (color, texture, shape) of Shapes in label order.

    Each half of the classes has two colors and three shapes that the other does not have. No two
    classes of a half share more than one of color, texture and shape.
    """
    colors = list(COLORS)
    return [
        (of_half[(s + t) % 6], texture, shape)
        for of_half, shapes in ((colors[:6], SHAPES[:5]), (colors[2:], SHAPES[3:]))
        for s, shape in enumerate(shapes)
        for t, texture in enumerate(TEXTURES)
        if s != t
    ]


def glyph_classes() -> list[str]:
    """Return the 36 characters of Glyphs in label order.

    Every other letter and the even digits come first, so that both halves are alike.
    """
    return [*GLYPHS[0:26:2], *GLYPHS[26::2], *GLYPHS[1:26:2], *GLYPHS[27::2]]


def descriptions() -> dict[str, dict[str, list[str]]]:
    """Return {class name: sentences} for every embedded dataset."""
    shapes = {shape_name(*classes): shape_sentences(*classes) for classes in shape_classes()}
    glyphs = {glyph_name(c): glyph_sentences(c, glyph_name(c)) for c in glyph_classes()}
    digits = {
        word: glyph_sentences(str(value), f"number {word}") for value, word in enumerate(NUMBERS)
    }
    drawn = {
        set_name: {concept.name: concept_sentences(*concept) for concept in classes}
        for set_name, classes in concepts().items()
    }
    emoji_sets = ("Emoji", "EmojiV2", "EmojiSketch", "EmojiNoise", "EmojiRendition")
    return {
        **{name: drawn["emoji"] for name in emoji_sets},
        **{name: drawn[name.lower()] for name in ("Animals", "Food", "Faces")},
        **{"Shapes": shapes, "Glyphs": glyphs, "Digits": digits},
    }


def main() -> None:
    folder = Path(__file__).parents[1] / "descriptions"
    folder.mkdir(exist_ok=True)
    for name, sentences in descriptions().items():
        (folder / f"{name}.json").write_text(
            json.dumps(sentences, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
