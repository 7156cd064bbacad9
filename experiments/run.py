"""Execute all runs of protocols for methods, datasets, seeds and numbers of shots.

    python -m experiments run --trainer CoOp MaPLe --dataset emoji digits --protocol base2new

A test waits for the training whose model it needs; runs that do not need each other are executed
side by side. A finished run, one with a results.json, is skipped; an unfinished one is resumed, so
the same command can be repeated, and given several times at once.

Exit codes: 0 done, 1 a run failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.choice import PUBLIC
from configs.protocols import BASE2NEW, PROTOCOLS, Protocol
from dassl.command import Parser, number, say
from dassl.errors import UserError
from experiments.executors import Executor
from experiments.runs import Job, Run, runs_of
from experiments.scheduler import command_of
from experiments.sweep import RETRIES, check_folders, sweep
from experiments.table import (
    add_place_arguments,
    add_setting_arguments,
    check_config_files,
    known_datasets,
    known_methods,
    number_above_0,
)

ALL = "all"
EXECUTORS = ("local", "ray", "slurm")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; report an invalid one in one line and exit with code 2."""
    parser = Parser(
        prog="python -m experiments run",
        description="Execute all runs of protocols for methods, datasets, seeds and shots.",
        epilog="Finished runs are skipped; the same command resumes what was stopped.",
    )
    add = parser.add_argument
    add("--trainer", nargs="+", required=True, choices=known_methods(), metavar="METHOD")
    add(
        "--dataset",
        nargs="+",
        required=True,
        choices=[ALL, *known_datasets()],
        metavar="DATASET",
        help=f"datasets to train on; {ALL}: the papers' eleven, or for transfer their source",
    )
    add("--protocol", nargs="+", default=[BASE2NEW.name], choices=PROTOCOLS)
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add(
        "--shots",
        nargs="+",
        type=number_above_0,
        default=[],
        help="images per class (default: the protocol's)",
    )
    add_setting_arguments(parser)
    add_place_arguments(parser)
    add_executor_arguments(parser)
    add("--dry-run", action="store_true", help="only print the commands of the unfinished runs")
    arguments = parser.parse_args(argv)
    check_executor(parser, arguments)
    return arguments


def add_executor_arguments(parser: Parser) -> None:
    """Add the options for where and how often runs are executed."""
    add = parser.add_argument
    add("--executor", default=EXECUTORS[0], choices=EXECUTORS)
    add("--address", default="", help="of the Ray cluster (default: this machine)")
    add(
        "--jobs",
        type=number_above_0,
        default=0,
        help="runs at a time (default: one per core or share of a GPU, on a CPU at most 4; with "
        "Ray or Slurm as many as they have places for)",
    )
    share = number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)
    add(
        "--gpus-per-run",
        type=share,
        default=0,
        help="share of a GPU that a run gets to itself, such as 0.5 (default: 0, none with Ray or "
        "Slurm, and the first one for all runs of this machine)",
    )
    add(
        "--retries",
        type=number(int, "a whole number from 0", lambda value: value >= 0),
        default=RETRIES,
        help=f"how often a run that fails is begun again (default: {RETRIES})",
    )


def check_executor(parser: Parser, arguments: argparse.Namespace) -> None:
    """Report an option that the executor does not read in one line, and exit with code 2."""
    if arguments.address and arguments.executor != "ray":
        parser.error("--address requires --executor ray")


def sources(names: Sequence[str], protocol: Protocol) -> list[str]:
    """Name the datasets that a protocol trains on, each once."""
    every = PUBLIC[:1] if protocol.transfers else PUBLIC
    return list(dict.fromkeys(d for name in names for d in (every if name == ALL else [name])))


def plan(arguments: argparse.Namespace) -> list[Run]:
    """List the runs that the command line asks for.

    Raises:
        UserError: ``runs_of`` raises it, or a config file does not exist.
    """
    jobs = [
        Job(
            protocol,
            tuple(
                runs_of(
                    *(protocol, trainer, dataset, seed, shots),
                    config=arguments.config,
                    overrides=arguments.overrides,
                    backbone=arguments.backbone,
                    targets=arguments.targets,
                    root=arguments.root,
                    output_dir=arguments.output_dir,
                )
            ),
        )
        for protocol in map(PROTOCOLS.__getitem__, dict.fromkeys(arguments.protocol))
        for dataset in sources(arguments.dataset, protocol)
        for trainer in arguments.trainer
        for seed in arguments.seeds
        for shots in arguments.shots or protocol.shots
    ]
    check_config_files(jobs)
    return list(dict.fromkeys(run for job in jobs for run in job.runs))


def executor_of(arguments: argparse.Namespace) -> Executor:
    """Return the executor that the command line names.

    Raises:
        UserError: it cannot be had.
    """
    share = (arguments.jobs, arguments.gpus_per_run)
    if arguments.executor == "ray":
        from experiments.executors.ray import Ray

        return Ray(arguments.address, *share)
    if arguments.executor == "slurm":
        from experiments.executors.slurm import Slurm

        return Slurm(Path(arguments.output_dir, ".slurm"), *share)
    from experiments.executors.local import Local

    return Local(*share)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    try:
        runs = plan(arguments)
        check_folders(arguments.root, arguments.output_dir, written=not arguments.dry_run)
        if arguments.dry_run:
            for run in runs:
                if not run.is_finished:
                    say(shlex.join(("python", "train.py", *command_of(run).arguments)))
            return 0
        executor = executor_of(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return sweep(runs, executor, arguments.retries)
