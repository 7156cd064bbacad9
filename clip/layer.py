"""The hook: what a method does to one transformer block, in one forward call.

A method hands each tower a sequence with one entry for each of its first blocks: ``None`` (the
block stays as it is), a ``Layer``, or a bare tensor, which means ``Layer(prompts=tensor)``.
Nothing is installed into the model, so the frozen teacher and the adapted student are the same
object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from torch import Tensor

Adapter = Callable[[Tensor], Tensor]
Prompts = Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Layer:
    """What is done to one block.

    Attributes:
        prompts: tokens that replace the prompt tokens, or a function that makes new ones of those
            that the previous layer returned.
        qkv: reads what the query, key and value projection reads (..., width); its output
            (..., 3 * width) is added to that of the projection.
        out: the same for the output projection of the attention (..., width).
        mlp: the same for the MLP (..., width).
        block: reads ``ln_1`` of the block's input; its output is added to that of the block.

    The last four are adapters: modules (or functions) in fp32 that act on each position alone.
    That keeps it exact to compute the positions that all classes have in common only once; an
    adapter with dropout draws once for those.
    """

    prompts: Prompts | None = None
    qkv: Adapter | None = None
    out: Adapter | None = None
    mlp: Adapter | None = None
    block: Adapter | None = None

    @property
    def is_untouched(self) -> bool:
        return all(getattr(self, field.name) is None for field in fields(self))


UNTOUCHED = Layer()
Layers = Sequence[Layer | Tensor | None]


def as_layers(entries: Layers, n_blocks: int, tower: str) -> list[Layer]:
    """Return one ``Layer`` for each block of a tower.

    Raises:
        ValueError: there are more entries than blocks.
    """
    if len(entries) > n_blocks:
        raise ValueError(
            f"prompts for {len(entries)} layers, but the {tower} tower has {n_blocks} layers"
        )
    layers = [Layer(prompts=entry) if isinstance(entry, Tensor) else entry for entry in entries]
    layers += [None] * (n_blocks - len(layers))
    return [UNTOUCHED if layer is None else layer for layer in layers]


def adapted(y: Tensor, adapter: Adapter | None, x: Tensor) -> Tensor:
    """Add to ``y`` what the adapter, which computes in fp32, makes of ``x``."""
    return y if adapter is None else y + adapter(x.float()).to(y.dtype)
