"""The folder of a run: its lock, its files, whether training in it is over, its results.

A run leaves in its output folder: log.txt, config.yaml, tensorboard/, results.json, classes.json
(of a ``Method``), <model name>/model.pth.tar-<epoch>, what its recorders keep (predictions.npz
always) and, while it is not finished, resume.pth.tar. While a process is at work there, .lock says
which one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import yaml

from dassl.distributed import by_first
from dassl.errors import UserError
from dassl.evaluation.predictions import PREDICTIONS_FILE
from dassl.metrics import BUILT_IN
from dassl.utils import places
from dassl.utils.logger import LOG_FILE, log
from dassl.utils.memory import peak_memory_mb
from dassl.utils.tools import atomic_write, mkdir_if_missing, package_versions, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
CLASSES_FILE = "classes.json"
CALIBRATION_FILE = "calibration.json"  # of inference/
RESUME_FILE = "resume.pth.tar"
TENSORBOARD_FOLDER = "tensorboard"
BEST_CHECKPOINT = "model-best.pth.tar"
FILES = (LOG_FILE, CONFIG_FILE, RESULTS_FILE, CLASSES_FILE, RESUME_FILE, PREDICTIONS_FILE)

ATTEMPT_INTERVAL_S = 0.1  # between two attempts to lock a folder
_locks: set[int] = set()  # descriptors of the lock files that this process has open


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Make the folder, and keep every other process out of it until the block or the process ends.

    What a killed process left half-written there is removed.

    The lock is the kernel's (``flock``) on the file .lock, which names process and host: it ends
    with this process, however that dies, even if processes forked from it live on. On NFS 4 it
    keeps out other machines, too, and of one that dies or is cut off the server drops it when the
    lease runs out; on NFS 3 it does unless mounted with ``nolock`` or ``local_lock``, and a dead
    machine's stays until that is up again. A file system without locks gets a warning and no
    lock, and so does Windows, without the warning.

    Raises:
        UserError: the folder or one of ``FILES`` cannot be written, or somebody (this process,
            too) holds the folder.
    """
    if fcntl is None:
        yield
        return
    path = os.path.join(folder, LOCK_FILE)
    try:
        os.makedirs(folder or ".", exist_ok=True)
        descriptor = _take(folder, path)
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR: expected a folder that can be written, got '{folder}': cannot write "
            f"'{error.filename or path}': {error.strerror}"
        ) from error
    try:
        places.remove_temporary_files(folder, LOCK_FILE)
        places.check_files(folder, FILES)
        yield
    finally:
        if descriptor in _locks:  # a forked process no longer has it
            with suppress(OSError):
                if _is_at(path, descriptor):
                    os.unlink(path)
            _close(descriptor)


def holder(folder: str) -> str | None:
    """Return who holds the folder, as "process 4711 on node3", or None where nobody does.

    None also where that is unknown: no locks, or a lock file that cannot be read.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(os.path.join(folder, LOCK_FILE), os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    _locks.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_name(descriptor)
    except OSError:
        return None
    finally:
        _close(descriptor)
    return None


def _take(folder: str, path: str) -> int:
    """Lock the file, which is made if it is missing, and return its descriptor.

    It takes several attempts, as whoever calls ``holder`` has the lock for a moment, whoever ends
    removes the file, and whoever has just begun has not written its name yet.
    """
    name = "another process"
    for attempt in range(5):
        time.sleep(ATTEMPT_INTERVAL_S if attempt else 0)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        _locks.add(descriptor)
        is_ours = False
        try:
            _lock(descriptor, folder)
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                is_ours = True
                return descriptor
        except (BlockingIOError, PermissionError):  # the latter on some network file systems
            name = _read_name(descriptor)
        finally:
            if not is_ours:
                _close(descriptor)
    raise UserError(
        f"OUTPUT_DIR: expected a folder that no other process uses, got '{folder}', which "
        f"{name} is using"
    )


def _lock(descriptor: int, folder: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError as error:
        log.warning(
            f"'{folder}' is on a file system without locks ({error.strerror}): nothing keeps a "
            "second process from using it"
        )


def _is_at(path: str, descriptor: int) -> bool:
    """Return whether the open file is the one that has this path now."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def _read_name(descriptor: int) -> str:
    """Read who wrote the lock file; who has just locked it may not have written yet."""
    return os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "another process"


def _close(descriptor: int) -> None:
    _locks.discard(descriptor)
    os.close(descriptor)


def _close_all() -> None:
    """Leave the locks to the process that this one was forked from."""
    while _locks:
        os.close(_locks.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_close_all)


def epoch_checkpoint(epoch: int | str) -> str:
    """Return the file name of the checkpoint after so many epochs."""
    return f"model.pth.tar-{epoch}"


def is_finished(folder: str, models: Iterable[str], max_epoch: int) -> bool:
    """Return whether the folder holds every model after its last epoch, and nothing to resume."""
    files = [os.path.join(folder, name, epoch_checkpoint(max_epoch)) for name in models]
    resumable = os.path.isfile(os.path.join(folder, RESUME_FILE))
    return bool(files) and not resumable and all(map(os.path.isfile, files))


@by_first
def begin(folder: str, config: dict[str, Any], models: Iterable[str]) -> None:
    """Make the folder ready for training: config.yaml is in it, and no results yet.

    Raises:
        UserError: the folder or that of a model, by its name, cannot be written.
    """
    mkdir_if_missing(folder)
    places.check_folders(folder, [TENSORBOARD_FOLDER, *models])
    for name in (RESULTS_FILE, PREDICTIONS_FILE, CLASSES_FILE, CALIBRATION_FILE):
        places.remove_if_there(folder, name)  # results mean that a run is finished
    with atomic_write(os.path.join(folder, CONFIG_FILE)) as file:
        yaml.safe_dump(config, file)


def open_tensorboard(folder: str, purge_step: int | None) -> Any:
    """Open TensorBoard files to write to; points from ``purge_step`` on are dropped."""
    from dassl.engine.curves import CurveWriter

    log.info(f"Initialize tensorboard (log_dir={folder})")
    return CurveWriter(log_dir=folder, purge_step=purge_step)


@by_first
def write_results(
    folder: str,
    results: Mapping[str, float],
    summary: Mapping[str, Any],
    config: dict[str, Any],
    split: str | None,
    epoch: int,
    wall_time_s: float,
    warnings: Sequence[str] = (),
) -> None:
    """Write results.json: the figures and everything needed to identify their run.

    A built-in metric that neither the evaluator's ``results`` (empty with TEST.NO_TEST) nor its
    ``summary`` of further figures has is null there. ``split`` and ``epoch`` say on what and after
    how many epochs the model was evaluated, ``warnings`` what to bear in mind with the figures.
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
        "peak_memory_mb": peak_memory_mb(),
        "warnings": list(warnings),
        "versions": package_versions(),
        "config": config,
    }
    write_json(record, path := os.path.join(folder, RESULTS_FILE))
    log.info(f"Results are saved to {path}")
