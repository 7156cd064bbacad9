"""The one transformer block of both towers, and attention in the forms that they need.

Tensors are batch-first: (N, T, width), heads (N, heads, T, head width).  A block or transformer
that is *called* takes OpenAI's layout (T, N, width) and computes what OpenAI's computes, for
trainers that walk the blocks themselves; the towers here use ``ResidualAttentionBlock.run``, which
calls no forward hooks of a block or of its attention.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import UNTOUCHED, Adapter, Layer, adapted
from .memory import Kept, Pass

MOST_KINDS = 64  # of calls of a block that are compiled; torch's own limit is 8

# What ``Attention.project`` returns -> queries, keys and values
Split = Callable[[Sequence[Tensor]], list[Tensor]]
# (that function, what ``Attention.project`` returns) -> weighted sums of the values (N, R, width),
# one for each query
Attend = Callable[[Split, Sequence[Tensor]], Tensor]


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in fp32 whatever the input's type is."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        # On a CPU the kernel itself reads other types and computes in fp32, without a copy.
        y = x if x.is_cpu and x.element_size() < 8 else x.float()
        return F.layer_norm(y, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), OpenAI's approximation of GELU.

    Written as silu(1.702 x) / 1.702, whose gradient needs one tensor instead of two.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Attend by two matrix products, except to the keys that are ``hidden``, (N, 1, R, S)."""
    scores = q * q.shape[-1] ** -0.5 @ k.mT
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _is_fused_slow(q: Tensor) -> bool:
    """Return whether matrix products are faster than torch's fused attention.

    On CPUs they are in half precision, but keep the weights for the gradients.  That is worth it
    while these are no larger than the hidden layer of the MLP.
    """
    return q.is_cpu and q.element_size() == 2 and q.shape[2] <= 4 * q.shape[3]


def attend_to_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (
        attend_by_products(q, k, v)
        if _is_fused_slow(q)
        else F.scaled_dot_product_attention(q, k, v)
    )


def attend_to_earlier(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend causally: each position to itself and to those before it."""
    if not _is_fused_slow(q):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return attend_by_products(q, k, v, hidden)


def attend_behind(
    prefix_k: Tensor,
    prefix_v: Tensor,
    n_classes: int,
    hidden: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """Attend causally from class suffixes to one common prefix and to themselves.

    Args:
        prefix_k, prefix_v: (P, heads, n, head width), computed once for all K suffixes.
        n_classes: K.
        hidden: which keys of its suffix a query does not see: (R, S), or (K, R, S).
        q: (P * K, heads, R, head width), K suffixes for each of P prefixes.
        k, v: (P * K, heads, S, head width).
    """
    n_queries, length = q.shape[2], k.shape[2]
    q, k, v = (t.unflatten(0, (-1, n_classes)).transpose(1, 2) for t in (q, k, v))
    q = q * q.shape[-1] ** -0.5  # (P, heads, K, R, head width)
    # All K * R queries meet the same prefix keys: one matrix product instead of K copies.
    to_prefix = (q.flatten(2, 3) @ prefix_k.mT).unflatten(2, (n_classes, n_queries))
    to_suffix = (q @ k.mT).masked_fill(hidden, -math.inf)
    weights = torch.cat([to_prefix, to_suffix], dim=-1).softmax(dim=-1).to(v.dtype)
    from_prefix, from_suffix = weights.split([prefix_k.shape[2], length], dim=-1)
    out = (from_prefix.flatten(2, 3) @ prefix_v).unflatten(2, (n_classes, n_queries))
    out = out + from_suffix @ v
    return out.transpose(1, 2).flatten(0, 1)


def in_tokens(heads: Tensor) -> Tensor:
    """Turn heads (N, heads, T, head width) into tokens (N, T, width)."""
    return heads.transpose(1, 2).flatten(2)


def attend_in_sequences(
    how: Callable[[Tensor, Tensor, Tensor], Tensor], split: Split, projected: Sequence[Tensor]
) -> Tensor:
    """Let the tokens of each sequence (N, T, width) attend; with ``how`` set, an ``Attend``."""
    return in_tokens(how(*split(projected)))


class Attention(nn.MultiheadAttention):
    """Multi-head self-attention whose projections and softmax can be reached apart.

    Called as a module it is ``nn.MultiheadAttention``, as OpenAI's blocks have it.
    """

    def project(
        self, x: Tensor, rows: slice | Tensor | None, adapter: Adapter | None
    ) -> list[Tensor]:
        """Return queries of ``rows`` (None: all), keys and values of ``x`` (N, T, width).

        They are (N, T, 3 * width) together, or queries (N, R, width) and the rest.
        """
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if rows is None:
            return [adapted(F.linear(x, weight, bias), adapter, x)]
        width = self.embed_dim
        q = F.linear(x[:, rows], weight[:width], bias[:width])
        kv = F.linear(x, weight[width:], bias[width:])
        if adapter is not None:
            added = adapter(x.float()).to(kv.dtype)
            q, kv = q + added[:, rows, :width], kv + added[..., width:]
        return [q, kv]

    def split(self, projected: Sequence[Tensor]) -> list[Tensor]:
        """Split each (N, T, parts * width) into its parts (N, heads, T, head width)."""
        found: list[Tensor] = []
        for x in projected:
            x = x.unflatten(-1, (-1, self.num_heads, self.head_dim))
            found += x.permute(2, 0, 3, 1, 4).unbind(0)
        return found


class ResidualAttentionBlock(nn.Module):
    """The pre-norm transformer block.

    Code written for OpenAI's block may put another module in the place of ``attn``: it is then
    called as OpenAI's block calls it, with the block's own mask.
    """

    def __init__(self, width: int, heads: int, quick_gelu: bool = True, causal: bool = False):
        super().__init__()
        self.causal = causal
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.ln_2 = LayerNorm(width)

    def run(
        self,
        x: Tensor,
        attend: Attend,
        layer: Layer = UNTOUCHED,
        rows: slice | Tensor | None = None,
    ) -> Tensor:
        """Compute the block with what a method adds to it.

        Args:
            x: (N, T, width).
            attend: how queries and keys meet.
            layer: adapters; the tower handles its prompts.
            rows: R positions whose output is wanted, None for all of them.

        Returns:
            (N, T, width), or (N, R, width).
        """
        h = self.ln_1(x)
        if isinstance(self.attn, Attention):
            mixed = attend(self.attn.split, self.attn.project(h, rows, layer.qkv))
            attended = adapted(self.attn.out_proj(mixed), layer.out, mixed)
        elif layer.qkv or layer.out:
            raise ValueError(f"no adapters in an attention of type {type(self.attn).__name__}")
        else:
            attended = self.attention(h.transpose(0, 1)).transpose(0, 1)
            attended = attended if rows is None else attended[:, rows]
        if rows is not None:
            x, h = x[:, rows], h[:, rows]
        x = x + attended
        g = self.ln_2(x)
        x = x + adapted(self.mlp(g), layer.mlp, g)
        return adapted(x, layer.block, h)

    def attention(self, x: Tensor) -> Tensor:
        """Attend with OpenAI's mask, for callers of OpenAI's block; (T, N, width) as ``x``."""
        mask = None
        if self.causal:
            mask = x.new_full((len(x), len(x)), -math.inf).triu(1)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Compute what OpenAI's block does: (T, N, width) -> (T, N, width)."""
        attend = attend_to_earlier if self.causal else attend_to_all
        return self.run(x.transpose(0, 1), partial(attend_in_sequences, attend)).transpose(0, 1)


class Transformer(nn.Module):
    """The blocks of a tower.

    Attributes:
        recompute, observe: of each pass of the tower, as for ``Pass``.
        compiled: whether ``compile_blocks`` was called, which changes the last bits.
    """

    recompute = "never"
    compiled = False
    observe: Callable[[Kept], Any] | None = None

    def __init__(self, width: int, layers: int, heads: int, causal: bool, quick_gelu: bool = True):
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(
            *[ResidualAttentionBlock(width, heads, quick_gelu, causal) for _ in range(layers)]
        )

    @property
    def blocks(self) -> list[ResidualAttentionBlock]:
        return cast("list[ResidualAttentionBlock]", list(self.resblocks))

    def compile_blocks(self) -> None:
        """Have ``torch.compile`` fuse what each block computes, the first time that it does.

        The blocks share what is compiled, one version for each kind of call: with prompts or
        without, with gradients or without, all positions or those that are read.
        """
        self.compiled = True
        torch._dynamo.config.recompile_limit = MOST_KINDS
        for block in self.blocks:
            block.run = torch.compile(block.run)  # type: ignore[method-assign]

    def start(self) -> Pass:
        """Begin a pass through the blocks."""
        return Pass(self.layers, self.recompute, self.observe)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what OpenAI's transformer does: (T, N, width) -> (T, N, width)."""
        return self.resblocks(x)
