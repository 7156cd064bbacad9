"""The registry of trainers and the training loop."""

from dassl.engine.build import TRAINER_REGISTRY, build_trainer, check_cfg
from dassl.engine.trainer import SimpleTrainer, TrainerBase, TrainerX

__all__ = [
    "TRAINER_REGISTRY",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "build_trainer",
    "check_cfg",
]
