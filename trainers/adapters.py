"""Small modules that a method puts into a ``clip.Layer``; they act on each position alone."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from dassl import distributed


def bottleneck(outer: int, width: int) -> nn.Sequential:
    """Make Linear-ReLU down to ``width`` and Linear up again, as public adapters name them."""
    down = nn.Sequential(nn.Linear(outer, width), nn.ReLU())
    return nn.Sequential(OrderedDict(down=down, up=nn.Linear(width, outer)))


class ImageDropout(nn.Dropout):
    """Dropout of inputs (B, ...) of images, which draws for the images of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        all_images = x.new_ones(distributed.whole(len(x)), *x.shape[1:])
        return x * distributed.own(super().forward(all_images))


class LowRank(nn.Module):
    """B A x, times alpha / sqrt(rank), of inputs with dropout; starts as zero (LoRA)."""

    def __init__(
        self, width: int, rank: int, alpha: float, dropout: float, of_images: bool = False
    ):
        super().__init__()
        self.scaling = alpha / math.sqrt(rank)
        self.dropout = (ImageDropout if of_images else nn.Dropout)(dropout)
        self.w_lora_A = nn.Parameter(torch.empty(rank, width))
        self.w_lora_B = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.w_lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x) @ self.w_lora_A.t() @ self.w_lora_B.t() * self.scaling


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None
