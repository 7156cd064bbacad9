"""The forward pass of the text tower, which computes nothing twice.

The tower is causal and its feature is read at the end token.  Two exact consequences are used:
what follows a class's end token is never computed, and what all classes have in common (start
token, shared prompts, leading words) is computed once, not once per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from .blocks import (
    Attend,
    Attention,
    ResidualAttentionBlock,
    Transformer,
    attend_behind,
    attend_to_earlier,
    attend_up_to,
)
from .layer import Layer
from .memory import Pass
from .tokens import PromptTokens

KEPT_LAYOUTS = 64  # more than one step of any method has


class Layout:
    """The tokens of K classes, N in all, in one row, and filled up to K times the longest.

    Args:
        ends: positions of the K end tokens, behind which nothing is computed.
        n: number of leading positions that are not among them.
        device: of the tokens.

    Attributes:
        starts, lengths: (K,) of each class, on the device.
        positions: (N,) of each token in its class.
    """

    def __init__(self, ends: Sequence[int], n: int, device: torch.device):
        lengths = np.asarray(ends) + 1 - n
        self.n_classes, self.longest = len(lengths), int(lengths.max())
        self.n_tokens = int(lengths.sum())
        is_own = np.arange(self.longest) < lengths[:, None]
        starts, positions = lengths.cumsum() - lengths, np.nonzero(is_own)[1]
        self.starts, self.lengths, self.positions, self._places = (
            torch.from_numpy(array).to(device, non_blocking=True)
            for array in (starts, lengths, positions, np.flatnonzero(is_own))
        )

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
        """Turn heads of all tokens, or of one a class, into (V * K, heads, S or 1, head width)."""
        x = x.transpose(1, 2)
        x = self.filled(x) if x.shape[1] == self.n_tokens else x
        return x.unflatten(1, (self.n_classes, -1)).flatten(0, 1).transpose(1, 2)

    def attend(self, how: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Let the tokens of each class attend among themselves.

        Args:
            how: attends in (V * K, heads, S, head width).
            q: (V, heads, N, head width), or of one token of each class.
            k, v: (V, heads, N, head width).
        """
        attended = how(*map(self.by_class, (q, k, v))).transpose(1, 2)
        attended = attended.unflatten(0, (-1, self.n_classes)).flatten(1, 2)
        is_of_all = attended.shape[1] == self.n_classes * self.longest
        return (self.in_a_row(attended) if is_of_all else attended).transpose(1, 2)


@lru_cache(maxsize=KEPT_LAYOUTS)
def layout_of(ends: tuple[int, ...], n: int, device: torch.device) -> Layout:
    """Return the layout of some classes, which every step asks for: its tensors are copied once."""
    with torch.inference_mode(False):
        return Layout(ends, n, device)


class Sequences:
    """K token sequences in V variants, with what the classes have in common kept once.

    Behind the prefix there are N tokens: those of one class after those of the other, of each up
    to its end token.  Names are of very different length, so that is far fewer than K times those
    of the longest; only attention, where classes must stay apart, fills them up.

    Attributes:
        prefix: (V, n, width), or None where nothing is shared.
        rest: (V, N, width).
        shared_slots: positions of those prompts that are in the prefix.
        slots: (K, m) positions of all prompts.
        ends: positions of the K end tokens.
    """

    def __init__(self, embedded: Tensor, tokens: PromptTokens):
        """Start from token embeddings (K, T, width), without positional embedding."""
        self.prefix = embedded[:1, : tokens.prefix] if tokens.prefix > 0 else None
        self.shared_slots = list(tokens.shared_slots)
        self.slots = tokens.slots
        self._set(embedded[None, :, tokens.prefix :], tokens.prefix, tokens.ends)

    def _set(self, rest: Tensor, n: int, ends: Sequence[int]) -> None:
        """Take what stands behind a prefix of n tokens, filled up: (V, K, S or more, width)."""
        self.n, self.ends = n, tuple(ends)
        # an exported graph has tensors of its own, which are no tensors for anything else
        make = Layout if torch.compiler.is_compiling() else layout_of
        self.layout = make(self.ends, n, rest.device)
        self.rest = self.layout.in_a_row(rest[:, :, : self.layout.longest].flatten(1, 2))

    @property
    def n_classes(self) -> int:
        return len(self.ends)

    def _of_classes(self) -> Tensor:
        """Return the tokens behind the prefix, filled up: (V, K, S, width)."""
        return self.layout.filled(self.rest).unflatten(1, (self.n_classes, -1))

    def add(self, position: Tensor) -> None:
        """Add the positional embeddings (T, width)."""
        if self.prefix is not None:
            self.prefix = self.prefix + position[: self.n]
        self.rest = self.rest + position[self.n + self.layout.positions]

    def unshare(self, start: int) -> None:
        """Move the prefix from ``start`` on into the sequence of each class.

        A start token that would be left alone is not worth sharing, and is moved, too.
        """
        assert self.prefix is not None
        start = start if start > 1 else 0
        tail = self.prefix[:, None, start:].expand(-1, self.n_classes, -1, -1)
        rest = self._of_classes().expand(tail.shape[0], -1, -1, -1)
        self.prefix = self.prefix[:, :start] if start > 0 else None
        self.shared_slots = [slot for slot in self.shared_slots if slot < start]
        self._set(torch.cat([tail, rest], dim=2), start, self.ends)

    def _in_variants(self, n_variants: int) -> None:
        """Give every variant sequences of its own, which differ from now on."""
        if n_variants > 1:
            self.rest = self.rest.expand(n_variants, -1, -1)
            if self.prefix is not None:
                self.prefix = self.prefix.expand(n_variants, -1, -1)

    def _slots_in_rest(self) -> Tensor:
        """Return where in ``rest`` each class has its prompts: (K * slots,)."""
        slots = self.slots[:, len(self.shared_slots) :] - self.n
        return (self.layout.starts[:, None] + slots).flatten()

    def prompts(self) -> Tensor:
        """Return the prompt tokens after the previous layer: (V, K, m, width), K 1 if shared."""
        if len(self.shared_slots) < self.slots.shape[1]:
            if self.shared_slots:
                self.unshare(self.shared_slots[0])
            found = self.rest.index_select(1, self._slots_in_rest())
            return found.unflatten(1, (self.n_classes, -1))
        assert self.prefix is not None
        return self.prefix.index_select(1, self.slots[0])[:, None]

    def place(self, prompts: Tensor) -> None:
        """Put prompts, of a shape that broadcasts to (V, K, m, width), at their places."""
        if self.shared_slots and prompts.shape[1] > 1:
            self.unshare(self.shared_slots[0])
        self._in_variants(prompts.shape[0])
        s = len(self.shared_slots)
        if s > 0:
            assert self.prefix is not None
            shared = prompts[:, 0, :s].expand(self.prefix.shape[0], -1, -1)
            index = self.slots[0, :s, None].expand_as(shared)
            self.prefix = self.prefix.scatter(1, index, shared)
        if s < self.slots.shape[1]:
            own = prompts[:, :, s:].expand(self.rest.shape[0], self.n_classes, -1, -1)
            self.rest = self.rest.index_copy(1, self._slots_in_rest(), own.flatten(1, 2))

    def insert(self, prompts: Tensor) -> None:
        """Put prompts (V, K, m, width), which have no places yet, after [SOS]."""
        m = prompts.shape[2]
        if self.prefix is not None and prompts.shape[1] > 1:
            self.unshare(0)
        self._in_variants(prompts.shape[0])
        rest, ends = self._of_classes(), [end + m for end in self.ends]
        if self.prefix is not None:
            shared = prompts[:, 0].expand(self.prefix.shape[0], -1, -1)
            self.prefix = torch.cat([self.prefix[:, :1], shared, self.prefix[:, 1:]], dim=1)
            self.shared_slots = list(range(1, 1 + m))
            self._set(rest, self.n + m, ends)
        else:
            own = prompts.expand(rest.shape[0], self.n_classes, -1, -1)
            self._set(torch.cat([rest[:, :, :1], own, rest[:, :, 1:]], dim=2), 0, ends)
        self.slots = torch.arange(1, 1 + m, device=rest.device).repeat(self.n_classes, 1)

    def run(
        self, block: ResidualAttentionBlock, layer: Layer, tower_pass: Pass, is_last: bool = False
    ) -> None:
        """Run all sequences through one block.

        Args:
            tower_pass: runs it for the sequences of the classes.
            is_last: of the sequences only the end tokens, which are read, are left.
        """
        is_foreign = not isinstance(block.attn, Attention)
        if self.prefix is not None and is_foreign:
            self.unshare(0)  # a foreign attention takes whole sequences
        # what is computed again has these, whatever becomes of the sequences in later blocks
        layout, rows = self.layout, None
        positions = torch.arange(layout.longest, device=self.rest.device)
        if is_last:
            rows = layout.starts + layout.lengths - 1
            positions = layout.lengths[:, None] - 1
        attend: Attend = attend_to_earlier
        if self.prefix is not None:
            prefix_k, prefix_v = self._run_prefix(block, layer, is_last)
            attend = partial(attend_behind, prefix_k, prefix_v, layout.n_classes, positions)
        elif is_last:
            attend = partial(attend_up_to, positions.repeat(self.rest.shape[0], 1))
        if is_foreign:
            x = self._of_classes().flatten(0, 1)
            x = tower_pass.run(block.run, x, attend, layer).unflatten(0, (-1, layout.n_classes))
            self.rest = layout.in_a_row(x.flatten(1, 2))
            self.rest = self.rest if rows is None else self.rest[:, rows]
            return
        attend = partial(layout.attend, attend)
        padding = layout.n_classes * layout.longest / layout.n_tokens
        self.rest = tower_pass.run(block.run, self.rest, attend, layer, rows, padding=padding)

    def _run_prefix(
        self, block: ResidualAttentionBlock, layer: Layer, is_last: bool
    ) -> Sequence[Tensor]:
        """Run the prefix through a block; return its keys and values, all there is of the last."""
        assert self.prefix is not None
        if is_last:
            attention = cast(Attention, block.attn)
            return attention.project(block.ln_1(self.prefix), slice(0), layer.qkv)[1:]
        kept: list[Tensor] = []

        def attend_and_keep(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.extend((k, v))
            return attend_to_earlier(q, k, v)

        self.prefix = block.run(self.prefix, attend_and_keep, layer)
        return kept


def hidden_at_ends(
    transformer: Transformer,
    layers: Sequence[Layer],
    tokens: PromptTokens,
    embedded: Tensor,
    position: Tensor,
) -> Tensor:
    """Run texts through the tower and return the hidden states at their end tokens.

    Args:
        transformer: of the tower.
        layers: one for each of its blocks.
        tokens: K texts.
        embedded: token embeddings (K, T, width).
        position: positional embeddings (T, width).

    Returns:
        (V, K, width), V the number of variants that the prompts ask for.

    Raises:
        ValueError: there are more or fewer prompts than places.
    """
    sequences = Sequences(embedded, tokens)
    tower_pass, last = transformer.start(), transformer.layers - 1
    for i, (block, layer) in enumerate(zip(transformer.blocks, layers, strict=True)):
        prompts = layer.prompts
        m = sequences.slots.shape[1]
        if prompts is not None:
            if not isinstance(prompts, Tensor):
                if m == 0:
                    raise ValueError(f"layer {i}: a function needs prompts in an earlier layer")
                prompts = prompts(sequences.prompts().float())
            prompts = prompts[(None,) * (4 - prompts.dim())].to(embedded.dtype)
            if i > 0 and m == 0:
                sequences.insert(prompts)
            elif prompts.shape[2] != m:
                raise ValueError(f"layer {i} has {prompts.shape[2]} text prompts for {m} positions")
            else:
                sequences.place(prompts)
        if i == 0:
            sequences.add(position)
        sequences.run(block, layer, tower_pass, is_last=i == last)
    return sequences.rest
