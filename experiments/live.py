"""What a sweep shows: a line for each run that ends and, on a terminal, a table of all others."""

from __future__ import annotations

import re
import time
from itertools import islice
from pathlib import Path
from typing import Any

from dassl.command import say
from dassl.errors import escaped
from experiments.scheduler import Scheduler, tail

# a line of dassl.engine.progress
PROGRESS = re.compile(r"epoch \[(\d+/\d+)\](?:.*?\bloss \S+ \((\S+)\))?.* eta (.+)")
LOGS = "log.txt*"  # a run that was resumed has several
REFRESH_S = 0.5
FRAME = 7  # lines of the screen that the rows of the table must leave free


class Lines:
    """Prints the lines alone."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, line: str, scheduler: Scheduler) -> None:
        """Show a line, unless it is empty, and how things stand."""
        if line:
            say(line)


class LiveTable(Lines):
    """Keeps the table below the lines."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False, transient=True)
        self._next = 0.0

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, line: str, scheduler: Scheduler) -> None:
        console = self._live.console
        if line:
            console.print(escaped(line), markup=False, highlight=False)
        if time.monotonic() >= self._next:
            self._live.update(table(scheduler, console.height - FRAME), refresh=True)
            self._next = time.monotonic() + REFRESH_S


def table(scheduler: Scheduler, height: int) -> Any:
    """Return rich's table of the first runs, ``height`` rows, with the number of all below."""
    from rich.table import Table
    from rich.text import Text

    groups = {
        "running": list(scheduler.running.values()),
        "running elsewhere": scheduler.elsewhere,
        "failed": scheduler.failed,
    }
    counts = {state: len(tasks) for state, tasks in groups.items()}
    counts |= {"finished": len(scheduler.finished), "left out": len(scheduler.left_out)}
    counts["queued"] = scheduler.total - sum(counts.values())
    groups["queued"] = list(islice(scheduler.queued, max(height, 0)))
    rows = [(task, state) for state, tasks in groups.items() for task in tasks]
    shown = Table("Run", "State", "Epoch", "Loss", "ETA")
    for task, state in rows[: max(height, 0)]:
        values = progress(task.folder) if state.startswith("running") else ()
        shown.add_row(*map(Text, (escaped(str(task.run)), state, *values)))
    shown.caption = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return shown


def progress(folder: Path) -> tuple[str, ...]:
    """Return epoch, average loss and remaining time from the newest log of a run; () for none."""
    logs = sorted(folder.glob(LOGS), key=lambda path: path.name)
    for line in reversed(tail(logs[-1]) if logs else []):
        if found := PROGRESS.match(line):
            return tuple(part or "" for part in found.groups())
    return ()
