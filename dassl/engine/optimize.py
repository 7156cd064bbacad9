"""Precision and the one optimizer step of the project."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dassl import distributed
from dassl.utils.logger import log

PRECISIONS = ("fp32", "bf16", "fp16", "amp", "auto")


class Precision(NamedTuple):
    """Types of a computation; what is learned is fp32 in all of them."""

    dtype: torch.dtype  # of the frozen weights
    autocast_dtype: torch.dtype | None  # None: no autocast

    @property
    def name(self) -> str:
        """What is computed in, for results: "fp32", "bf16", "fp16", or such as "bf16 autocast"."""
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        if self.autocast_dtype is None:
            return names[self.dtype]
        return f"{names[self.autocast_dtype]} autocast"


def device_of(cfg: Any) -> torch.device:
    """Return the device of a run: the GPU, if there is one and USE_CUDA is on."""
    return torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")


def fastest(device: torch.device) -> str:
    """Name the precision that PREC auto means on a device.

    That is bf16 where the device has instructions that multiply it, fp16 on older GPUs, else fp32.
    Nothing is timed: one machine gives one answer, whatever else it does meanwhile, as a run that
    is resumed there must find the same.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 and torch.backends.mkldnn.is_available() else "fp32"


def precision(prec: str, device: torch.device) -> Precision:
    """Return the types that one of ``PRECISIONS`` means on a device.

    A CPU has no fp16: "fp16" is fp32 there and "amp" is bf16 autocast, which is logged. "auto" is
    the ``fastest``.
    """
    if prec == "auto":
        prec = fastest(device)
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
    losses: Iterable[Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Compute the gradients of a sum of losses and take one step with each optimizer.

    In several processes the gradients are the means over all of them.

    Args:
        losses: one number each, which is not looked at; the gradients of one are computed before
            the next is asked for, so that only one at a time needs memory.
        optimizers: of all that the losses are to change.
        scaler: keeps gradients in fp16 from vanishing, and skips a step whose gradients overflow.
    """
    compute_gradients(losses, optimizers, scaler)
    distributed.average(gradients_of(optimizers))
    change(optimizers, scaler)


def compute_gradients(
    losses: Iterable[Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Compute the gradients of a sum of losses, those of this process alone."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    for loss in losses:
        (loss if scaler is None else scaler.scale(loss)).backward()


def change(
    optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler | None = None
) -> None:
    """Take one step with each optimizer by the gradients that there are."""
    for optimizer in optimizers:
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
    if scaler is not None:
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
        parts: in how many a step is to compute its batch.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
        parts: int = 1,
    ) -> None:
        self.optimizer, self.scaler, self.parts = optimizer, scaler, parts

    def __call__(self, loss: Tensor) -> None:
        self.on_sum([loss])

    def on_sum(self, losses: Iterable[Tensor]) -> None:
        """Take one step on the sum of losses, which are made one after the other."""
        optimizer_step(losses, [self.optimizer], self.scaler)

    @property
    def lr(self) -> float:
        """The current learning rate, that of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def gradients(
        self, loss: Tensor, tensors: Sequence[Tensor], keep_graph: bool = False
    ) -> list[Tensor]:
        """Return the gradients of a loss, computed as for a step; nothing is changed.

        All are zero where one overflows in fp16, as the step would be skipped. With ``keep_graph``
        a step may be taken on another loss of the same forward pass.
        """
        if self.scaler is None:
            gradients = list(torch.autograd.grad(loss, tensors, retain_graph=keep_graph))
            distributed.average(gradients)
            return gradients
        scale = self.scaler.scale(torch.ones_like(loss))
        scaled = torch.autograd.grad(loss * scale, tensors, retain_graph=keep_graph)
        distributed.average(scaled)
        finite = torch.stack([gradient.isfinite().all() for gradient in scaled]).all()
        return [torch.where(finite, gradient / scale, 0.0) for gradient in scaled]
