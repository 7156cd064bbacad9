"""Run the steps of one protocol for one method, dataset and seed, one after another.

    python -m experiments run base2new --trainer CoOp --dataset emoji --seed 1

A finished run, one with a results.json, is skipped; an unfinished one is resumed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dassl.command import Parser
from dassl.errors import UserError
from experiments.executors import do_here
from experiments.protocols import PROTOCOLS
from experiments.runs import runs_of
from experiments.table import (
    add_place_arguments,
    add_setting_arguments,
    known_datasets,
    known_methods,
    number_above_0,
)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; report an invalid one in one line and exit with code 2."""
    parser = Parser(
        prog="python -m experiments run",
        description="Run the steps of one protocol for one method, dataset and seed.",
    )
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("--trainer", required=True, choices=known_methods())
    parser.add_argument("--dataset", required=True, choices=known_datasets())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shots", type=number_above_0, default=16)
    steps = dict.fromkeys(step.name for p in PROTOCOLS.values() for step in p.steps)
    parser.add_argument(
        "--steps", nargs="+", choices=steps, help="steps of the protocol (default: all)"
    )
    add_setting_arguments(parser)
    add_place_arguments(parser)
    arguments = parser.parse_args(argv)
    known = [step.name for step in PROTOCOLS[arguments.protocol].steps]
    arguments.steps = arguments.steps or known
    if not set(arguments.steps) <= set(known):
        parser.error(f"--steps: expected some of {', '.join(known)} of {arguments.protocol}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    try:
        runs = runs_of(
            PROTOCOLS[arguments.protocol],
            *(arguments.trainer, arguments.dataset, arguments.seed, arguments.shots),
            config=arguments.config,
            overrides=arguments.overrides,
            backbone=arguments.backbone,
            targets=arguments.targets,
            root=arguments.root,
            output_dir=arguments.output_dir,
        )
        chosen = [run for run in runs if run.step.name in arguments.steps]
        first = f"--steps {runs[0].step.name}"
        return do_here(chosen, first)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
