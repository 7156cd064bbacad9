"""Vectors for all tokens of CLIP's vocabulary, so that words without a caption mean something, too.

The token embedding of ViT-Mini-2 is a linear function of these vectors; only the function is
learned. A word that no caption holds is thus embedded beside the words that are used like it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
END_OF_WORD = "</w>"


def token_vectors(vocabulary: Sequence[str], words: Sequence[str], vectors: Vectors) -> Vectors:
    """Return a unit vector for each token (tokens, width).

    A token that is a word has the word's vector. A part of a word has the mean over the tokens that
    are words and begin with it, or for a last part, end with it. The others, such as single
    letters and the start and end tokens, have random vectors.

    Args:
        vocabulary: the tokens; ``</w>`` ends the last one of a word.
        words: words that have vectors.
        vectors: their unit vectors (words, width).
    """
    row_of = {word: row for row, word in enumerate(words)}
    random = np.random.RandomState(0).normal(0, 1, (len(vocabulary), vectors.shape[1]))
    found = random.astype(np.float32)
    sums: dict[tuple[str, bool], npt.NDArray[np.float64]] = defaultdict(
        lambda: np.zeros(vectors.shape[1])
    )
    known = []
    for token, text in enumerate(vocabulary):
        word = text.removesuffix(END_OF_WORD)
        if text.endswith(END_OF_WORD) and word in row_of:
            found[token] = vectors[row_of[word]]
            known.append(token)
            for length in range(2, len(word)):
                sums[word[:length], False] += found[token]
                sums[word[-length:], True] += found[token]
    for token in set(range(len(vocabulary))).difference(known):
        text = vocabulary[token]
        mean = sums.get((text.removesuffix(END_OF_WORD), text.endswith(END_OF_WORD)))
        if mean is not None:
            found[token] = mean
    return found / np.linalg.norm(found, axis=1, keepdims=True)
