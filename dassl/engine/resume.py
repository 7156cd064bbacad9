"""What an interrupted run needs to resume as if it had never stopped."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dassl.config import first_difference
from dassl.engine.run_folder import RESUME_FILE
from dassl.errors import UserError
from dassl.utils.places import remove_if_there
from dassl.utils.torchtools import load_checkpoint, save_torch_file

# Config keys that may change between a run and its continuation: they say where things are and
# what is shown or kept, not what is learned. The switches TEST.SAVE_* may change, too.
FREE_KEYS = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE_MB",
    "DATALOADER.TEST.BATCH_SIZE",
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
# The file is written only when at least this many times as long has passed as writing it takes,
# so that large models spend no noticeable time on it.
SAVE_INTERVAL = 10.0


def check_same_config(old: dict[str, Any] | None, new: dict[str, Any], place: str) -> None:
    """Check that a run is resumed with its own config, apart from the free keys.

    Args:
        old, new: configs as nested plain dicts; None for an old one that is not known.
        place: file or folder that the old one was read from, for the error message.

    Raises:
        UserError: a key differs.
    """
    if old is None:
        return
    switches = (f"TEST.{key}" for key in new["TEST"] if key.startswith("SAVE_"))
    difference = first_difference(old, new, (*FREE_KEYS, *switches))
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"{key}: expected {before!r}, as in the run in '{place}', got {now!r}; "
            "choose another OUTPUT_DIR, or remove the old run"
        )


def make_state(
    *,
    config: dict[str, Any],
    epoch: int,
    models: Mapping[str, Mapping[str, Tensor]],
    optimizers: Mapping[str, Any],
    schedulers: Mapping[str, Any],
    scaler: Any,
    best_result: float,
    elapsed_s: float,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Make the content of the resume file: only tensors and plain values.

    Args:
        config: as nested plain dicts.
        epoch: number of epochs done.
        models: tensors of each model, by its name.
        optimizers, schedulers: of each model, None where it has none.
        scaler: the ``GradScaler``, or None.
        best_result: on validation images so far, in percent.
        elapsed_s: seconds that the run has taken.
        extra: the trainer's own ``extra_state``.
    """
    return {
        "config": json.dumps(config),
        "epoch": epoch,
        "models": dict(models),
        "optimizers": {name: _state(owner) for name, owner in optimizers.items()},
        "schedulers": {name: _state(owner) for name, owner in schedulers.items()},
        "scaler": _state(scaler),
        "random": random_state(),
        "best_result": best_result,
        "elapsed_s": elapsed_s,
        "extra": extra,
    }


def find_state(folder: str, config: dict[str, Any], models: Sequence[str]) -> dict[str, Any] | None:
    """Read the resume file of a run with this config and models of these names.

    Returns:
        What ``make_state`` made, or None where the folder has no such file.

    Raises:
        UserError: the file is corrupt, or belongs to another run.
    """
    path = os.path.join(folder, RESUME_FILE)
    if not os.path.isfile(path):
        return None
    state = load_checkpoint(path)
    if not isinstance(state, dict) or "random" not in state:
        raise UserError(f"resume file '{path}': expected the state of a run, got something else")
    check_same_config(json.loads(state["config"]), config, path)
    if set(state["models"]) != set(models):
        raise UserError(
            f"resume file '{path}': expected the models {', '.join(models)}, "
            f"got {', '.join(state['models'])}"
        )
    return state


def restore_optimization(
    state: dict[str, Any],
    optimizers: Mapping[str, Any],
    schedulers: Mapping[str, Any],
    scaler: Any,
) -> None:
    """Put optimizers, schedules and scaler back to where a resume file has them."""
    for owners, kept in ((optimizers, state["optimizers"]), (schedulers, state["schedulers"])):
        for name, owner in owners.items():
            if owner is not None:
                owner.load_state_dict(kept[name])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])


class ResumeWriter:
    """Writes a run's resume file as often as costs no noticeable time."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._cost = 0.0

    def save(self, folder: str, state: Callable[[], dict[str, Any]] | None) -> None:
        """Write ``state()``, unless the last time was too recent for what it cost.

        None says that the run is over, and removes the file.
        """
        if state is None:
            remove_if_there(folder, RESUME_FILE)
            return
        begin = time.monotonic()
        if self._last is not None and begin - self._last < SAVE_INTERVAL * self._cost:
            return
        save_torch_file(state(), os.path.join(folder, RESUME_FILE))
        self._last = time.monotonic()
        self._cost = self._last - begin


def random_state() -> dict[str, Any]:
    """Return the states of all global generators, as tensors and plain values."""
    numpy_state: Any = np.random.get_state(legacy=True)
    _, keys, position, has_gauss, cached = numpy_state
    version, values, gauss = random.getstate()
    return {
        "python": [version, list(values), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put all global generators back to what ``random_state`` gave."""
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    words = keys.numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    # on a machine with another number of GPUs a run resumes with other random numbers there
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _state(owner: Any) -> Any:
    return None if owner is None else owner.state_dict()
