"""Accuracy in another precision next to that in fp32, as paired differences over seeds.

    python -m benchmarks.precision --methods CoOp MaPLe --datasets digits --seeds 1 2 3

Every run in fp32 is that of the method's config file for ViT-Mini-2, in the folder that
``experiments.table`` has for it; the other one differs from it in ``PREC`` alone. Finished runs are
skipped, unfinished ones are resumed. A difference is positive where the other precision is better;
its standard error is over datasets and seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

import trainers  # noqa: F401  (registers the methods)
from configs.choice import EMBEDDED_SOURCE
from configs.protocols import BASE2NEW, CROSS_DATASET
from dassl.command import Parser, run, say
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.optimize import PRECISIONS
from dassl.errors import UserError
from experiments.runs import Job, Run, runs_of
from experiments.sweep import check_folders, run_all
from experiments.table import (
    add_run_arguments,
    check_config_files,
    known_datasets,
    known_methods,
    number_above_0,
)
from experiments.writing import render


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.precision",
        description="Compare accuracies in another precision with those in fp32.",
    )
    methods = known_methods()
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    embedded = [EMBEDDED_SOURCE, *CROSS_DATASET.targets[EMBEDDED_SOURCE]]
    datasets = known_datasets()
    parser.add_argument("--datasets", nargs="+", default=embedded, choices=datasets)
    parser.add_argument("--shots", type=number_above_0, default=16)
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    add_run_arguments(parser)
    return parser.parse_args(argv)


def pairs_of(method: str, arguments: argparse.Namespace) -> list[tuple[Job, Job]]:
    """List the jobs of a method in fp32 and in the other precision, for each dataset and seed."""
    kind = TRAINER_REGISTRY.get(method).method.of_config(get_cfg_default(method))
    key = f"TRAINER.{kind.config_node}.PREC"
    pairs = []
    for dataset in arguments.datasets:
        for seed in arguments.seeds:
            what = (BASE2NEW, method, dataset, seed, arguments.shots)
            places = {"root": arguments.root, "output_dir": arguments.output_dir}
            fp32, other = (
                Job(BASE2NEW, tuple(runs_of(*what, overrides=overrides, **places)))
                for overrides in ((), (key, arguments.precision))
            )
            pairs.append((fp32, other))
    return list(dict.fromkeys(pairs))  # what is not trained does not depend on the seed


def precision_of(one: Run) -> str:
    """Return what a finished run computed in; runs of earlier versions have only the setting."""
    results = one.results()
    if "precision" in results:
        return str(results["precision"])
    method = TRAINER_REGISTRY.get(one.trainer).method.of_config(results["config"])
    return str(results["config"]["TRAINER"][method.config_node]["PREC"])


def compared(method: str, pairs: Sequence[tuple[Job, Job]]) -> list[tuple[str, ...]]:
    """Return a row of the table for each step of the protocol.

    Raises:
        UserError: a run of the config file did not compute in fp32, or has no readable results.
    """
    rows = []
    for i, step in enumerate(one.step for one in pairs[0][0].runs):
        runs = [(fp32.runs[i], other.runs[i]) for fp32, other in pairs]
        for plain, _ in runs:
            if precision_of(plain) != "fp32":
                raise UserError(f"{plain.place}: expected a run in fp32, got {precision_of(plain)}")
        used = dict.fromkeys(precision_of(other) for _, other in runs)
        values = [[float(one.results()["accuracy"]) for one in pair] for pair in runs]
        differences = [other - plain for plain, other in values]
        error = "-"
        if len(differences) > 1:
            error = f"{statistics.stdev(differences) / len(differences) ** 0.5:.2f}"
        rows.append(
            (
                *(method, step.column, ", ".join(used), str(len(runs))),
                *(f"{statistics.fmean(column):.2f}" for column in zip(*values, strict=True)),
                *(f"{statistics.fmean(differences):+.2f}", error),
                f"{max(map(abs, differences)):.2f}",
            )
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    arguments = read_arguments(argv)
    check_folders(arguments.root, arguments.output_dir)
    pairs = {method: pairs_of(method, arguments) for method in arguments.methods}
    jobs = [job for of_method in pairs.values() for pair in of_method for job in pair]
    check_config_files(jobs)
    code = run_all(jobs, arguments.jobs)
    if code != 0:
        return code
    header = ("Method", "Classes", "In", "Pairs", "fp32", "other", "Difference", "SE", "Largest")
    rows = [row for method, found in pairs.items() for row in compared(method, found)]
    say(f"\nAccuracy in percent, {', '.join(arguments.datasets)}, {arguments.shots} shots:\n")
    say(render(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(run(main, "stopped; the same command resumes from here"))
