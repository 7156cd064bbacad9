"""Which run of a sweep comes next: what each one needs, retries, and other sweeps at work.

A run is finished when its folder has results, whoever has written them: this sweep, an earlier one,
or another one on the same output folder.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from experiments.executors import Command, Executor
from experiments.runs import RESULTS_FILE, Run

LOG_FILE = "sweep.log"  # in the folder of a run that has failed: what it printed
LOG_TAIL = 4096  # bytes
LOCK_FILE = ".lock"  # as in dassl.engine.run_folder, which imports torch
POLL_S = 0.5


@dataclass(eq=False)
class Task:
    """A run of a sweep and what has become of it.

    Args:
        run: the run.
        folder: its folder, which identifies it.
        needed_by: the tasks that test its model.
        attempts: how often it was begun.
        begin: when it was begun last, by ``time.monotonic``.
        problem: how the last attempt that failed has ended.
    """

    run: Run
    folder: Path
    needed_by: list[Task] = field(default_factory=list)
    attempts: int = 0
    begin: float = 0.0
    problem: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Tell whether another process is at work in the folder."""
        if not (self.folder / LOCK_FILE).exists():
            return False
        from dassl.engine.run_folder import holder

        return holder(str(self.folder)) is not None


def command_of(run: Run) -> Command:
    """Return what is executed: train.py looks behind its lock whether the run is finished."""
    return Command(("--skip-finished", *run.arguments), run.folder / LOG_FILE)


class Scheduler:
    """The runs of a sweep by what they wait for.

    Args:
        runs: in the order in which they are begun; the same one may be there several times.
        executor: where they are executed.
        retries: how often a run that fails is begun again, each time after all others.
    """

    def __init__(self, runs: Iterable[Run], executor: Executor, retries: int) -> None:
        self.queued: deque[Task] = deque()  # nothing that they need is missing
        self.running: dict[Command, Task] = {}
        self.elsewhere: list[Task] = []  # another sweep has begun them
        self.finished: list[Task] = []
        self.failed: list[Task] = []
        self.left_out: list[Task] = []  # what they need has failed
        self._executor = executor
        self._retries = retries
        tasks = {folder: Task(run, folder) for run in runs for folder in [run.folder]}
        unfinished = {f: task for f, task in tasks.items() if not task.run.is_finished}
        for task in unfinished.values():
            model = task.run.model
            needed = unfinished.get(model.folder) if model else None
            (needed.needed_by if needed else self.queued).append(task)
        self.finished_before = len(tasks) - len(unfinished)
        self.total = len(unfinished)

    def go(self) -> Iterator[str]:
        """Execute the runs; yield a line for each that ends, and "" where nothing is to be said.

        A run that fails does not stop the others.
        """
        while self.queued or self.running or self.elsewhere:
            yield from self._begin()
            yield ""
            if not self.running:
                time.sleep(POLL_S if self.elsewhere else 0)
                ended = []
            else:
                ended = self._executor.wait(POLL_S)
            for command, problem in ended:
                yield self._end(self.running.pop(command), problem)
            yield from self._look_elsewhere()

    def _begin(self) -> Iterator[str]:
        while self.queued and len(self.running) < self._executor.slots:
            task = self.queued.popleft()
            if task.run.is_finished:
                yield self._finish(task, "finished elsewhere")
            elif task.is_elsewhere:
                self.elsewhere.append(task)
            else:
                task.attempts += 1
                task.begin = time.monotonic()
                command = command_of(task.run)
                self.running[command] = task
                self._executor.start(command)

    def _end(self, task: Task, problem: str) -> str:
        if task.run.is_finished:
            return self._finish(task, f"{time.monotonic() - task.begin:.0f} s")
        if task.is_elsewhere:  # it was begun there a moment before
            task.attempts -= 1
            self.elsewhere.append(task)
            return ""
        problem = problem or f"no {RESULTS_FILE}"
        task.problem = ": ".join(filter(None, (problem, last_line(task.folder / LOG_FILE))))
        if task.attempts <= self._retries:
            self.queued.append(task)
            return f"to be repeated: {task.run}: {task.problem}"
        self.failed.append(task)
        self.left_out += task.needed_by
        return f"failed: {task.run}: {task.problem}"

    def _finish(self, task: Task, remark: str) -> str:
        self.finished.append(task)
        self.queued.extendleft(reversed(task.needed_by))  # what was begun is completed first
        return f"[{len(self.finished)}/{self.total}] {task.run}: {remark}"

    def _look_elsewhere(self) -> Iterator[str]:
        tasks, self.elsewhere = self.elsewhere, []
        for task in tasks:
            if task.run.is_finished:
                yield self._finish(task, "finished elsewhere")
            elif task.is_elsewhere:
                self.elsewhere.append(task)
            else:
                self.queued.appendleft(task)


def tail(path: Path) -> list[str]:
    """Return the last lines of a file, or none if it does not exist."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - LOG_TAIL))
        return file.read().decode(errors="replace").splitlines()
    return []


def last_line(path: Path) -> str:
    """Return what was printed last, without "error: "; "" if nothing was."""
    lines = [line.strip() for line in tail(path) if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""
