"""The library's logger, and a copy of everything that is printed in a log file."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from dassl.errors import UserError, escaped, writing

LOG_FILE = "log.txt"


class _StdoutHandler(logging.Handler):
    """Prints bare messages on what ``sys.stdout`` is at that moment: a log file may be open.

    Names of files and classes may hold what a terminal would act on; that is shown escaped.
    """

    def emit(self, record: logging.LogRecord) -> None:
        line = escaped(self.format(record), kept="\n\t") + "\n"
        if isinstance(sys.stdout, Logger):
            sys.stdout.write(line)
        else:
            _write_console(sys.stdout, line)


def _write_console(console: TextIO | None, text: str) -> None:
    """Write what the console's encoding has, and the rest escaped.

    Args:
        console: None where the process was started without one.

    Raises:
        UserError: it is full, or nobody reads it anymore.
    """
    if console is not None:
        encoding = getattr(console, "encoding", None) or "utf-8"
        with writing("the standard output"):
            console.write(text.encode(encoding, "backslashreplace").decode(encoding))


#: The library's messages go through this logger; ``log.setLevel(logging.WARNING)`` silences it.
log = logging.getLogger("dassl")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(_StdoutHandler())


@contextmanager
def errors_alone() -> Iterator[None]:
    """Let no message through that is not an error, until the end of the block."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class Logger:
    """A stand-in for ``sys.stdout`` that writes to it and to a file.

    Args:
        path: the log file; its folder is made. None writes to the console only.

    Raises:
        UserError: the file cannot be written. That is raised once: the file is then closed.
    """

    def __init__(self, path: str | None = None) -> None:
        self.console: TextIO | None = sys.stdout
        self.file: TextIO | None = None
        self.path = path
        if path is not None:
            with writing(f"'{path}'"):
                os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
                self.file = open(path, "w", encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> int:
        _write_console(self.console, text)
        self.write_file(text)
        return len(text)

    def write_file(self, text: str) -> None:
        """Write to the file alone. Whole lines reach the disk at once, for whoever watches."""
        if self.file is not None:
            try:
                with writing(f"'{self.path}'"):
                    self.file.write(text)
                    if "\n" in text:
                        self.file.flush()
            except UserError:
                self.close()
                raise

    def flush(self) -> None:
        if self.console is not None:
            with writing("the standard output"):
                self.console.flush()
        if self.file is not None:
            with writing(f"'{self.path}'"):
                self.file.flush()

    def close(self) -> None:
        """Close the file; the console stays open, as it is not ours."""
        file, self.file = self.file, None
        if file is not None:
            with suppress(OSError):  # what ``write`` or ``flush`` has already raised
                file.close()

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
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, LOG_FILE)
    if os.path.lexists(path):
        path += time.strftime("-%Y-%m-%d-%H-%M-%S")
        number = 2
        stamped = path
        while os.path.lexists(path):
            path = f"{stamped}-{number}"
            number += 1
    sys.stdout = Logger(path)  # type: ignore[assignment]


def log_only(text: str) -> None:
    """Write a line to the log file, if there is one, and not to the console."""
    stdout: object = sys.stdout
    if isinstance(stdout, Logger):
        stdout.write_file(text + "\n")
