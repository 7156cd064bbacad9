"""The command line of ``python -m datasets.prepare``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from dassl.command import INTERRUPTED, Parser
from dassl.errors import UserError, check_choice
from dassl.utils.download import NetworkError

from . import descriptions
from .descriptions import prepare_descriptions, report_descriptions
from .downloads import prepare
from .sources import DESCRIPTIONS, PUBLIC_SETS
from .status import report


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m datasets.prepare",
        description="Fetch public datasets, or the descriptions of their classes.",
        epilog="Exit codes: 0 complete, 1 something must be obtained manually (or, with --check, "
        "is missing), 2 error. The same command resumes what was interrupted.",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(PUBLIC_SETS)}; all (of these); or descriptions",
    )
    parser.add_argument("--root", default="", help="folder of the datasets (DATASET.ROOT)")
    parser.add_argument("--check", action="store_true", help="download nothing, print a table")
    return parser


def run(names: Sequence[str], root: str, check_only: bool) -> bool:
    """Fetch or check; return whether everything is complete.

    Raises:
        UserError: an argument is invalid, or something could not be fetched.
    """
    for name in names:
        check_choice("dataset", name, [*PUBLIC_SETS, "all", "descriptions"])
    datasets = [name for name in PUBLIC_SETS if name in names or "all" in names]
    if datasets and not root:
        raise UserError("--root: expected the folder of the datasets, got none")
    root = os.path.abspath(os.path.expanduser(root))
    described = "descriptions" in names
    if datasets:
        _check_folder("--root", root, written=not check_only)
    if described and not check_only:
        _check_folder("descriptions", descriptions.DESCRIPTIONS_DIR, written=True)
    if not check_only:
        _fetch_all(datasets, root, list(DESCRIPTIONS) if described else [])
    complete = [report(datasets, root)] if datasets else []
    if described:
        complete.append(report_descriptions())
    return all(complete)


def _check_folder(what: str, folder: str, written: bool) -> None:
    """Raise ``UserError`` where a folder is something else, or could not be made or written."""
    place = folder
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f"{what}: expected a folder, got '{folder}' ('{place}' is not a folder)")
    if written and not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{what}: expected a folder that can be written, got '{folder}'")


def _fetch_all(datasets: Sequence[str], root: str, described: Sequence[str]) -> None:
    """Fetch everything, continuing after a failure unless there seems to be no network at all."""
    fetched: list[str] = []
    failures: list[str] = []
    jobs: list[tuple[Any, tuple[str, ...]]] = [(prepare, (name, root)) for name in datasets]
    jobs += [(prepare_descriptions, (name,)) for name in described]
    for job, arguments in jobs:
        try:
            job(*arguments, fetched)
        except UserError as error:
            failures.append(str(error))
            if isinstance(error, NetworkError) and not fetched:
                break
    if failures:
        raise UserError("; ".join(failures))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own; return the exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # --help, or a bad argument that argparse has reported
        return int(stop.code or 0)
    try:
        return 0 if run(args.names, args.root, args.check) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
