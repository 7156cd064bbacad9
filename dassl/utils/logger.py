"""The library's logger, and a copy of everything that is printed in a log file."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any, TextIO

from dassl.errors import UserError


class _StdoutHandler(logging.Handler):
    """Prints bare messages on what ``sys.stdout`` is at that moment: a log file may be open.

    An error, such as a pipe that nobody reads anymore, is raised as ``print`` raises it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(self.format(record) + "\n")


#: The library's messages go through this logger; ``log.setLevel(logging.WARNING)`` silences it.
log = logging.getLogger("dassl")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(_StdoutHandler())


class Logger:
    """A stand-in for ``sys.stdout`` that writes to it and to a file.

    Args:
        path: the log file; its folder is made. None writes to the console only.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str | None = None) -> None:
        self.console: TextIO = sys.stdout
        self.file: TextIO | None = None
        if path is not None:
            try:
                os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
                self.file = open(path, "w", encoding="utf-8")
            except OSError as error:
                raise UserError(f"log file '{path}' cannot be written: {error.strerror}") from error

    def write(self, text: str) -> int:
        self.console.write(text)
        self.write_file(text)
        return len(text)

    def write_file(self, text: str) -> None:
        """Write to the file alone. Whole lines reach the disk at once, for whoever watches."""
        if self.file is not None:
            self.file.write(text)
            if "\n" in text:
                self.file.flush()

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file; the console stays open, as it is not ours."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        # isatty, encoding, fileno and the like are the console's
        if name == "console":
            raise AttributeError(name)
        return getattr(self.console, name)


def setup_logger(output: str | None = None) -> None:
    """Copy what is printed from now on to ``output``/log.txt, or to ``output`` if it is a file.

    An older log stays: the new one then carries the time in its name (log.txt-2025-01-31-12-00-00).
    The caller puts ``sys.stdout`` back when the run is over.
    """
    if output is None:
        return
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if os.path.exists(path):
        path += time.strftime("-%Y-%m-%d-%H-%M-%S")
        number = 2
        stamped = path
        while os.path.exists(path):
            path = f"{stamped}-{number}"
            number += 1
    sys.stdout = Logger(path)  # type: ignore[assignment]


def log_only(text: str) -> None:
    """Write a line to the log file, if there is one, and not to the console."""
    stdout: object = sys.stdout
    if isinstance(stdout, Logger):
        stdout.write_file(text + "\n")
