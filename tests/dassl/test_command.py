"""What all commands have in common."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dassl.command import INTERRUPTED, Parser, run, say
from dassl.errors import UserError

REPOSITORY = Path(__file__).parents[2]
HOSTILE = "\x1b[31mx\n\u202ey\ud800"


def test_an_invalid_argument_is_one_line_that_no_terminal_obeys(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        Parser(prog="command").parse_args([f"--{HOSTILE}"])
    line = "error: unrecognized arguments: --\\x1b[31mx\\n\\u202ey\\ud800; see command --help\n"
    assert capsys.readouterr().err == line


def test_what_is_printed_is_escaped(capsys):
    say(f"a\tb\n{HOSTILE}")
    assert capsys.readouterr().out == "a\tb\n\\x1b[31mx\n\\u202ey\\ud800\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("KEY: expected 1, got 2"), 2, "error: KEY: expected 1, got 2\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), 2, "error: No space left on devi"),
        (KeyboardInterrupt(), 130, f"{INTERRUPTED}\n"),
        (SystemExit(2), 2, ""),
        (SystemExit(), 0, ""),
    ],
)
def test_the_end_of_a_command(capsys, error, code, line):
    def command():
        raise error

    assert run(command) == code
    found = capsys.readouterr().err
    assert found.startswith(line) and found.count("\n") == line.startswith(("error", "inter"))
    assert run(lambda: 3) == 3


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("where", ["full", "closed pipe"])
@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("of", ["-m experiments", "train.py"])
def test_a_standard_output_that_takes_nothing_is_one_line(monkeypatch, of, where, buffering):
    monkeypatch.setenv("PYTHONUNBUFFERED", buffering)
    command = [sys.executable, *of.split(), "--help"]
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=full if where == "full" else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if process.stdout is not None:
            process.stdout.close()
        reason = "No space left on device" if where == "full" else "Broken pipe"
        assert process.stderr.read() == f"error: cannot write the standard output: {reason}\n"
        assert process.wait() == 2
        process.stdin.close()
        process.stderr.close()
