"""Compare methods on the same test images: differences with intervals, and tests over datasets.

    python -m experiments compare CoOp KgCoOp --datasets emoji food digits --seeds 1 2 3
    python -m experiments compare CoOp CoOp,TRAINER.COOP.N_CTX=4 CoOp@other-output --datasets emoji

A method may be followed by settings of its own and by the output folder of its runs. Only finished
runs are read; those that are missing are named.

Exit codes: 0 done, 1 a result is damaged, 2 bad input, such as runs that cannot be compared.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from configs.choice import EMBEDDED_SOURCE
from configs.protocols import BASE2NEW, FEW_SHOT, PROTOCOLS
from dassl.command import Parser, say
from dassl.errors import UserError, nearest
from experiments.runs import Job, Run, runs_of
from experiments.sweep import check_folders
from experiments.table import (
    add_place_arguments,
    add_setting_arguments,
    check_config_files,
    known_datasets,
    known_methods,
    number_above_0,
)

ACCURACY = "Accuracy"  # heading of a protocol that has a row for each target


class Method(NamedTuple):
    """A method on the command line: NAME[,KEY=VALUE...][@OUTPUT]."""

    text: str
    trainer: str
    overrides: tuple[str, ...]
    output_dir: str  # "" for that of --output-dir


def method(text: str) -> Method:
    """Read a method from the command line."""
    settings, _, output_dir = text.partition("@")
    trainer, *pairs = settings.split(",")
    if trainer not in (known := known_methods()):
        raise argparse.ArgumentTypeError(f"unknown method '{trainer}'; {nearest(trainer, known)}")
    overrides: list[str] = []
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not key or not value:
            raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got '{pair}' in '{text}'")
        overrides += [key, value]
    return Method(text, trainer, tuple(overrides), output_dir)


class Planned(NamedTuple):
    """A run that is compared, with its place in a table.

    Attributes:
        method: its method.
        row: dataset tested.
        heading: of its column.
        seed: it stands for; a run that is not trained stands for all.
        run: the run.
    """

    method: Method
    row: str
    heading: str
    seed: int
    run: Run


def plan(arguments: argparse.Namespace) -> list[Planned]:
    """List the runs that the command line asks for.

    Raises:
        UserError: ``runs_of`` raises it, or a config file does not exist.
    """
    protocol = PROTOCOLS[arguments.protocol]
    planned, jobs = [], []
    for contender, dataset, shots, seed in itertools.product(
        *(arguments.methods, arguments.datasets, arguments.shots or protocol.shots),
        arguments.seeds,
    ):
        runs = runs_of(
            *(protocol, contender.trainer, dataset, seed, shots),
            config=arguments.config,
            overrides=[*arguments.overrides, *contender.overrides],
            backbone=arguments.backbone,
            targets=arguments.targets,
            root=arguments.root,
            output_dir=contender.output_dir or arguments.output_dir,
        )
        jobs.append(Job(protocol, tuple(runs)))
        for run in runs:
            heading = ACCURACY if protocol.transfers else run.step.column.format(shots=shots)
            planned.append(Planned(contender, run.target, heading, seed, run))
    check_config_files(jobs)
    return planned


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line; report an invalid one in one line and exit with code 2."""
    parser = Parser(
        prog="python -m experiments compare",
        description="Compare methods on the same test images. Only finished runs are read.",
    )
    parser.add_argument(
        "methods",
        nargs="+",
        type=method,
        metavar="METHOD",
        help="METHOD[,KEY=VALUE...][@OUTPUT]: with settings of its own, and its output folder",
    )
    parser.add_argument("--protocol", default=BASE2NEW.name, choices=PROTOCOLS)
    parser.add_argument(
        "--datasets", nargs="+", default=[EMBEDDED_SOURCE], choices=known_datasets()
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--shots",
        nargs="+",
        type=number_above_0,
        default=[],
        help="images per class (default: the protocol's)",
    )
    parser.add_argument(
        "--diagram", type=svg_path, help="critical-difference diagram to write, an SVG"
    )
    add_setting_arguments(parser)
    add_place_arguments(parser)
    arguments = parser.parse_args(argv)
    arguments.methods = list(dict.fromkeys(arguments.methods))
    if len(arguments.methods) < 2:
        parser.error(f"METHOD: expected two or more, got {arguments.methods[0].text}")
    if arguments.protocol != FEW_SHOT.name and len(arguments.shots) > 1:
        parser.error(f"--shots: expected one number, except with --protocol {FEW_SHOT.name}")
    if PROTOCOLS[arguments.protocol].transfers and len(arguments.datasets) > 1:
        parser.error(f"--datasets: expected one, the source, with --protocol {arguments.protocol}")
    if arguments.diagram and len(arguments.methods) < 3:
        parser.error("--diagram: expected three or more methods")
    return arguments


def svg_path(text: str) -> Path:
    """Read the name of the diagram."""
    if not text.lower().endswith(".svg"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .svg, got '{text}'")
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder that exists, got '{text}'")
    return Path(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    try:
        planned = plan(arguments)
        for contender in arguments.methods:
            folder = contender.output_dir or arguments.output_dir
            check_folders(arguments.root, folder, written=False)
        # imports scipy; a wrong argument is reported before
        from experiments.comparison import Comparison, ranks_of, report
        from experiments.outcomes import Outcomes
        from experiments.rank_diagram import save
        from experiments.significance import LEAST_DATASETS

        outcomes = Outcomes()
        comparison = Comparison(planned, PROTOCOLS[arguments.protocol], outcomes)
        n = len(comparison.averaged)
        if arguments.diagram and n < LEAST_DATASETS:
            raise UserError(f"--diagram: expected {LEAST_DATASETS} datasets or more, got {n}")
        say(report(comparison))
        if arguments.diagram:
            panels = ranks_of(comparison)
            if not panels:
                raise UserError("--diagram: expected a column without missing runs, got none")
            save(panels, arguments.diagram)
            say(f"\n{arguments.diagram}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return outcomes.report()
