"""The forward pass of the text tower, which computes nothing twice.

The tower is causal and its feature is read at the end token.  Two exact consequences are used:
what follows a class's end token is never computed, and what all classes have in common (start
token, shared prompts, leading words) is computed once, not once per class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .blocks import Attention, ResidualAttentionBlock, Transformer
from .layer import Layer
from .layout import Layout, layout_of
from .memory import Pass
from .tokens import PromptTokens


class Sequences:
    """K token sequences in V variants, with what the classes have in common kept once.

    Attributes:
        row: (V, n + N, width), n shared tokens and those of the classes as in ``Layout``.
        shared_slots: positions of those prompts that are shared.
        slots: (K, m) positions of all prompts.
        ends: positions of the K end tokens.
    """

    def __init__(self, embedded: Tensor, tokens: PromptTokens):
        """Start from token embeddings (K, T, width), without positional embedding."""
        self.shared_slots = list(tokens.shared_slots)
        self.slots = tokens.slots
        n = tokens.prefix
        self._set(embedded[:1, :n], embedded[None, :, n:], tokens.ends)

    def _set(self, shared: Tensor, own: Tensor, ends: Sequence[int]) -> None:
        """Take what is shared, (V, n, width), and not, filled up: (V, K, S or more, width)."""
        self.ends = tuple(ends)
        # an exported graph has tensors of its own, which are no tensors for anything else
        make = Layout if torch.compiler.is_compiling() else layout_of
        self.layout = make(self.ends, shared.shape[1], own.device)
        own = self.layout.in_a_row(own[:, :, : self.layout.longest].flatten(0, 1))
        self.row = torch.cat([shared, own], dim=1) if self.n > 0 else own

    @property
    def n(self) -> int:
        return self.layout.n_shared

    @property
    def n_classes(self) -> int:
        return len(self.ends)

    def _apart(self) -> tuple[Tensor, Tensor]:
        """Return what ``_set`` takes."""
        shared, own = self.layout.apart(self.row)
        return shared, self.layout.filled(own).unflatten(0, (-1, self.n_classes))

    def add(self, position: Tensor) -> None:
        """Add the positional embeddings (T, width)."""
        self.row = self.row + position[self.layout.positions]

    def unshare(self, start: int) -> None:
        """Give each class what is shared from ``start`` on.

        A start token that would be left alone is not worth sharing, and goes with it.
        """
        start = start if start > 1 else 0
        shared, own = self._apart()
        tail = shared[:, None, start:].expand(-1, self.n_classes, -1, -1)
        self.shared_slots = [slot for slot in self.shared_slots if slot < start]
        self._set(shared[:, :start], torch.cat([tail, own], dim=2), self.ends)

    def _in_variants(self, n_variants: int) -> None:
        """Give every variant sequences of its own, which differ from now on."""
        if n_variants > 1:
            self.row = self.row.expand(n_variants, -1, -1)

    def _own_places(self) -> Tensor:
        """Return where in the row each class has prompts of its own: (K * slots,)."""
        slots = self.slots[:, len(self.shared_slots) :] - self.n
        return (self.layout.starts[:, None] + slots).flatten()

    def prompts(self) -> Tensor:
        """Return the prompt tokens after the previous layer: (V, K, m, width), K 1 if shared."""
        if len(self.shared_slots) == self.slots.shape[1]:
            return self.row.index_select(1, self.slots[0])[:, None]
        if self.shared_slots:
            self.unshare(self.shared_slots[0])
        return self.row.index_select(1, self._own_places()).unflatten(1, (self.n_classes, -1))

    def place(self, prompts: Tensor) -> None:
        """Put prompts, of a shape that broadcasts to (V, K, m, width), at their places."""
        if self.shared_slots and prompts.shape[1] > 1:
            self.unshare(self.shared_slots[0])
        self._in_variants(prompts.shape[0])
        n_variants, s = self.row.shape[0], len(self.shared_slots)
        if s > 0:
            shared = prompts[:, 0, :s].expand(n_variants, -1, -1)
            self.row = self.row.index_copy(1, self.slots[0, :s], shared)
        if s < self.slots.shape[1]:
            own = prompts[:, :, s:].expand(n_variants, self.n_classes, -1, -1)
            self.row = self.row.index_copy(1, self._own_places(), own.flatten(1, 2))

    def insert(self, prompts: Tensor) -> None:
        """Put prompts (V, K, m, width), which have no places yet, after [SOS]."""
        m = prompts.shape[2]
        if self.n > 0 and prompts.shape[1] > 1:
            self.unshare(0)
        self._in_variants(prompts.shape[0])
        (shared, own), n_variants = self._apart(), self.row.shape[0]
        if self.n > 0:
            new = prompts[:, 0].expand(n_variants, -1, -1)
            shared = torch.cat([shared[:, :1], new, shared[:, 1:]], dim=1)
            self.shared_slots = list(range(1, 1 + m))
        else:
            new = prompts.expand(n_variants, self.n_classes, -1, -1)
            own = torch.cat([own[:, :, :1], new, own[:, :, 1:]], dim=2)
        self._set(shared, own, [end + m for end in self.ends])
        self.slots = torch.arange(1, 1 + m, device=own.device).repeat(self.n_classes, 1)

    def run(
        self, block: ResidualAttentionBlock, layer: Layer, tower_pass: Pass, is_last: bool = False
    ) -> None:
        """Run all sequences through one block.

        Args:
            tower_pass: runs it.
            is_last: of the sequences only the end tokens, which are read, are left.
        """
        is_foreign = not isinstance(block.attn, Attention)
        if self.n > 0 and is_foreign:
            self.unshare(0)  # a foreign attention takes whole sequences
        layout = self.layout  # what is computed again has it, whatever later blocks have
        rows = layout.end_rows if is_last else None
        if is_foreign:
            x = tower_pass.run(block.run, layout.filled(self.row), layout.attend, layer)
            self.row = layout.in_a_row(x)
            self.row = self.row if rows is None else self.row[:, rows]
            return
        self.row = tower_pass.run(
            block.run, self.row, layout.attend, layer, rows, padding=layout.padding
        )


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
    return sequences.row
