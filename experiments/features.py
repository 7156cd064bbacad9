"""List the image features that runs keep on disk, or remove them.

    python -m experiments features --root data
    python -m experiments features --root data --empty

docs/feature-cache.md says what is kept. What is removed is computed again when a run needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from dassl.command import Parser, say
from dassl.errors import UserError, writing
from dassl.table import print_table


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m experiments features",
        description="List the image features that runs keep on disk, or remove them.",
    )
    parser.add_argument("--root", default="data", help="folder of the datasets (default: data)")
    parser.add_argument(
        "--dir", default="", help="their folder (DATALOADER.FEATURES_DIR; default: in --root)"
    )
    parser.add_argument("--empty", action="store_true", help="remove all of them")
    return parser.parse_args(argv)


def megabytes(sizes: Sequence[int]) -> str:
    return f"{sum(sizes) / 2**20:.1f} MB"


def show(folder: str, is_emptied: bool) -> None:
    """Print what is in a folder of features, and with ``is_emptied`` remove it.

    Raises:
        UserError: something cannot be removed.
    """
    from dassl.data.feature_store import about, empty, entries_in

    files = entries_in(folder)
    size = megabytes([file.size for file in files])
    if is_emptied:
        with writing(f"'{folder}'"):
            empty(folder)
        say(f"Removed {len(files)} files, {size}, from {folder}")
        return
    entries = [entry for file in files if (entry := about(file)).about]
    rows = [
        (
            *(entry.about.get(name, "-") for name in ("images", "backbone", "type")),
            megabytes([entry.size]),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        )
        for entry in sorted(entries, key=lambda entry: -entry.used)
    ]
    if rows:
        print_table(("Images", "Backbone", "Type", "Size", "Last used"), rows)
        say()
    say(f"{len(files)} files, {size}, in {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    name, folder = ("--dir", arguments.dir) if arguments.dir else ("--root", arguments.root)
    folder = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(folder):
        print(f"error: {name}: expected an existing folder, got '{folder}'", file=sys.stderr)
        return 2
    try:
        show(folder if arguments.dir else os.path.join(folder, ".features"), arguments.empty)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
