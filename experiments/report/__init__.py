"""Write one HTML page about finished runs that needs neither network nor JavaScript."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl.command import Parser, say
from dassl.errors import UserError


def html_path(text: str) -> Path:
    """Read the name of the page."""
    path = Path(text)
    if path.suffix.lower() != ".html":
        raise argparse.ArgumentTypeError(f"expected a name that ends in .html, got '{text}'")
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file that can be written, got '{text}'")
    return path


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; report an invalid one in one line and exit with code 2."""
    parser = Parser(prog="python -m experiments report", description=__doc__)
    parser.add_argument("outputs", nargs="+", metavar="OUTPUT", help="folder of runs")
    parser.add_argument("--html", type=html_path, required=True, help="page to write")
    parser.add_argument(
        "--root", default="", help="folder of the datasets (default: that of each run)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 where a result was skipped, 2 for bad input."""
    arguments = read_arguments(argv)
    try:
        from experiments.found import find

        runs, skipped, unfinished = find(arguments.outputs)
        for line in skipped:
            print(f"skipped: {line}", file=sys.stderr)
        if not runs:
            raise UserError(f"OUTPUT: expected finished runs, got none in '{arguments.outputs[0]}'")
        from experiments.report.page import page_of  # imports torch and matplotlib

        page = page_of(runs, skipped, unfinished, arguments.root)
        from dassl.utils import atomic_write

        with atomic_write(str(arguments.html)) as file:
            file.write(page)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(str(arguments.html))
    return 1 if skipped else 0
