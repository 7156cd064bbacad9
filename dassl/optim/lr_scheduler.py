"""Learning-rate schedules by name, stepped once an epoch, with a warm-up before them."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

from dassl.errors import check_choice
from dassl.optim.optimizer import complete
from dassl.utils.logger import log

SCHEDULERS = ("single_step", "multi_step", "cosine")
WARMUPS = ("linear", "constant")


class _WarmupScheduler(LRScheduler):
    """Sets the rates of the warm-up epochs, then hands over to ``successor``.

    The successor is not stepped during the warm-up: the first epoch after it has the successor's
    first rate.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self) -> list[float]:
        raise NotImplementedError

    def get_lr(self) -> list[float]:  # type: ignore[override]
        if self.last_epoch >= self.warmup_epoch:
            return list(self.successor.get_last_lr())  # type: ignore[arg-type]
        return self.warmup_lr()

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step()
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["successor"] = self.successor.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = dict(state_dict)
        self.successor.load_state_dict(own.pop("successor"))
        super().load_state_dict(own)


class ConstantWarmupScheduler(_WarmupScheduler):
    """Warm-up at the fixed rate ``cons_lr``."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[float]:
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_WarmupScheduler):
    """Warm-up at ``min_lr`` in the first epoch, then epoch / warmup_epoch of the full rate."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [float(rate) * self.last_epoch / self.warmup_epoch for rate in self.base_lrs]


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Build the schedule that ``cfg.OPTIM`` names.

    The rates are the public toolbox's, epoch by epoch: with a warm-up of w epochs a cosine over
    MAX_EPOCH starts at epoch w from its beginning (WARMUP_RECOUNT) or from its own epoch w.

    Args:
        optimizer: whose rates it sets.
        optim_cfg: ``cfg.OPTIM``, or another such node; keys that it lacks have their defaults.

    Raises:
        UserError: a name is unknown.
    """
    optim_cfg = complete(optim_cfg)
    name = optim_cfg.LR_SCHEDULER
    check_choice("OPTIM.LR_SCHEDULER", name, SCHEDULERS)
    stepsize = optim_cfg.STEPSIZE
    scheduler: LRScheduler
    if name == "cosine":
        scheduler = CosineAnnealingLR(optimizer, optim_cfg.MAX_EPOCH)
    elif name == "multi_step":
        scheduler = MultiStepLR(optimizer, milestones=list(stepsize), gamma=optim_cfg.GAMMA)
    else:
        size = stepsize[-1] if isinstance(stepsize, (list, tuple)) else stepsize
        if size <= 0:
            size = optim_cfg.MAX_EPOCH
        scheduler = StepLR(optimizer, step_size=size, gamma=optim_cfg.GAMMA)

    warmup_epoch = optim_cfg.WARMUP_EPOCH
    if warmup_epoch <= 0:
        return scheduler
    if warmup_epoch >= optim_cfg.MAX_EPOCH:
        log.warning(
            f"OPTIM.WARMUP_EPOCH: {warmup_epoch} is not less than OPTIM.MAX_EPOCH "
            f"{optim_cfg.MAX_EPOCH}, so the whole training is warm-up"
        )
    check_choice("OPTIM.WARMUP_TYPE", optim_cfg.WARMUP_TYPE, WARMUPS)
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = warmup_epoch
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, warmup_epoch, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, scheduler, warmup_epoch, optim_cfg.WARMUP_MIN_LR)
