"""The tokens of several classes in one row, and filled up for attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

KEPT_LAYOUTS = 64  # more than one step of any method has


class Layout:
    """The tokens of K classes, N in all, in one row, and filled up to K times the longest.

    Args:
        ends: positions of the K end tokens, behind which nothing is computed.
        n: number of leading positions that are not among them.
        device: of the tokens.

    Attributes:
        longest: S, tokens of the longest class.
        starts: (K,) places of the first tokens in the row.
        end_rows: (K,) places of the end tokens in the row.
        positions: (N,) of each token in its class.
        later: (S, S), whether a key stands behind the query.
        behind_end: (K, 1, S), whether a key stands behind its class's end token.
    """

    def __init__(self, ends: Sequence[int], n: int, device: torch.device):
        lengths = np.asarray(ends) + 1 - n
        self.n_classes, self.longest = len(lengths), int(lengths.max())
        self.n_tokens = int(lengths.sum())
        all_positions = np.arange(self.longest)
        is_own = all_positions < lengths[:, None]
        starts = lengths.cumsum() - lengths

        def sent(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        self.starts, self.end_rows = sent(starts), sent(starts + lengths - 1)
        self.positions, self._places = sent(np.nonzero(is_own)[1]), sent(np.flatnonzero(is_own))
        self.later = sent(all_positions > all_positions[:, None])
        self.behind_end = sent(~is_own[:, None])

    def in_a_row(self, x: Tensor) -> Tensor:
        """Return the tokens alone (V, N, ...) of tokens that are filled up (V, K * S, ...)."""
        return x if x.shape[1] == self.n_tokens else x.index_select(1, self._places)

    def filled(self, x: Tensor) -> Tensor:
        """Return tokens (V, N, ...) filled up by zeros, S to a class: (V, K * S, ...)."""
        size = self.n_classes * self.longest
        if x.shape[1] == size:
            return x
        return x.new_zeros(x.shape[0], size, *x.shape[2:]).index_copy(1, self._places, x)

    def by_class(self, x: Tensor) -> Tensor:
        """Turn all tokens, or one a class, (V, N or K, ...) into (V * K, S or 1, ...)."""
        x = self.filled(x) if x.shape[1] == self.n_tokens else x
        return x.unflatten(1, (self.n_classes, -1)).flatten(0, 1)

    def joined(self, x: Tensor) -> Tensor:
        """Turn (V * K, S or 1, ...) into (V, N or K, ...), the inverse of ``by_class``."""
        x = x.unflatten(0, (-1, self.n_classes)).flatten(1, 2)
        return self.in_a_row(x) if x.shape[1] == self.n_classes * self.longest else x


@lru_cache(maxsize=KEPT_LAYOUTS)
def layout_of(ends: tuple[int, ...], n: int, device: torch.device) -> Layout:
    """Return the layout of some classes, which every step asks for: its tensors are copied once."""
    with torch.inference_mode(False):
        return Layout(ends, n, device)
