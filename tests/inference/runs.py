"""Runs on the toy dataset, each trained once."""

from __future__ import annotations

from pathlib import Path

import train
from tests.trainers import toy


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
