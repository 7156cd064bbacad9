"""Executing the runs of a command, and saying what has become of them."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence

from dassl.command import say
from dassl.errors import UserError, escaped
from experiments.executors import Executor
from experiments.executors.local import Local
from experiments.live import Lines, LiveTable
from experiments.runs import Job, Run
from experiments.scheduler import LOG_FILE, Scheduler

INTERRUPTED = 130  # exit code of an interrupted sweep
RETRIES = 1


def run_all(jobs: Iterable[Job], workers: int) -> int:
    """Execute the runs of jobs in ``workers`` processes; return the exit code of the command."""
    return sweep([run for job in jobs for run in job.runs], Local(workers))


def sweep(runs: Sequence[Run], executor: Executor, retries: int = RETRIES) -> int:
    """Execute the runs that are not finished; return the exit code of the command.

    A run that fails does not stop the others; it is named at the end.
    """
    scheduler = Scheduler(runs, executor, retries)
    if scheduler.finished_before:
        known = scheduler.finished_before
        say(f"{known} of {known + scheduler.total} runs finished before")
    # SIGTERM is handled like Ctrl-C, so that no run is left behind.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LiveTable() if sys.stdout.isatty() else Lines() as view:
            for line in scheduler.go():
                view.show(line, scheduler)
    except KeyboardInterrupt:
        print("stopped; the same command resumes from here", file=sys.stderr)
        return INTERRUPTED
    finally:
        executor.stop()
        signal.signal(signal.SIGTERM, previous)
    lines = [f"{t.run}: {t.problem}; log: {t.folder / LOG_FILE}" for t in scheduler.failed]
    lines += [f"{t.run}: not run, as its training failed" for t in scheduler.left_out]
    for line in lines:
        print(f"error: {escaped(line)}", file=sys.stderr)
    return 1 if scheduler.failed else 0


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
