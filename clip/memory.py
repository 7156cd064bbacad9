"""What the gradients of a pass through a tower need kept, and computing it again instead.

Without recomputation each block keeps some ten tensors of its tokens until its gradients are
computed; with it, its input alone, and the rest is computed a second time.  Values and gradients
are the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dassl.utils.memory import compact_heap, free_bytes

from .layer import Layer

# Tensors of all tokens that a frozen block keeps: the inputs of both norms, queries, keys, values,
# what attention returns, and the input of the MLP's nonlinearity, which is four times as wide.
# Half precision on a CPU keeps attention's weights, too, up to four tensors more.
KEPT_OF_BLOCK = 10
# What padding makes larger: queries, keys, values, what attention returns, and its weights.
KEPT_OF_ATTENTION = 5
# After attention the last block computes the few tokens that are read; of all tokens it keeps the
# input, keys and values.
KEPT_OF_LAST = 3
# A pass may keep this part of the free memory: others follow it, and gradients take some, too.
SHARE = 1 / 3
NEGLIGIBLE = 2**26  # bytes that may be kept without asking how much is free


class Kept(NamedTuple):
    """What one pass through a tower keeps for its gradients.

    ``n_bytes`` is the estimate, ``whole`` what it would be without recomputation.
    """

    n_bytes: int
    whole: int


def kept_bytes(
    n_values: int, n_blocks: int, itemsize: int, padding: float = 1, recomputed: bool = False
) -> int:
    """Estimate the memory that the gradients of a pass take, those of adapters not counted.

    Args:
        n_values: tokens times width.
        n_blocks: blocks with gradients.
        itemsize: bytes of a value.
        padding: tokens that attention has in place of one.
        recomputed: each block keeps its input alone.  What one block keeps otherwise is counted
            once, as it is needed while its own gradients are computed.
    """
    of_block = KEPT_OF_BLOCK + KEPT_OF_ATTENTION * (padding - 1)
    if recomputed:
        n_tensors = n_blocks + of_block
    else:
        n_tensors = (n_blocks - 1) * of_block + KEPT_OF_LAST
    return round(n_tensors * n_values * itemsize)


class Pass:
    """One pass through the blocks of a tower, whose ``run`` calls one after another.

    Whether they are computed again is decided once, at the first block that has gradients.

    Args:
        n_blocks: number of blocks of the tower.
        recompute: "always", "never", or "auto": where much of the free memory would be kept.
        observe: is told what the pass keeps.
    """

    def __init__(self, n_blocks: int, recompute: str, observe: Callable[[Kept], Any] | None = None):
        self.n_left, self.recompute, self.observe = n_blocks, recompute, observe
        self.again: bool | None = None

    def run(
        self,
        block: Callable[..., Tensor],
        x: Tensor,
        attend: Any,
        layer: Layer,
        *rest: Any,
        padding: float = 1,
    ) -> Tensor:
        """Return ``block(x, attend, layer, *rest)``; ``padding`` as for ``kept_bytes``."""
        has_gradients = x.requires_grad or not layer.is_untouched
        if has_gradients and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if self.again is None:
                self.again = self.decide(x, padding)
            if self.again:
                block = partial(checkpoint, block, use_reentrant=False, determinism_check="none")
        self.n_left -= 1
        return block(x, attend, layer, *rest)

    def decide(self, x: Tensor, padding: float) -> bool:
        """Return whether the blocks that are left, whose tokens are ``x``, are computed again."""
        shape = (x.numel(), self.n_left, x.element_size(), padding)
        whole = kept_bytes(*shape)
        again = self.recompute == "always"
        if self.recompute == "auto" and whole > NEGLIGIBLE:
            again = whole > SHARE * free_bytes(x.device)
        if again and x.is_cpu:
            compact_heap()
        if self.observe is not None:
            self.observe(Kept(kept_bytes(*shape, recomputed=again), whole))
        return again
