"""Which of the classes at hand were trained, by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clip.tokens import tokenizer

ROUNDING = 1e-3  # more than half precision does to an embedding, less than training does


def trained_rows(class_names: Sequence[str], trained_names: Sequence[str]) -> Tensor:
    """Find the classes that were trained: pairs (n, 2) of a class and its place in training.

    Names are the same if their tokens are, so case and underscores do not matter; of several
    classes of one name, the first has the first one's place.
    """
    rows = defaultdict(list)
    for row, name in enumerate(trained_names):
        rows[name_ids(name)].append(row)
    found = [rows[name_ids(name)] for name in class_names]
    pairs = [(k, each.pop(0)) for k, each in enumerate(found) if each]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def name_ids(class_name: str) -> tuple[int, ...]:
    """Return the tokens of a class name."""
    return tuple(tokenizer().encode(class_name.replace("_", " ")))


def is_near(tensor: Any, expected: Tensor | None, rounding: float = ROUNDING) -> bool:
    """Return whether two tensors are the same but for rounding."""
    return (
        isinstance(tensor, Tensor)
        and expected is not None
        and tensor.shape == expected.shape
        and bool((tensor.to(expected) - expected).abs().max() < rounding)
    )
