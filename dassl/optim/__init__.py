"""Optimizers and learning-rate schedules by name."""

from dassl.optim.lr_scheduler import (
    SCHEDULERS,
    WARMUPS,
    ConstantWarmupScheduler,
    LinearWarmupScheduler,
    build_lr_scheduler,
)
from dassl.optim.optimizer import OPTIMIZERS, build_optimizer

__all__ = [
    "OPTIMIZERS",
    "SCHEDULERS",
    "WARMUPS",
    "ConstantWarmupScheduler",
    "LinearWarmupScheduler",
    "build_lr_scheduler",
    "build_optimizer",
]
