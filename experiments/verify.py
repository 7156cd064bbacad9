"""Check a result card against finished runs, run it again, or write one.

    python -m experiments verify experiments/cards/coop_digits.json
    python -m experiments verify experiments/cards/coop_digits.json --rerun
    python -m experiments verify CARD.json --write --datasets digits --methods CoOp --seeds 1 2

A card says by which command its numbers came about, with which settings, on which test images and
on which machine. The same machine, with the same versions, must give the same bits; any other one
may be off by a stated number of pictures of each test set. ``--write`` and ``--rerun`` first run
what is not finished, in this process; the other options of ``--write`` are those of the command
``table``.

Exit codes: 0 verified or written, 1 a number differs or a run is missing, 2 bad input.
"""

from __future__ import annotations

import argparse
import base64
import io
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dassl.command import Parser, number, say
from dassl.errors import UserError, shown
from dassl.json_file import read_json
from experiments.runs import Run
from experiments.sweep import check_folders
from experiments.table import plan
from experiments.table import read_arguments as read_table_arguments
from experiments.writing import MISSING, render

FORMAT = 1
COMMAND = "python -m experiments table "
# Of a card, and of each of its runs, with their types.
FIELDS = {
    "format": int,
    "command": str,
    "protocol": str,
    "method": str,
    "tag": str,
    "seeds": list,
    "tolerance": int,
    "machine": dict,
    "runs": list,
}
RUN_FIELDS = {
    **{"run": str, "dataset": str, "step": str, "seed": int, "config": str, "split": str},
    **{"correct": int, "total": int, "accuracy": float, "nll": float},
}
SAME = ("config", "split", "total")  # of two runs that can be compared
BITS = ("correct", "accuracy", "nll")


class Plan(NamedTuple):
    """The runs of a card's command.

    Attributes:
        protocol: its name.
        runs: by their folders below the output folder.
    """

    protocol: str
    runs: dict[str, Run]


def plan_of(options: Sequence[str], root: str, output_dir: str) -> Plan:
    """Plan the runs of a command line of ``table``.

    Raises:
        UserError: an option is wrong.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            arguments = read_table_arguments([*options, "--root", root, "--output-dir", output_dir])
    except SystemExit as stop:
        raise UserError(f"command: {said.getvalue().removeprefix('error: ')}") from stop
    runs = [run for job in plan(arguments) for run in job.runs]
    own = {run.folder.relative_to(output_dir).as_posix(): run for run in runs}
    return Plan(arguments.protocol, own)


def read_card(path: str) -> dict[str, Any]:
    """Read a card.

    Raises:
        UserError: it is missing or damaged, of a newer format, or contradicts itself.
    """
    card = read_json(path)
    checks = [(card, FIELDS, "")]
    if isinstance(card, dict) and isinstance(card.get("runs"), list):
        checks += [(run, RUN_FIELDS, f"runs[{i}].") for i, run in enumerate(card["runs"])]
    for part, fields, place in checks:
        for name, kind in fields.items():
            got = part.get(name) if isinstance(part, dict) else None
            if type(got) is not kind and (type(got), kind) != (int, float):
                raise UserError(
                    f"{path}: {place}{name}: expected {kind.__name__}, got {shown(got)}"
                )
    if not 1 <= card["format"] <= FORMAT:
        raise UserError(f"{path}: expected format {FORMAT} or less, got {card['format']}")
    if not card["command"].startswith(COMMAND) or not card["runs"]:
        raise UserError(f"{path}: expected runs of a command '{COMMAND}...'")
    for name, expected, got, is_right in claims(card):
        if not is_right:
            raise UserError(f"{path}: {name}: expected {expected}, got {shown(got)}")
    return card


def claims(card: dict[str, Any]) -> Iterator[tuple[str, str, Any, bool]]:
    """Yield what must hold in a card: a place in it, what is expected there, got, and is right."""
    runs, threads, tolerance = card["runs"], card["machine"].get("threads", 1), card["tolerance"]
    yield "machine.threads", "1 or more", threads, type(threads) is int and threads >= 1
    yield "tolerance", "0 or more", tolerance, tolerance >= 0
    seeds = sorted({run["seed"] for run in runs})
    yield "seeds", f"those of the runs, {seeds}", card["seeds"], card["seeds"] == seeds
    places = set[str]()
    for i, run in enumerate(runs):
        total, correct, accuracy = run["total"], run["correct"], run["accuracy"]
        seconds = run.get("seconds")
        yield f"runs[{i}].run", "another one", run["run"], run["run"] not in places
        yield f"runs[{i}].correct", f"0 to total {total}", correct, 0 <= correct <= total > 0
        share = 100 * correct / max(total, 1)
        yield f"runs[{i}].accuracy", f"{share}", accuracy, math.isclose(accuracy, share)
        is_time = seconds is None or (type(seconds) in (int, float) and seconds >= 0)
        yield f"runs[{i}].seconds", "a number from 0", seconds, is_time
        places.add(run["run"])


def options_of(card: dict[str, Any]) -> list[str]:
    """Return the options of a card's command.

    Raises:
        UserError: its quotation marks are not in pairs.
    """
    try:
        return shlex.split(card["command"].removeprefix(COMMAND))
    except ValueError as error:
        raise UserError(f"command: {error}") from error


def execute(runs: Sequence[Run], threads: int) -> int:
    """Execute what is not finished, in this process; return the exit code of the last run."""
    import torch

    import train

    torch.set_num_threads(threads)
    for run in runs:
        if run.is_finished:
            say(f"finished before: {run.place}")
        elif code := train.main(run.arguments):
            return code
    return 0


def machine() -> dict[str, Any]:
    """Return what the bits of a run depend on besides its settings and images."""
    import torch

    from dassl.data.feature_store import machine_of

    return machine_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def measured(place: str, run: Run) -> dict[str, Any]:
    """Return what a card has of a finished run.

    Raises:
        UserError: its results or predictions are missing or damaged.
    """
    from dassl.evaluation.predictions import PREDICTIONS_FILE, read_predictions
    from experiments.found import digest, read_found

    found, results = read_found(run.place.absolute()), run.results()
    if results.get("nll") is None or found.counts is None:
        raise UserError(f"{run.place}: expected results with correct, total and nll, got less")
    predictions = read_predictions(str(run.place / PREDICTIONS_FILE))
    names = predictions.class_names[predictions.labels].tolist()
    images = list(zip(predictions.paths.tolist(), names, strict=True))
    order = sorted(range(len(images)), key=images.__getitem__)
    right = (predictions.top_indices[:, 0] == predictions.labels)[order]
    return {
        **{"run": place, "dataset": run.target, "step": run.step.name, "seed": run.seed},
        **{"config": digest(found.settings), "split": digest([images[i] for i in order])},
        **{name: results.get(name) for name in ("correct", "total", "accuracy", "nll")},
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        "seconds": results.get("wall_time_s"),
    }


def write_card(path: str, options: Sequence[str], arguments: argparse.Namespace) -> int:
    """Run what is not finished, and write a card; return the exit code.

    Raises:
        UserError: an option is wrong, or the card cannot be written.
    """
    from dassl.utils.tools import write_json

    if not Path(path).parent.is_dir() or Path(path).is_dir():
        raise UserError(f"CARD: expected a file in a folder that exists, got '{path}'")
    planned = plan_of(options, arguments.root, arguments.output_dir)
    is_known = not any(run.is_finished for run in planned.runs.values())
    if code := execute(list(planned.runs.values()), arguments.threads or 1):
        return code
    # of runs that finished before nobody knows where
    card = card_of(options, planned, arguments.tolerance, machine() if is_known else {})
    write_json(card, path)
    say(path)
    return 0


def card_of(
    options: Sequence[str], planned: Plan, tolerance: int, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the card of finished runs.

    Args:
        options: of the command of ``table``.
        planned: its runs.
        tolerance: pictures of each test set that another machine may differ by.
        machine: that they ran on; empty where nobody knows.

    Raises:
        UserError: results or predictions are missing or damaged.
    """
    from configs.protocols import PROTOCOLS
    from experiments.found import read_found
    from experiments.rows import SHARED, Names

    found = [read_found(run.place.absolute()) for run in planned.runs.values()]
    names = {Names(found).name(run, PROTOCOLS[planned.protocol]) for run in found}
    tags = [{run.about[name] for run in found} for name in SHARED]
    return {
        "format": FORMAT,
        "command": COMMAND + shlex.join(options),
        "protocol": planned.protocol,
        "method": ", ".join(sorted(names)),
        "tag": ", ".join(tag for own in tags for tag in sorted(own)),
        "seeds": sorted({run.seed for run in found}),
        "tolerance": tolerance,
        "machine": dict(machine),
        "runs": [measured(place, run) for place, run in planned.runs.items()],
    }


def verify(path: str, arguments: argparse.Namespace) -> int:
    """Check a card against finished runs; return the exit code.

    Raises:
        UserError: the card or its command is damaged.
    """
    card = read_card(path)
    try:
        planned = plan_of(options_of(card), arguments.root, arguments.output_dir)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if odd := {run["run"] for run in card["runs"]} ^ planned.runs.keys():
        raise UserError(f"{path}: expected the runs of its command, got a difference in {min(odd)}")
    same_machine = False
    if arguments.rerun:
        threads = arguments.threads or card["machine"].get("threads", 1)
        is_new = not any(run.is_finished for run in planned.runs.values())
        if code := execute(list(planned.runs.values()), threads):
            return code
        same_machine = is_new and machine() == card["machine"]
    rows, wrong = [], 0
    for run in card["runs"]:
        own = planned.runs[run["run"]]
        counts, text = MISSING, "missing"
        is_right = False
        if own.is_finished:
            found = measured(run["run"], own)
            odd_fields = [name for name in SAME if found[name] != run[name]]
            if odd_fields:
                text = f"other {', '.join(odd_fields)}"
            else:
                off = found["correct"] - run["correct"]
                is_equal = all(found[name] == run[name] for name in BITS)
                counts = f"{found['correct']} / {found['total']}"
                text = "equal bits" if is_equal else f"{off:+d}"
                is_right = is_equal or (not same_machine and abs(off) <= card["tolerance"])
        wrong += not is_right
        expected = f"{run['correct']} / {run['total']}"
        rows.append((run["run"], expected, counts, text, "yes" if is_right else "NO"))
    say(f"{card['method']}, {card['tag']}: {card['command']}\n")
    say(render(("Run", "Card", "Found", "Difference", "Verified"), rows))
    demand = "this is the card's machine: the bits must be equal"
    if not same_machine:
        demand = f"{card['tolerance']} pictures of a test set may differ"
    n = len(rows)
    say(f"\n{'not verified' if wrong else 'verified'}: {n - wrong} of {n} runs; {demand}")
    return 1 if wrong else 0


def read_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; return what it says, and the options of ``table`` for ``--write``."""
    parser = Parser(
        prog="python -m experiments verify",
        description="Check a result card against finished runs, run it again, or write one.",
    )
    whole = number(int, "a whole number from 0", lambda value: value >= 0)
    parser.add_argument("card", metavar="CARD", help="a JSON file")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--rerun", action="store_true", help="first run what is not finished")
    kind.add_argument(
        "--write",
        action="store_true",
        help="write the card of a command of table, with its options",
    )
    parser.add_argument("--root", default="data", help="folder of the datasets (default: data)")
    parser.add_argument(
        "--output-dir",
        help="folder of all runs (default: output; with --rerun one of the card's own below it)",
    )
    parser.add_argument(
        "--tolerance",
        type=whole,
        default=3,
        help="pictures that another machine may differ by, for --write (default: 3)",
    )
    parser.add_argument(
        "--threads", type=whole, default=0, help="of the processor (default: the card's, or 1)"
    )
    arguments, options = parser.parse_known_args(argv)
    if options and not arguments.write:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    if not arguments.output_dir:
        below = ["verify", Path(arguments.card).stem] if arguments.rerun else []
        arguments.output_dir = str(Path("output", *below))
    return arguments, options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments, options = read_arguments(argv)
    try:
        runs_any = arguments.rerun or arguments.write
        check_folders(arguments.root, arguments.output_dir, written=runs_any)
        if arguments.write:
            return write_card(arguments.card, options, arguments)
        return verify(arguments.card, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
