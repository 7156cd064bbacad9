"""What all commands have in common: one line on stderr for what goes wrong, and an exit code."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from dassl.errors import UserError, escaped, machine_fault, writing

INTERRUPTED = "interrupted; the same command resumes"


class Parser(argparse.ArgumentParser):
    """Reports an invalid argument in one line, without the usage, which --help shows."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {escaped(message)}; see {escaped(self.prog)} --help\n")

    def print_help(self, file: Any = None) -> None:
        """Print the help; argparse itself would pass over a standard output that is full."""
        if file is None:
            say(self.format_help(), end="")
        else:
            super().print_help(file)


def number(kind: Callable[[str], Any], expected: str, is_usable: Callable[[Any], bool]) -> Any:
    """Return a type of argparse: a number that is usable, or an error that says what is."""

    def read(text: str) -> Any:
        try:
            value = kind(text) if text.isascii() else None  # Python reads other digits, too
        except ValueError:
            value = None
        if value is None or not is_usable(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return read


def say(text: str = "", end: str = "\n") -> None:
    """Print a text at once; what a terminal would obey is shown as escapes.

    Raises:
        UserError: the standard output is full, or nobody reads it anymore.
    """
    with writing("the standard output"):
        print(escaped(text, kept="\n\t"), end=end, flush=True)


def run(command: Callable[[], int], interrupted: str = INTERRUPTED) -> int:
    """Call a process's command and return the exit code, 2 for any error that is not ours.

    Args:
        command: returns its exit code.
        interrupted: the line for an interruption, after which the exit code is 130.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # a closed one's number would go to the next file opened
            setattr(sys, name, open(os.devnull, "w"))
        elif isinstance(stream, io.TextIOWrapper):  # what the console's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    code, line = _outcome(command, interrupted)
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python's own attempt at the exit must not fail, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code == 0:  # as after --help
            code, line = 2, f"error: cannot write the standard output: {error.strerror}"
    if line:
        with suppress(OSError):
            print(line, file=sys.stderr)
    return code


def _outcome(command: Callable[[], int], interrupted: str) -> tuple[int, str]:
    """Return the exit code, and what is to be said."""
    try:
        return command(), ""
    except SystemExit as stop:  # --help, or an argument that was reported
        return int(stop.code or 0), ""
    except KeyboardInterrupt:
        return 130, interrupted
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else machine_fault(error)
        if not reason:
            raise
        return 2, f"error: {reason}"
