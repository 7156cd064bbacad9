"""The texts of several classes in one row, and how attention keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .blocks import (
    Split,
    attend_behind,
    attend_by_products,
    attend_to_earlier,
    in_tokens,
)

KEPT_LAYOUTS = 64  # more than one step of any method has


class Layout:
    """A row of n tokens that K texts begin with, and of the N tokens that they go on with.

    Those of one text stand behind those of the other, of each up to its end token.  Names are of
    very different length, so that is far fewer than K times those of the longest; only attention,
    where texts must stay apart, fills them up.

    Args:
        ends: positions of the K end tokens, behind which nothing is computed.
        n: number of tokens that all texts have in common.
        device: of the tokens.

    Attributes:
        longest: S, the most tokens that a text has of its own.
        positions: (n + N,) of each token in its text.
        starts: (K,) places in the row of the first tokens that are a text's own.
        end_rows: (K,) places of the end tokens in the row.
    """

    def __init__(self, ends: Sequence[int], n: int, device: torch.device):
        lengths = np.asarray(ends) + 1 - n
        self.n_classes, self.longest = len(lengths), int(lengths.max())
        self.n_shared, self.n_own = n, int(lengths.sum())
        row = np.arange(self.longest)
        is_own = row < lengths[:, None]
        starts = n + lengths.cumsum() - lengths

        def sent(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        self.starts, self.end_rows = sent(starts), sent(starts + lengths - 1)
        self.positions = sent(np.concatenate([np.arange(n), n + np.nonzero(is_own)[1]]))
        self._places = sent(np.flatnonzero(is_own))
        # what a token does not see of its text: what is later, (S, S), and behind its end (K, 1, S)
        self._later, self._behind_end = sent(row > row[:, None]), sent(~is_own[:, None])

    @property
    def padding(self) -> float:
        """Tokens that attention has in place of one."""
        return (self.n_shared + self.n_classes * self.longest) / (self.n_shared + self.n_own)

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split a row (V, n + N, ...) into what is shared and what is not."""
        shared, own = x.split([self.n_shared, self.n_own], dim=1)
        return shared, own

    def filled(self, own: Tensor) -> Tensor:
        """Fill up tokens (V, N, ...) by zeros, to S of each text: (V * K, S, ...)."""
        size = self.n_classes * self.longest
        if size != self.n_own:
            rows = torch.arange(own.shape[0], device=own.device)[:, None]
            zeros = own.new_zeros(own.shape[0], size, *own.shape[2:])
            # index_copy_ would keep its source for the backward pass, which does not read it
            own = zeros.index_put_((rows, self._places), own)
        return own.unflatten(1, (self.n_classes, -1)).flatten(0, 1)

    def in_a_row(self, x: Tensor) -> Tensor:
        """Undo ``filled``."""
        x = x.unflatten(0, (-1, self.n_classes)).flatten(1, 2)
        return x if x.shape[1] == self.n_own else x.index_select(1, self._places)

    def attend(self, split: Split, projected: Sequence[Tensor]) -> Tensor:
        """Let each token attend to those of its text that are not behind it, as an ``Attend``.

        Queries are of the whole row, or of the end tokens alone (V, K, width).
        """
        *of_ends, of_row = projected
        shared, own = self.apart(of_row)
        q, k, v = split([*(x.flatten(0, 1)[:, None] for x in of_ends), self.filled(own)])
        hidden = self._behind_end if of_ends else self._later
        # Queries, too, unless they are of the end tokens alone.  A copy: a view would keep the row.
        first = split([shared.clone()])
        if self.n_shared > 0:
            found = attend_behind(first[-2], first[-1], self.n_classes, hidden, q, k, v)
        elif of_ends:
            found = attend_by_products(q, k, v, hidden.repeat(of_row.shape[0], 1, 1)[:, None])
        else:
            found = attend_to_earlier(q, k, v)
        if of_ends:
            return in_tokens(found).unflatten(0, (-1, self.n_classes)).flatten(1, 2)
        found = self.in_a_row(found.transpose(1, 2)).flatten(2)
        if self.n_shared == 0:
            return found
        return torch.cat([in_tokens(attend_to_earlier(*first)), found], dim=1)


@lru_cache(maxsize=KEPT_LAYOUTS)
def layout_of(ends: tuple[int, ...], n: int, device: torch.device) -> Layout:
    """Return the layout of some classes, which every step asks for: its tensors are copied once."""
    with torch.inference_mode(False):
        return Layout(ends, n, device)
