"""The folder of a run: the names of its files, whether training in it is over, its results.

A run leaves in its output folder: log.txt, config.yaml, tensorboard/, results.json,
<model name>/model.pth.tar-<epoch>, what its recorders keep (predictions.npz always) and, while it
is not finished, resume.pth.tar.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from dassl.evaluation.predictions import PREDICTIONS_FILE
from dassl.metrics import BUILT_IN
from dassl.utils.logger import log
from dassl.utils.tools import atomic_write, mkdir_if_missing, package_versions, write_json

CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
RESUME_FILE = "resume.pth.tar"
TENSORBOARD_FOLDER = "tensorboard"
BEST_CHECKPOINT = "model-best.pth.tar"


def epoch_checkpoint(epoch: int) -> str:
    """Return the file name of the checkpoint after so many epochs."""
    return f"model.pth.tar-{epoch}"


def is_finished(folder: str, models: Iterable[str], max_epoch: int) -> bool:
    """Tell whether the folder holds every model after its last epoch, and nothing to resume."""
    files = [os.path.join(folder, name, epoch_checkpoint(max_epoch)) for name in models]
    resumable = os.path.isfile(os.path.join(folder, RESUME_FILE))
    return bool(files) and not resumable and all(map(os.path.isfile, files))


def begin(folder: str, config: dict[str, Any]) -> None:
    """Make the folder ready for training: config.yaml is in it, and no results yet."""
    mkdir_if_missing(folder)
    remove_if_there(folder, RESULTS_FILE)  # it tells that a run is finished
    remove_if_there(folder, PREDICTIONS_FILE)
    with atomic_write(os.path.join(folder, CONFIG_FILE)) as file:
        yaml.safe_dump(config, file)


def read_config(folder: str) -> dict[str, Any] | None:
    """Return the config of the run as nested plain dicts, None where the folder has none."""
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)


def remove_if_there(folder: str, name: str) -> None:
    """Remove a file of the run that may not be there."""
    path = os.path.join(folder, name)
    if os.path.exists(path):
        os.unlink(path)


def open_tensorboard(folder: str, purge_step: int | None) -> Any:
    """Open TensorBoard files to write to; points from ``purge_step`` on are dropped."""
    from torch.utils.tensorboard import SummaryWriter

    log.info(f"Initialize tensorboard (log_dir={folder})")
    return SummaryWriter(log_dir=folder, purge_step=purge_step)


def write_results(
    folder: str,
    results: Mapping[str, float],
    summary: Mapping[str, Any],
    config: dict[str, Any],
    split: str | None,
    epoch: int,
    wall_time_s: float,
) -> None:
    """Write results.json: the figures and all that is needed to tell whose they are.

    A built-in metric that neither ``results`` nor ``summary`` has is null there.

    Args:
        folder: of the run.
        results: what the evaluator gave; empty where TEST.NO_TEST left the test out.
        summary: its further figures.
        config: of the run, as nested plain dicts.
        split: what was evaluated on.
        epoch: number of epochs that the evaluated weights were trained for.
        wall_time_s: seconds that the run has taken.
    """
    figures = {("error" if k == "error_rate" else k): float(v) for k, v in results.items()}
    record = {
        **dict.fromkeys(BUILT_IN),
        **figures,
        **summary,
        "split": split,
        "trainer": config["TRAINER"]["NAME"],
        "dataset": config["DATASET"]["NAME"],
        "seed": config["SEED"],
        "epoch": epoch,
        "wall_time_s": round(wall_time_s, 3),
        "versions": package_versions(),
        "config": config,
    }
    path = os.path.join(folder, RESULTS_FILE)
    write_json(record, path)
    log.info(f"Results are saved to {path}")
