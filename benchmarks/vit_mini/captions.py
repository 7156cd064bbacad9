"""Captions for ViT-Mini-2's training: names in templates, words, and sentences.

What a caption says is a set of things of which it is true, so that training can tell of which
other pictures of a batch it is true, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random

import numpy as np
import numpy.typing as npt

from datasets.embedded.figures import COLORS, GLYPHS, SHAPES, TEXTURES
from datasets.embedded.sheets import Concept
from datasets.embedded.wording import (
    concept_sentences,
    glyph_names,
    glyph_sentences,
    kind_of,
    shape_name,
    shape_phrases,
    shape_sentences,
)

TEMPLATES = (
    "{}.",
    "a {}.",
    "the {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "a picture of the {}.",
    "a small image of a {}.",
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
    "a drawing of a {}.",
    "an icon of a {}.",
    "a colorful drawing of the {}.",
    "somebody drew this {} for you.",
)
GLYPH_TEMPLATES = (
    "a written {}.",
    "a {} in thick strokes.",
    "the printed {}.",
    "a photo of the {}.",
    "a {} on paper.",
)


class Captions:
    """Captions of all things: the concepts, then the shapes, then the characters.

    Attributes:
        things: for each thing a concept, a (color, texture, shape), or a character.
        true: which fact is true of which thing, (facts, things). The first facts, as many as there
            are things, say which thing it is.
    """

    def __init__(self, concepts: Sequence[Concept]):
        shapes = list(itertools.product(COLORS, TEXTURES, SHAPES))
        self.things: list[Concept | tuple[str, str, str] | str] = [*concepts, *shapes, *GLYPHS]
        self._facts: dict[object, int] = {}
        truths: list[tuple[int, int]] = []
        for thing in range(len(self.things)):
            self._fact("thing", thing)
        for thing, what in enumerate(self.things):
            truths.append((thing, thing))
            if isinstance(what, Concept):
                told = [("word", word) for word in dict.fromkeys([*what.words, what.name])]
                told.append(("kind", what.subgroup))
                truths += [(self._fact(*fact), thing) for fact in told]
            elif isinstance(what, tuple):
                for kept in itertools.product((True, False), repeat=3):
                    part = tuple(w if k else "" for w, k in zip(what, kept, strict=True))
                    truths.append((self._fact("shape", part), thing))
        self.true: npt.NDArray[np.bool_] = np.zeros((len(self._facts), len(self.things)), bool)
        self.true[tuple(np.array(truths).T)] = True
        # a concept's name may be a word of another, of which it is then true, too
        for thing, what in enumerate(self.things):
            if isinstance(what, Concept):
                self.true[thing] |= self.true[self._fact("word", what.name)]

    def _fact(self, kind: str, what: object) -> int:
        return self._facts.setdefault((kind, what), len(self._facts))

    def caption(self, random: Random, thing: int) -> tuple[str, int]:
        """Make a caption that is true of a thing; return it and its fact."""
        what = self.things[thing]
        if isinstance(what, Concept):
            return self._of_concept(random, what, thing)
        if isinstance(what, tuple):
            return self._of_shape(random, what, thing)
        return self._of_glyph(random, what, thing)

    def _of_concept(self, random: Random, concept: Concept, thing: int) -> tuple[str, int]:
        choice = random.random()
        words = list(concept.words)
        if choice < 0.45 or not words:
            return random.choice(TEMPLATES).format(concept.name), thing
        if choice < 0.60:  # as people tag their pictures
            tags = random.sample(words, min(len(words), random.randint(1, 4)))
            tags.insert(random.randint(0, len(tags)), concept.name)
            text = ", ".join(tags)
            return (text if random.random() < 0.5 else f"a picture of {text}."), thing
        if choice < 0.80:
            word = random.choice(words)
            return random.choice(TEMPLATES).format(word), self._fact("word", word)
        if choice < 0.88:
            kind = kind_of(concept.subgroup)
            return random.choice(TEMPLATES).format(kind), self._fact("kind", concept.subgroup)
        return random.choice(concept_sentences(*concept)), thing

    def _of_shape(self, random: Random, what: tuple[str, str, str], thing: int) -> tuple[str, int]:
        kind = random.random()
        if kind < 0.12:
            return random.choice(shape_sentences(*what)), thing
        if kind < 0.24:
            phrase, part = random.choice(shape_phrases(*what))
            return phrase, self._fact("shape", part)
        color, texture, shape = what
        if kind < 0.70:
            part, text = what, shape_name(*what)
        else:
            part, text = random.choice(
                [
                    ((color, "", shape), f"{color} {shape}"),
                    (("", texture, shape), f"{texture} {shape}"),
                    ((color, texture, ""), f"{color} {texture} thing"),
                    (("", "", shape), shape),
                    (("", texture, ""), f"{texture} thing"),
                    ((color, "", ""), f"{color} thing"),
                ]
            )
        return random.choice(TEMPLATES).format(text), self._fact("shape", part)

    def _of_glyph(self, random: Random, character: str, thing: int) -> tuple[str, int]:
        name = random.choice(glyph_names(character))
        if random.random() < 0.15:
            return random.choice(glyph_sentences(character, name)), thing
        templates = TEMPLATES if random.random() < 0.6 else GLYPH_TEMPLATES
        return random.choice(templates).format(name), thing
