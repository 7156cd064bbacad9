"""Single pictures and tokens: confusions, confident mistakes, words nearest to a context."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import clip
from clip.tokens import tokenizer
from dassl.errors import UserError
from dassl.evaluation import Predictions
from dassl.utils import load_checkpoint
from dassl.utils.tools import SAFE_FORMATS, decode_image
from dassl.utils.torchtools import state_of
from experiments.report.blocks import Card

THUMBNAIL = 96  # pixels of the longer side
MISTAKES, PAIRS = 8, 4  # shown of a dataset


class Judged(NamedTuple):
    """An image that a run was tested on, with its own class and the predicted one."""

    path: str
    own: str
    predicted: str
    confidence: float
    is_right: bool  # two classes may have one name


def judged(found: Predictions) -> list[Judged]:
    """List the images of a test."""
    confidence = np.exp(found.top_logits[:, 0] - found.log_sum_exp).tolist()
    own, predicted = found.class_names[found.labels], found.class_names[found.top_indices[:, 0]]
    right = (found.labels == found.top_indices[:, 0]).tolist()
    columns = (found.paths.tolist(), own.tolist(), predicted.tolist(), confidence, right)
    return [Judged(*values) for values in zip(*columns, strict=True)]


def counts_of(found: Predictions) -> np.ndarray:
    """Return the confusion matrix (K, K): own classes in rows, predicted ones in columns."""
    counts = np.zeros((len(found.class_names),) * 2, dtype=np.int64)
    np.add.at(counts, (found.labels, found.top_indices[:, 0]), 1)
    return counts


def mistakes_of(images: Sequence[Judged], root: str) -> list[Card]:
    """Show the wrong predictions with the highest confidence."""
    wrong = sorted((i for i in images if not i.is_right), key=lambda i: -i.confidence)
    return [
        Card(
            _pictures(root, [image.path]),
            [
                image.own,
                f"taken for {image.predicted}",
                f"confidence {100 * image.confidence:.0f}%",
            ],
        )
        for image in wrong[:MISTAKES]
    ]


def pairs_of(images: Sequence[Judged], root: str) -> list[Card]:
    """Show the most frequent mistakes: a picture that is mistaken, one of the other class."""
    pairs = Counter((i.own, i.predicted) for i in images if not i.is_right)
    sizes = Counter(i.own for i in images)
    cards = []
    for (own, other), number in pairs.most_common(PAIRS):
        mistaken = [i for i in images if not i.is_right and (i.own, i.predicted) == (own, other)]
        worst = max(mistaken, key=lambda i: i.confidence)
        typical = [i.path for i in images if i.is_right and i.own == other]
        pictures = _pictures(root, [worst.path, *typical[:1]])
        cards.append(Card(pictures, [own, f"taken for {other}", f"{number} of {sizes[own]}"]))
    return cards


def _pictures(root: str, paths: Sequence[str]) -> list[str]:
    """Return thumbnails as data addresses; what is not a picture below the root is left out."""
    found = []
    for path in paths:
        place = os.path.normpath(os.path.join(root, path))
        if not Path(place).is_relative_to(os.path.normpath(root)) or not os.path.isfile(place):
            continue
        try:
            picture = decode_image(place, path, formats=SAFE_FORMATS)
        except UserError:
            continue
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85, subsampling=0)
        found.append(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return found


def learned_tensors(folder: Path) -> dict[str, Tensor]:
    """Return what a run has learned; nothing where its checkpoints are missing or damaged."""
    paths = sorted(folder.glob("*/model.pth.tar-*"), key=lambda path: (len(path.name), path.name))
    last = {path.parent: path for path in [*paths, *folder.glob("*/model-best.pth.tar")]}
    learned: dict[str, Tensor] = {}
    for path in map(str, last.values()):
        try:
            learned |= state_of(load_checkpoint(path), path)
        except UserError:
            continue
    kinds = {name: value for name, value in learned.items() if isinstance(value, Tensor)}
    return {name: value for name, value in kinds.items() if value.layout == torch.strided}


def text_context(learned: Mapping[str, Tensor]) -> Tensor | None:
    """Return the learned context (m, d_t) that has the place of words in the text tower.

    None where a method has none, or one for each class, or projects it.
    """
    for name, value in learned.items():
        place, _, last = name.rpartition(".")
        is_projected = f"{place}.project_text.weight".lstrip(".") in learned
        if last == "ctx" and value.dim() == 2 and not is_projected:
            return value.float()
    return None


def nearest_words(context: Tensor, backbone: str) -> list[str]:
    """Name the whole word whose embedding is nearest (Euclidean) to each token, with the distance.

    Of words that share an embedding it is the first of the vocabulary. Empty where the backbone is
    not on this machine, or the context is not of its kind.
    """
    try:
        rows, table = _vocabulary(backbone) if clip.is_here(backbone) else ([], context[:0, :0])
    except UserError:  # a damaged file
        return []
    if context.shape[1] != table.shape[1]:
        return []
    distances, found = torch.cdist(context, table).min(dim=1)
    words = [tokenizer().decode([rows[index]]).strip() for index in found.tolist()]
    pairs = zip(words, distances.tolist(), strict=True)
    return [f"{word} ({distance:.2f})" for word, distance in pairs]


@lru_cache(maxsize=1)
def _vocabulary(backbone: str) -> tuple[list[int], Tensor]:
    """Return the numbers of a CLIP's whole words and their embeddings (n, d_t)."""
    rows = [row for word, row in tokenizer().encoder.items() if word.endswith("</w>")]
    return rows, clip.load_model(backbone).token_embedding.weight.detach()[rows]
