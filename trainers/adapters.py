"""Small modules that a method puts into a ``clip.Layer``, where they act on each position alone, or
behind a tower."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl import distributed

REDUCTION = 4  # the inner width of adapters on output features is a fraction of the outer one


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


class OutputAdapter(nn.Module):
    """Bottleneck on output features, without biases, with a ReLU at its end, too."""

    def __init__(self, width: int):
        super().__init__()
        inner = width // REDUCTION
        self.fc = nn.Sequential(
            nn.Linear(width, inner, bias=False),
            nn.ReLU(),
            nn.Linear(inner, width, bias=False),
            nn.ReLU(),
        )

    def forward(self, features: Tensor, share: float) -> Tensor:
        """Blend unit features (N, d) with what the bottleneck makes of them: unit (N, d).

        The public code blends features of any length.  Without biases the bottleneck of a
        multiple is the multiple of the bottleneck, so the directions are the same.
        """
        return F.normalize(share * self.fc(features) + (1 - share) * features, dim=-1)
