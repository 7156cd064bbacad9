"""The forward pass of the text tower, which computes nothing twice.

The tower is causal and its feature is read at the end token.  Two exact consequences are used:
what follows the longest end token is never computed, and what all classes have in common (start
token, shared prompts, leading words) is computed once, not once per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

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


class Sequences:
    """K token sequences in V variants, with what the classes have in common kept once.

    Attributes:
        prefix: (V, n, width), or None where nothing is shared.
        rest: (V, K, T - n, width).
        shared_slots: positions of those prompts that are in the prefix.
        slots: (K, m) positions of all prompts.
        eot: (K,) positions of the end tokens.
    """

    def __init__(self, embedded: Tensor, tokens: PromptTokens):
        """Start from token embeddings (K, T, width), without positional embedding."""
        self.n = tokens.prefix
        self.prefix = embedded[:1, : self.n] if self.n > 0 else None
        self.rest = embedded[None, :, self.n :]
        self.shared_slots = list(tokens.shared_slots)
        self.slots = tokens.slots
        self.eot = tokens.eot

    @property
    def n_classes(self) -> int:
        return self.rest.shape[1]

    def add(self, position: Tensor) -> None:
        """Add the positional embeddings (T, width)."""
        if self.prefix is not None:
            self.prefix = self.prefix + position[: self.n]
        self.rest = self.rest + position[self.n :]

    def unshare(self, start: int) -> None:
        """Move the prefix from ``start`` on into the sequence of each class.

        A start token that would be left alone is not worth sharing, and is moved, too.
        """
        assert self.prefix is not None
        start = start if start > 1 else 0
        tail = self.prefix[:, None, start:].expand(-1, self.n_classes, -1, -1)
        rest = self.rest.expand(tail.shape[0], -1, -1, -1)
        self.rest = torch.cat([tail, rest], dim=2)
        self.prefix = self.prefix[:, :start] if start > 0 else None
        self.n = start
        self.shared_slots = [slot for slot in self.shared_slots if slot < start]

    def _in_variants(self, n_variants: int) -> None:
        """Give every variant sequences of its own, which differ from now on."""
        if n_variants > 1:
            self.rest = self.rest.expand(n_variants, -1, -1, -1)
            if self.prefix is not None:
                self.prefix = self.prefix.expand(n_variants, -1, -1)

    def _slots_in_rest(self) -> Tensor:
        """Return each class's positions of prompts (V, K, slots, width), for gather and scatter."""
        slots = self.slots[:, len(self.shared_slots) :] - self.n
        return slots[None, :, :, None].expand(self.rest.shape[0], -1, -1, self.rest.shape[-1])

    def prompts(self) -> Tensor:
        """Return the prompt tokens after the previous layer: (V, K, m, width), K 1 if shared."""
        if len(self.shared_slots) < self.slots.shape[1]:
            if self.shared_slots:
                self.unshare(self.shared_slots[0])
            return self.rest.gather(2, self._slots_in_rest())
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
            index = self._slots_in_rest()
            self.rest = self.rest.scatter(2, index, prompts[:, :, s:].expand_as(index))

    def insert(self, prompts: Tensor) -> None:
        """Put prompts (V, K, m, width), which have no places yet, after [SOS]."""
        m = prompts.shape[2]
        if self.prefix is not None and prompts.shape[1] > 1:
            self.unshare(0)
        self._in_variants(prompts.shape[0])
        if self.prefix is not None:
            shared = prompts[:, 0].expand(self.prefix.shape[0], -1, -1)
            self.prefix = torch.cat([self.prefix[:, :1], shared, self.prefix[:, 1:]], dim=1)
            self.n += m
            self.shared_slots = list(range(1, 1 + m))
        else:
            own = prompts.expand(self.rest.shape[0], self.n_classes, -1, -1)
            self.rest = torch.cat([self.rest[:, :, :1], own, self.rest[:, :, 1:]], dim=2)
        self.slots = torch.arange(1, 1 + m, device=self.eot.device).repeat(self.n_classes, 1)
        self.eot = self.eot + m

    def run(
        self, block: ResidualAttentionBlock, layer: Layer, tower_pass: Pass, is_last: bool = False
    ) -> None:
        """Run all sequences through one block.

        Args:
            tower_pass: runs it for the sequences of the classes.
            is_last: of the sequences only the end tokens, which are read, are left.
        """
        if self.prefix is not None and not isinstance(block.attn, Attention):
            self.unshare(0)  # a foreign attention takes whole sequences
        shape = self.rest.shape[:2]
        positions, rows = torch.arange(self.rest.shape[2], device=self.eot.device), None
        attend: Attend = attend_to_earlier
        if is_last:
            positions = (self.eot - self.n)[:, None]
            rows = positions.repeat(shape[0], 1)
            attend = partial(attend_up_to, rows)
        if self.prefix is not None:
            prefix_k, prefix_v = self._run_prefix(block, layer, is_last)
            attend = partial(attend_behind, prefix_k, prefix_v, self.n_classes, positions)
        x = self.rest.flatten(0, 1)
        self.rest = tower_pass.run(block.run, x, attend, layer, rows).unflatten(0, shape)

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
    return sequences.rest.squeeze(2)
