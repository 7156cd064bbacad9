"""Templates, and sentences about the classes: matching of class names, cutting."""

from __future__ import annotations

import os.path as osp
import re
import unicodedata
from collections.abc import Mapping, Sequence

from clip import tokenize
from dassl.utils import UserError, log
from dassl.utils.descriptions import read_descriptions

DESCRIPTIONS = "datasets/descriptions/{dataset}.json"  # where methods look for them


def of_imagenet(dataset: str) -> list[str]:
    """Return the seven templates that CLIP's authors recommend for ImageNet and its versions.

    Args:
        dataset: name of a dataset; one of other images has none of these.
    """
    if "ImageNet" not in dataset:
        return []
    from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

    return [template("{}") for template in SIMPLE_IMAGENET_TEMPLATES]


def descriptions_of(path: str, class_names: Sequence[str], key: str, other: str) -> list[list[str]]:
    """Choose the sentences of each class from a file {class name: [sentences]}.

    Args:
        path: of the file.
        class_names: K names.
        key: the config key that names the file, for error messages.
        other: what else the user may do, for error messages.

    Raises:
        UserError: no such file, a file of another form, or as ``chosen_sentences``.
    """
    if not osp.isfile(path):
        raise UserError(
            f"{key}: expected an existing file, got '{path}'; fetch the public ones with "
            "`python -m datasets.prepare descriptions`, write {class name: [sentences]} there, or "
            f"{other}"
        )
    try:
        sentences = read_descriptions(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    return chosen_sentences(sentences, class_names, f"{key}: '{path}'", f"correct it or {other}")


def chosen_sentences(
    sentences: Mapping[str, Sequence[str]], class_names: Sequence[str], place: str, other: str
) -> list[list[str]]:
    """Choose the sentences of each class.

    A class has the sentences of its own name; where that very name is missing, those of the one
    name that differs only in case, underscores, hyphens, spaces and accents.

    Args:
        sentences: by class name.
        class_names: K names.
        place: where the sentences come from, for error messages.
        other: what the user may do, for error messages.

    Raises:
        UserError: classes without sentences or with several names to choose from, all of which the
            message names.
    """
    by_spelling: dict[str, list[str]] = {}
    for name, texts in sentences.items():
        if texts:
            by_spelling.setdefault(plain_spelling(name), []).append(name)
    chosen, missing, several = [], [], []
    for class_name in class_names:
        names = by_spelling.get(plain_spelling(class_name), [])
        exact = [name for name in names if name.replace("_", " ") == class_name.replace("_", " ")]
        names = exact or names
        if len(names) == 1:
            chosen.append(list(sentences[names[0]]))
        elif names:
            several.append(f"{class_name!r} ({' or '.join(map(repr, names))})")
        else:
            missing.append(repr(class_name))
    problems = [f"has no sentences for {', '.join(missing)}"] if missing else []
    problems += [f"has several names for {', '.join(several)}"] if several else []
    if problems:
        raise UserError(f"{place} {' and '.join(problems)}; {other}")
    return chosen


def plain_spelling(name: str) -> str:
    """Drop case, accents, and kinds of blanks: "Gâteau_au-Riz" is "gateau au riz"."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.split(r"[\s_-]+", letters)).strip()


def cut_to_context(texts: Sequence[Sequence[str]], context_length: int) -> list[list[str]]:
    """Return the texts without the last words of those that are longer than the context.

    A few of the public descriptions ramble on, which should not end a run; a log line counts them.
    """
    cut = 0

    def fitting(text: str) -> str:
        nonlocal cut
        words = text.split()
        while len(words) > 1:
            try:
                tokenize(" ".join(words), context_length)
                break
            except ValueError:
                words.pop()
        cut += len(words) < len(text.split())
        return " ".join(words)

    short = [[fitting(text) for text in class_texts] for class_texts in texts]
    if cut:
        log.info(f"Descriptions cut to the {context_length} tokens that the model takes: {cut}")
    return short
