"""Executing runs: one after another in this process, or in several processes of this machine.

A job is a chain of runs, each of which may need the one before. Executors for other machines belong
here, too.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from dassl.command import say
from dassl.errors import UserError, escaped
from experiments.protocols import Protocol
from experiments.runs import Run

INTERRUPTED = 130  # exit code of an interrupted run


class RunFailed(Exception):
    """A run ended with an exit code other than 0; the message is what it printed last."""


@dataclass(frozen=True)
class Job:
    """The runs of a protocol for one method, dataset, seed and number of shots."""

    protocol: Protocol
    runs: tuple[Run, ...]

    def __str__(self) -> str:
        run = self.runs[0]
        method = ",".join(filter(None, (run.trainer, run.variant)))
        return f"{method} on {run.dataset}, {self.protocol.title}, seed {run.seed}"


def do_here(runs: Sequence[Run], first: str) -> int:
    """Execute runs in this process, one after another; return the exit code of the last one.

    Args:
        runs: finished ones are reported and skipped; the first failure stops the rest.
        first: command that trains what the runs test, for the message if that is missing.

    Raises:
        UserError: a model to test is missing.
    """
    for run in runs:
        if run.is_finished:
            say(f"skipped, finished before: {run.place}")
            continue
        run.check_model(first)
        make_root(run.root)
        import train  # imports torch

        code = train.main(run.arguments)
        if code != 0:
            return code
    return 0


def make_root(root: str) -> None:
    """Create the default root of the datasets, into which the embedded ones are drawn.

    Any other root must exist, because its name may be misspelled.
    """
    if root == "data":
        Path(root).mkdir(exist_ok=True)


def check_folders(root: str, output_dir: str, written: bool = True) -> None:
    """Make the folders of the datasets and of the runs; if nothing is written, only look at them.

    Raises:
        UserError: one is no folder, or cannot be made; or that of the runs cannot be written.
    """
    folders = {"--output-dir": output_dir, "--root": root}
    for option, folder in folders.items():
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise UserError(f"{option}: expected a folder, got '{folder}'")
    for option, folder in folders.items() if written else ():
        try:
            os.makedirs(folder, exist_ok=True)
            if folder == output_dir:  # complete datasets are only read
                with tempfile.TemporaryFile(dir=folder):
                    pass
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"{option}: expected a folder that can be written, got '{folder}' ({reason})"
            ) from error


def work(job: Job) -> float:
    """Execute the unfinished runs of a job; return the seconds it took.

    Raises:
        RunFailed: a run ended with an exit code other than 0.
    """
    import train  # imports torch, in the worker processes only

    start = time.monotonic()
    for run in job.runs:
        if run.is_finished:
            continue
        printed = io.StringIO()  # the run keeps its own log.txt
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = train.main(run.arguments)
        if code == INTERRUPTED:
            os._exit(code)  # otherwise this worker would start the next job of its queue
        if code != 0:
            lines = printed.getvalue().strip().splitlines() or [f"exit code {code}"]
            raise RunFailed(f"{job}: {lines[-1].removeprefix('error: ')}")
    return time.monotonic() - start


def prepare_worker(threads: int) -> None:
    """Give a worker process its share of the cores; Ctrl-C is handled by its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)


def run_all(jobs: Sequence[Job], workers: int) -> int:
    """Execute the jobs in ``workers`` processes; return the exit code of the command.

    A failing job or an interruption stops all jobs; the line that says so is printed here.
    """
    # SIGTERM is handled like Ctrl-C, so that no worker is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        do_all(jobs, workers)
    except KeyboardInterrupt:
        print("stopped; the same command resumes from here", file=sys.stderr)
        return INTERRUPTED
    except RunFailed as failure:
        print(f"error: {escaped(str(failure))}", file=sys.stderr)
        return 1
    return 0


def do_all(jobs: Sequence[Job], workers: int) -> None:
    """Execute the jobs in ``workers`` processes and print a line as each ends.

    Raises:
        RunFailed: a run failed; the other jobs in progress have been stopped.
        KeyboardInterrupt: interrupted; the jobs in progress have been stopped.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(
        workers,
        # A forked process would copy the parent's state, and hang if CUDA or OpenMP has run there.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=prepare_worker,
        initargs=(threads,),
    )
    try:
        futures = {pool.submit(work, job): job for job in jobs}
        for number, future in enumerate(as_completed(futures), start=1):
            seconds = future.result()
            say(f"[{number}/{len(jobs)}] {futures[future]}: {seconds:.0f} s")
    except BaseException:
        # Runs in progress can be resumed later from their last checkpoints.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()
