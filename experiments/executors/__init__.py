"""Where the runs of a sweep are executed: one small interface, and one file for each place."""

from __future__ import annotations

import os
import traceback
from abc import ABC, abstractmethod
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Command:
    """A command line of ``train.py``, and the file for what it prints."""

    arguments: tuple[str, ...]
    log: Path


class Executor(ABC):
    """Executes commands side by side, each in a process of its own."""

    slots: float  # commands that may be under way at the same time

    @abstractmethod
    def start(self, command: Command) -> None:
        """Execute a command, now or as soon as there is a place for it."""

    @abstractmethod
    def wait(self, timeout: float) -> list[tuple[Command, str]]:
        """Wait until a command ends, at most ``timeout`` seconds; return those that have ended.

        With each comes what went wrong, "" if it ended with exit code 0.
        """

    @abstractmethod
    def stop(self) -> None:
        """Interrupt the commands under way, all of which can be resumed; let go of the place."""


def execute(command: Command) -> int:
    """Execute a command in this process and return its exit code.

    What is printed is appended to the command's log. If all goes well that is removed, as the run
    has a log of its own.
    """
    file = _open(command.log)
    console = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):  # also for what other processes of the run print, and what is not Python
        os.dup2(file.fileno(), number)
    try:
        with redirect_stdout(file), redirect_stderr(file):
            code = _call(list(command.arguments))
    finally:
        for number, descriptor in zip((1, 2), console, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        with suppress(OSError):  # a full disk
            file.close()
    if code == 0:
        command.log.unlink(missing_ok=True)
    return code


def _open(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError:  # the run ends with the same error
        return open(os.devnull, "a")


def _call(arguments: list[str]) -> int:
    try:
        import train

        return train.main(arguments)
    except Exception:
        traceback.print_exc()
        return 1
