"""The registries of trainers and recorders, and the training loop."""

from dassl.compat import __getattr__
from dassl.engine.build import TRAINER_REGISTRY, build_trainer, check_cfg
from dassl.engine.recorders import RECORDER_REGISTRY, Recorder
from dassl.engine.trainer import SimpleTrainer, TrainerBase, TrainerX

__all__ = [
    "RECORDER_REGISTRY",
    "TRAINER_REGISTRY",
    "Recorder",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "build_trainer",
    "check_cfg",
]
