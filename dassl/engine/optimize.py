"""Precision and the one optimizer step of the project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dassl import distributed
from dassl.utils.logger import log

PRECISIONS = ("fp32", "bf16", "fp16", "amp")


class Precision(NamedTuple):
    """Types of a computation; what is learned is fp32 in all of them."""

    dtype: torch.dtype  # of the frozen weights
    autocast_dtype: torch.dtype | None  # None: no autocast


def precision(prec: str, device: torch.device) -> Precision:
    """Return the types that one of ``PRECISIONS`` means on a device.

    A CPU has no fp16: "fp16" is fp32 there and "amp" is bf16 autocast, which is logged.
    """
    if device.type == "cpu" and prec in ("fp16", "amp"):
        used = "fp32" if prec == "fp16" else "bf16 autocast"
        log.info(f"PREC {prec}: fp16 is not available on a CPU, {used} is used instead")
        return Precision(torch.float32, None if prec == "fp16" else torch.bfloat16)
    return {
        "fp32": Precision(torch.float32, None),
        "bf16": Precision(torch.bfloat16, None),
        "fp16": Precision(torch.float16, None),
        "amp": Precision(torch.float32, torch.float16),
    }[prec]


def grad_scaler(types: Precision, device: torch.device) -> torch.amp.GradScaler | None:
    """Make the scaler that gradients in fp16 need; None where fp16 is not used."""
    return torch.amp.GradScaler(device.type) if torch.float16 in types else None


def optimizer_step(
    loss: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Compute the gradients of a loss and take one step with each optimizer.

    In several processes the gradients are the means over all of them.

    Args:
        loss: one number; it is not looked at.
        optimizers: of all that the loss is to change.
        scaler: keeps gradients in fp16 from vanishing, and skips a step whose gradients overflow.
    """
    for optimizer in optimizers:
        optimizer.zero_grad()
    (loss if scaler is None else scaler.scale(loss)).backward()
    distributed.average(gradients_of(optimizers))
    if scaler is None:
        for optimizer in optimizers:
            optimizer.step()
    else:
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()


def gradients_of(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """Return the gradients of all that the optimizers change, as far as there are any."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    tensors = (tensor for group in groups for tensor in group["params"])
    return [tensor.grad for tensor in tensors if tensor.grad is not None]


class Update:
    """One optimizer step on a loss, when called; a method's training step is handed one.

    Args:
        optimizer: of all that is learned.
        scaler: as for ``optimizer_step``.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        self.optimizer, self.scaler = optimizer, scaler

    def __call__(self, loss: Tensor) -> None:
        optimizer_step(loss, [self.optimizer], self.scaler)

    @property
    def lr(self) -> float:
        """The current learning rate, that of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def gradients(self, loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of a loss, computed as for a step; nothing is changed.

        All are zero where one overflows in fp16, as the step would be skipped.
        """
        if self.scaler is None:
            gradients = list(torch.autograd.grad(loss, tensors))
            distributed.average(gradients)
            return gradients
        scale = self.scaler.scale(torch.ones_like(loss))
        scaled = torch.autograd.grad(loss * scale, tensors)
        distributed.average(scaled)
        finite = torch.stack([gradient.isfinite().all() for gradient in scaled]).all()
        return [torch.where(finite, gradient / scale, 0.0) for gradient in scaled]
