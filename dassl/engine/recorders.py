"""What is kept of the final evaluation besides its figures.

``TEST.RECORD`` names what; "predictions" is always kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.distributed import by_first
from dassl.errors import UserError, check_choice
from dassl.evaluation.evaluator import CMAT_FILE
from dassl.evaluation.predictions import PREDICTIONS_FILE, pack_logits, write_predictions
from dassl.utils.logger import log
from dassl.utils.places import check_files, remove_if_there
from dassl.utils.registry import Registry
from dassl.utils.tools import atomic_write

RECORDER_REGISTRY = Registry("RECORDER")

_ALWAYS = ("predictions",)
_SWITCH = "SAVE_"  # TEST.SAVE_LOGITS True asks for the recorder "logits"


class Recorder:
    """Sees each batch of the final evaluation and writes a file when it is over.

    A subclass registers itself under a lower-case name. It writes only in ``finish``, and
    atomically, so that an interrupted evaluation leaves nothing.

    Args:
        trainer: the one that evaluates; its attributes may be read.

    Attributes:
        trainers: names of the trainers that it is for; empty: all.
        file: name of the file that it writes in the run's folder; "" where that is not known.
        reads: names of those of the trainer's ``features`` that ``batch`` reads.
    """

    trainers: tuple[str, ...] = ()
    file: str = ""
    reads: tuple[str, ...] = ()

    @classmethod
    def check(cls, cfg: CfgNode) -> None:
        """Raise ``UserError`` for settings that it cannot work with; no data has been read."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def batch(self, batch: Any, output: Tensor) -> None:
        """Take a batch of the loader and its logits (n, classes).

        In several processes the batch has labels, domains, paths and indices, and no images.
        """

    def finish(self) -> None:
        """Write what is to be kept, after the last batch and before results.json is written."""


def asked_by(cfg: CfgNode, name: str) -> str:
    """Name the key that asks for a recorder: "TEST.SAVE_LOGITS is True"."""
    switch = _SWITCH + name.upper()
    if cfg.TEST.get(switch):
        return f"TEST.{switch} is {cfg.TEST[switch]}"
    return f"TEST.RECORD has '{name}'"


def chosen_recorders(cfg: CfgNode, trainer: type) -> list[type[Recorder]]:
    """Return those always on, and those that TEST.RECORD and the switches TEST.SAVE_* ask for.

    Args:
        cfg: the config.
        trainer: class of the trainer; recorders of its base classes are for it, too.

    Raises:
        UserError: a name is unknown, or its recorder is not for this trainer or these settings,
            or cannot write its file.
    """
    for name in cfg.TEST.RECORD:
        check_choice("TEST.RECORD", name, RECORDER_REGISTRY.registered_names())
    switches = [key for key, value in cfg.TEST.items() if key.startswith(_SWITCH) and value]
    names = [*_ALWAYS, *cfg.TEST.RECORD, *(key.removeprefix(_SWITCH).lower() for key in switches)]
    known = {name: RECORDER_REGISTRY.get(name) for name in RECORDER_REGISTRY.registered_names()}
    bases = {base.__name__ for base in trainer.__mro__}
    chosen = []
    for name in dict.fromkeys(names):
        recorder: type[Recorder] | None = known.get(name)
        able = recorder.trainers if recorder is not None else ()
        if recorder is None or (able and not bases & set(able)):
            raise UserError(
                f"{asked_by(cfg, name)}, but the trainer is {trainer.__name__}; "
                f"it is for {', '.join(able) or 'no trainer here'}"
            )
        recorder.check(cfg)
        check_files(cfg.OUTPUT_DIR, filter(None, [recorder.file]))
        chosen.append(recorder)
    return chosen


@by_first
def finish(recorders: Sequence[Recorder], cfg: CfgNode) -> None:
    """Let the recorders of an evaluation write; say what it leaves of an earlier one."""
    for recorder in recorders:
        recorder.finish()
    known = {RECORDER_REGISTRY.get(name).file for name in RECORDER_REGISTRY.registered_names()}
    known -= {recorder.file for recorder in recorders}
    if not cfg.TEST.COMPUTE_CMAT:
        known.add(CMAT_FILE)
    places = (os.path.join(cfg.OUTPUT_DIR, file) for file in sorted(known) if file)
    for path in filter(os.path.isfile, places):
        log.info(f"{path} is still that of an earlier evaluation")


@RECORDER_REGISTRY.register("logits")
class LogitsRecorder(Recorder):
    """Writes logits.npz: logits (n, classes), labels (n) and impaths (n)."""

    file = "logits.npz"

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.paths: list[str] = []

    def batch(self, batch: Any, output: Tensor) -> None:
        self.logits.append(output.float().cpu())
        self.labels.append(batch["label"].cpu())
        self.paths.extend(batch["impath"])

    def finish(self) -> None:
        path = os.path.join(self.trainer.output_dir, self.file)
        with atomic_write(path, "wb") as file:
            np.savez_compressed(
                file,
                logits=torch.cat(self.logits).numpy(),
                labels=torch.cat(self.labels).numpy(),
                impaths=np.array(self.paths),
            )
        log.info(f"Logits are saved to {path}")


@RECORDER_REGISTRY.register("predictions")
class PredictionsRecorder(Recorder):
    """Writes predictions.npz, as ``dassl.evaluation.predictions`` describes it.

    Where batches or outputs are not those of a classifier, as in somebody's own trainer, it
    writes nothing.
    """

    file = PREDICTIONS_FILE

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.packed: list[dict[str, np.ndarray]] = []
        self.labels: list[np.ndarray] = []
        self.paths: list[str] = []
        self.is_able = True

    def batch(self, batch: Any, output: Tensor) -> None:
        self.is_able = self.is_able and _is_classification(batch, output)
        if self.is_able:
            self.n_classes = output.shape[1]
            self.packed.append(pack_logits(output, batch["label"].to(output.device)))
            self.labels.append(batch["label"].cpu().numpy())
            self.paths.extend(batch["impath"])

    def finish(self) -> None:
        path = os.path.join(self.trainer.output_dir, PREDICTIONS_FILE)
        if not self.is_able:
            remove_if_there(self.trainer.output_dir, PREDICTIONS_FILE)
            log.info(f"{path} is not written: the batches lack a label and a path for each image")
            return
        names, root = self.trainer.lab2cname, self.trainer.cfg.DATASET.ROOT
        class_names = [names.get(label, str(label)) for label in range(self.n_classes)]
        arrays = {
            name: np.concatenate([part[name] for part in self.packed]) for name in self.packed[0]
        }
        labels = np.concatenate(self.labels)
        with atomic_write(path, "wb") as file:
            write_predictions(file, self.paths, root, labels, class_names, arrays)


def _is_classification(batch: Any, output: Any) -> bool:
    """Return whether there are logits, a label among them and a path for each image."""
    if not isinstance(batch, Mapping) or not isinstance(output, Tensor) or output.dim() != 2:
        return False
    labels, paths = batch.get("label"), batch.get("impath", ())
    if not isinstance(labels, Tensor) or labels.shape != (len(output),):
        return False
    is_known = bool(((labels >= 0) & (labels < output.shape[1])).all())
    return is_known and len(paths) == len(output)
