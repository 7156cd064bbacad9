"""Optimizers for public files that make theirs themselves; ``build_optimizer`` uses torch's.

They take what the public toolbox's take. Where an option has no counterpart in torch, only its
default is accepted.
"""

from __future__ import annotations

from typing import Any

import torch

from dassl.errors import UserError


class RAdam(torch.optim.RAdam):
    """Torch's RAdam, with the weight decay taken off the weights."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        degenerated_to_sgd: bool = True,
    ) -> None:
        if not degenerated_to_sgd:
            raise UserError("degenerated_to_sgd: expected True, got False")
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)


class PlainRAdam(RAdam):
    """The same: the public toolbox has a second implementation of it."""


class AdamW(torch.optim.AdamW):
    """Torch's AdamW, without weight decay by default."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup: int = 0,
    ) -> None:
        if warmup:
            raise UserError(f"warmup: expected 0 (OPTIM.WARMUP_EPOCH has one), got {warmup}")
        super().__init__(params, lr, betas, eps, weight_decay)
