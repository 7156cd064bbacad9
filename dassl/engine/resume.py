"""What an interrupted run needs to resume as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dassl import distributed
from dassl.engine.checkpoints import check_classes, check_finite
from dassl.engine.run_folder import RESUME_FILE
from dassl.engine.same_run import check_same_config, check_same_run, read_config
from dassl.errors import UserError
from dassl.utils.places import remove_if_there
from dassl.utils.torchtools import load_checkpoint, save_torch_file

# The file is written only when at least this many times as long has passed as writing it takes,
# so that large models spend no noticeable time on it.
SAVE_INTERVAL = 10.0
DIGEST = "digest"  # of everything else in the file


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
    class_names: Sequence[str],
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Make the content of the resume file: only tensors and plain values, and a digest of them.

    Args:
        config: as nested plain dicts.
        epoch: number of epochs done.
        models: tensors of each model, by its name.
        optimizers, schedulers: of each model, None where it has none.
        scaler: the ``GradScaler``, or None.
        best_result: on validation images so far, in percent.
        elapsed_s: seconds that the run has taken.
        class_names: of training, by label.
        extra: the trainer's own ``extra_state``.

    Raises:
        UserError: a tensor of a model is not finite.
    """
    for tensors in models.values():
        check_finite(tensors, epoch)
    state = {
        "config": json.dumps(config),
        "epoch": epoch,
        "models": dict(models),
        "optimizers": {name: _state(owner) for name, owner in optimizers.items()},
        "schedulers": {name: _state(owner) for name, owner in schedulers.items()},
        "scaler": _state(scaler),
        "random": random_state(),
        "best_result": best_result,
        "elapsed_s": elapsed_s,
        "class_names": list(class_names),
        "extra": extra,
    }
    return {**state, DIGEST: digest_of(state)}


def digest_of(value: Any) -> str:
    """Return a digest of nested plain values and tensors, their types included."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, Mapping):
        yield b"{"
        for key, item in value.items():
            yield from _parts(key)
            yield from _parts(item)
        yield b"}"
    elif isinstance(value, (list, tuple)):
        yield b"["
        for item in value:
            yield from _parts(item)
        yield b"]"
    else:
        yield f"{type(value).__name__} {value!r};".encode()


def find_state(
    folder: str,
    config: dict[str, Any],
    models: Sequence[str],
    max_epoch: int,
    class_names: Sequence[str],
) -> dict[str, Any] | None:
    """Read the resume file of a run with this config, models of these names and these classes.

    A file of a version that wrote no digest is read, too.

    Returns:
        What ``make_state`` made, or None where the folder has no such file.

    Raises:
        UserError: the file is corrupt, or belongs to another run.
    """
    kept = read_config(folder)
    if kept is not None:
        check_same_run(folder, kept, config)
    path = os.path.join(folder, RESUME_FILE)
    if not os.path.isfile(path):
        return None
    state = load_checkpoint(path)
    if not isinstance(state, dict):
        raise damaged(path)
    with restoring(path):
        digest = state.pop(DIGEST, None)
        if digest is not None and digest != digest_of(state):
            raise damaged(path)
        check_classes(state.get("class_names", []), class_names, path)
        check_same_config(json.loads(state["config"]), config, path)
        if set(state["models"]) != set(models):
            raise UserError(
                f"resume file '{path}': expected the models {', '.join(models)}, "
                f"got {', '.join(state['models'])}"
            )
        if state["epoch"] not in range(1, max_epoch):
            raise UserError(
                f"resume file '{path}': expected 1 to {max_epoch - 1} epochs, got {state['epoch']}"
            )
    return state


def damaged(path: str) -> UserError:
    """Make the error for a resume file that cannot be used."""
    return UserError(f"resume file '{path}' is damaged; delete it to train from scratch")


@contextmanager
def restoring(path: str) -> Iterator[None]:
    """Take any error within the block for damage of the resume file, but for a ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever a value of another type or form leads to
        raise damaged(path) from error


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

    @distributed.by_first
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
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put all global generators back to what ``random_state`` gave."""
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    words = keys.numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    # A process computes on one GPU, the first one where it is alone. Older files have all of them.
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


def share_random_state() -> None:
    """Let several processes draw the same numbers from now on, those of the first one."""
    if distributed.count() > 1:
        set_random_state(distributed.from_first(random_state))


def _state(owner: Any) -> Any:
    return None if owner is None else owner.state_dict()
