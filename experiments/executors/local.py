"""Runs in processes of this machine, which share its cores and GPUs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait as wait_for
from typing import Any

from dassl.errors import UserError
from experiments.executors import Command, Executor, execute

DEFAULT_JOBS = 4  # at most, on a CPU


def context_of_runs() -> Any:
    """Return the context of multiprocessing whose processes begin with a run's imports done.

    They are forked from one that has only imported: one that has used OpenMP, autograd or CUDA
    cannot be forked, nor, outside Linux, many another.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.executors.imports", __name__])
    return context


class Local(Executor):
    """Executes at most ``jobs`` commands at a time.

    Args:
        jobs: 0 for as many as the GPUs are shared out to, or one per core, at most 4.
        gpus_per_run: share of a GPU that a run gets to itself; 0 leaves all GPUs to every run.

    Raises:
        UserError: GPUs are to be shared out and there is none.
    """

    def __init__(self, jobs: int, gpus_per_run: float = 0) -> None:
        self._devices = shared_out(visible_gpus(), gpus_per_run) if gpus_per_run else []
        cores = os.cpu_count() or 1
        most = len(self._devices) or jobs or min(DEFAULT_JOBS, cores)
        slots = min(jobs or most, most)
        self.slots = slots
        self.threads = max(1, cores // slots)
        self._context = context_of_runs()
        self._running: dict[int, tuple[Any, Command, str]] = {}  # by the process's sentinel

    def start(self, command: Command) -> None:
        device = self._devices.pop(0) if self._devices else ""
        process = self._context.Process(target=_work, args=(command, self.threads, device))
        process.start()
        self._running[process.sentinel] = (process, command, device)

    def wait(self, timeout: float) -> list[tuple[Command, str]]:
        ended = []
        for sentinel in wait_for(list(self._running), timeout):
            process, command, device = self._running.pop(sentinel)  # type: ignore[arg-type]
            process.join()
            if device:
                self._devices.append(device)
            ended.append((command, problem(process.exitcode)))
            process.close()
        return ended

    def stop(self) -> None:
        for process, _, _ in self._running.values():
            process.terminate()
        while self._running:
            self.wait(timeout=1)


def problem(code: int) -> str:
    """Say how a process ended, "" if it ended well."""
    if code < 0:
        return f"killed by signal {-code}"
    return f"exit code {code}" if code else ""


def visible_gpus() -> list[str]:
    """Name the GPUs of this process.

    Raises:
        UserError: there is none.
    """
    import torch

    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    if count == 0:
        raise UserError("--gpus-per-run: expected 0 on a machine without a GPU that torch can use")
    return [name.strip() for name in names[:count]] if names[0] else list(map(str, range(count)))


def shared_out(gpus: Sequence[str], share: float) -> list[str]:
    """Return the GPU of each run that fits in, the first ones each on one of its own."""
    return [*gpus] * int(1 / share + 1e-6)


def _work(command: Command, threads: int, device: str) -> None:
    """Execute a command in a process of its own; what ends it with Ctrl-C is its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    import torch

    torch.set_num_threads(threads)
    sys.exit(execute(command))
