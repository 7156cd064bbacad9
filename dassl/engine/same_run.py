"""Whether the run that a folder belongs to has the settings of the present one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from typing import Any

from dassl import distributed
from dassl.config import first_difference, read_yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine.build import settings_read
from dassl.engine.run_folder import (
    CONFIG_FILE,
    RESULTS_FILE,
    RESUME_FILE,
    epoch_checkpoint,
)
from dassl.errors import UserError
from dassl.utils.tools import read_json

# Config keys that may change between a run and its continuation: they say where things are and
# what is shown or kept, not what is learned. The switches TEST.SAVE_* may change, too. Two of them
# are not always free, see ``_is_free``.
FREE_KEYS = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "TRACKER",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE_MB",
    "DATALOADER.FEATURES_MB",
    "DATALOADER.FEATURES_DIR",
    "DATALOADER.TEST.BATCH_SIZE",
    "MODEL.RECOMPUTE",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    "TEST.METRICS",
    "TEST.NO_TEST",
    "TEST.RECORD",
    "TEST.SPLIT",
    "TEST.SUBSAMPLE_CLASSES",
)


def check_output(folder: str, config: dict[str, Any], evaluates: bool = False) -> None:
    """Check that a run may write into a folder: a new one, or that of a run with its settings.

    Nothing but the settings kept in the folder is read.

    Args:
        folder: of the run.
        config: as nested plain dicts.
        evaluates: whether the run only evaluates. Then the folder must not be that of a training
            run, whose results.json is to stay.

    Raises:
        UserError: the folder belongs to another run; the message says which key differs.
    """
    if evaluates and os.path.lexists(os.path.join(folder, CONFIG_FILE)):
        raise UserError(
            "OUTPUT_DIR: expected another folder than that of a training run, whose results are "
            f"to stay, got '{folder}'"
        )
    kept = settings_in(folder)
    if kept is not None:
        check_same_run(folder, kept, config)
    elif not evaluates and _checkpoints(folder, "*"):
        raise UserError(
            f"OUTPUT_DIR: expected a new folder, or that of the same run, got '{folder}', which "
            f"has checkpoints and no {CONFIG_FILE}"
        )


def folder_to_resume(own: str, other: str, max_epoch: int) -> str:
    """Return the folder whose run is to be resumed.

    Args:
        own: folder of the run.
        other: the one that RESUME names; "" for none. A run that began as the continuation of
            another one continues from its own progress.
        max_epoch: of the run.
    """
    has_own = os.path.isfile(os.path.join(own, RESUME_FILE)) or _checkpoints(own, max_epoch)
    return own if has_own or not other else other


def agreed(epoch: int, folder: str) -> int:
    """Return the number of epochs done in a folder, if several processes have found the same.

    Raises:
        UserError: they have not, as the folder is not the same for all of them.
    """
    distributed.check_same(
        epoch,
        f"OUTPUT_DIR: expected a folder that the machines of all processes share, got '{folder}'",
    )
    return epoch


def finished_message(folder: str, max_epoch: int) -> str:
    """Say that the run in a folder has no epoch left, and how to go on from its model."""
    return (
        f"The run in {folder} is finished: not training again after {max_epoch} epochs, only "
        "evaluating; to go on from its model, set MODEL.INIT_WEIGHTS and another OUTPUT_DIR"
    )


def check_same_run(folder: str, kept: dict[str, Any], config: dict[str, Any]) -> None:
    """Check that the run in a folder, with the settings ``kept``, can be resumed with a config.

    Raises:
        UserError: a key differs, be it only the number of epochs of a finished run.
    """
    resume_file = os.path.join(folder, RESUME_FILE)
    is_resumable = os.path.isfile(resume_file)
    difference = _difference(kept, config)
    if difference is not None and difference[0] == "OPTIM.MAX_EPOCH" and not is_resumable:
        key, before, now = difference
        if models := _checkpoints(folder, before):
            raise UserError(
                f"{key}: expected {before}, as the run in '{folder}' is finished after {before} "
                f"epochs, got {now}; to go on from its model, set MODEL.INIT_WEIGHTS {models[0]} "
                "and another OUTPUT_DIR"
            )
    check_same_config(kept, config, resume_file if is_resumable else folder)


def check_same_config(old: dict[str, Any], new: dict[str, Any], place: str) -> None:
    """Check that a run is resumed with its own config, apart from the free keys.

    Args:
        old, new: configs as nested plain dicts.
        place: file or folder that the old one was read from, for the error message.

    Raises:
        UserError: a key differs.
    """
    difference = _difference(old, new)
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"{key}: expected {before!r}, as in the run in '{place}', got {now!r}; "
            "choose another OUTPUT_DIR, or remove the old run"
        )


def _difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, Any, Any] | None:
    switches = (f"TEST.{key}" for key in new["TEST"] if key.startswith("SAVE_"))
    free = (*(key for key in FREE_KEYS if _is_free(key, new)), *switches)
    old, new = _with_real_root(old), _with_real_root(new)
    # another trainer or dataset says more than the settings that differ because of it
    of_what = _difference_in((("TRAINER", "NAME"), ("DATASET", "NAME")), old, new)
    return of_what or first_difference(settings_read(old, new), settings_read(new, new), free)


def _difference_in(
    parts: Iterable[tuple[str, str]], old: dict[str, Any], new: dict[str, Any]
) -> tuple[str, Any, Any] | None:
    """Find the first difference in some parts (section, key) of two configs."""

    def part(config: dict[str, Any], section: str, key: str) -> dict[str, Any]:
        node = config.get(section)
        return {section: {key: node[key]}} if isinstance(node, dict) and key in node else {}

    found = (first_difference(part(old, *each), part(new, *each)) for each in parts)
    return next(filter(None, found), None)


def model_difference(
    folder: str, config: dict[str, Any], *nodes: str
) -> tuple[str, Any, Any] | None:
    """Find in what a model that is loaded from a run's folder had other settings there.

    Args:
        folder: of the run; nothing is found in one without a whole config.yaml.
        config: the present one, as nested plain dicts.
        nodes: names of the nodes of TRAINER with the method's settings.

    Returns:
        The key of the trainer, the backbone or a setting, with its old and its new value, or None.
    """
    try:
        kept = read_config(folder) or {}
    except UserError:
        return None
    settings = (("TRAINER", node) for node in nodes)
    parts = (("TRAINER", "NAME"), ("MODEL", "BACKBONE"), *settings)
    return _difference_in(parts, kept, config)


def _is_free(key: str, config: dict[str, Any]) -> bool:
    """Return whether a free key is free here, too.

    DATASET.ROOT is not where it is the dataset itself, and TEST.NO_TEST is not where it leaves out
    the evaluations that select the model.
    """
    if key == "DATASET.ROOT":
        dataset = DATASET_REGISTRY.get(config["DATASET"]["NAME"])
        return not getattr(dataset, "root_is_dataset", False)
    return key != "TEST.NO_TEST" or config["TEST"]["FINAL_MODEL"] != "best_val"


def _with_real_root(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with one name for each folder in DATASET.ROOT."""
    section = config.get("DATASET")
    if not isinstance(section, dict) or not isinstance(section.get("ROOT"), str):
        return config
    root = os.path.realpath(os.path.expanduser(section["ROOT"]))
    return {**config, "DATASET": {**section, "ROOT": root}}


def read_config(folder: str) -> dict[str, Any] | None:
    """Return the config of the run as nested plain dicts, None where the folder has none.

    Raises:
        UserError: the file is damaged.
    """
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(path):
        return None
    config = read_yaml(path)
    # what begin writes has its keys in alphabetical order: the last one shows that it is whole
    if not {"DATASET", "OPTIM", "VERSION"} <= config.keys():
        raise UserError(f"config file '{path}': expected the whole config of a run, got less")
    return config


def settings_in(folder: str) -> dict[str, Any] | None:
    """Return the config of a folder's training run or else of its evaluation; None without one."""
    config = read_config(folder)
    if config is not None:
        return config
    try:
        results = read_json(os.path.join(folder, RESULTS_FILE))
    except UserError:  # no results, or damaged ones, which the run replaces
        return None
    config = results.get("config") if isinstance(results, dict) else None
    return config if isinstance(config, dict) else None


def _checkpoints(folder: str, epoch: int | str) -> list[str]:
    """Return the paths of the checkpoints after so many epochs ("*": any) in a run's folder."""
    return sorted(glob.glob(os.path.join(glob.escape(folder), "*", epoch_checkpoint(epoch))))
