"""Runs on the toy dataset, each trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

import train
import trainers  # noqa: F401  (registers the methods)
from dassl.engine import TRAINER_REGISTRY
from tests.trainers import toy
from trainers.trainer import MethodTrainer


def _of_the_library(name: str) -> bool:
    trainer = TRAINER_REGISTRY.get(name)
    return issubclass(trainer, MethodTrainer) and trainer.method.__module__.startswith("trainers.")


def methods(*fast: str) -> list:
    """Return all methods of the library as parameters of a test, slow ones but for some."""
    return [
        pytest.param(name, marks=() if name in fast else pytest.mark.slow)
        for name in sorted(filter(_of_the_library, TRAINER_REGISTRY.registered_names()))
    ]


class Runs:
    """Trains methods on the first two colors, red and green, and evaluates them on the others."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.backbone = toy.write_backbone(folder / "tiny.pt")

    def trained(self, trainer: str) -> Path:
        return self._start(trainer, trainer, "base")

    def evaluated(self, trainer: str) -> Path:
        """Return the folder of the evaluation on blue and grey."""
        flags = ("--eval-only", "--model-dir", str(self.trained(trainer)))
        return self._start(trainer, f"{trainer}-new", "new", *flags)

    def _start(self, trainer: str, name: str, classes: str, *flags: str) -> Path:
        output = self.folder / name
        if not output.exists():
            whose = (trainer, self.data, self.backbone, output)
            pairs = ("DATASET.SUBSAMPLE_CLASSES", classes, "TEST.RECORD", "['logits']")
            assert train.main([*flags, *toy.command_line(*whose, *pairs, epochs=1)]) == 0
        return output
