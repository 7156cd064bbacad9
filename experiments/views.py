"""Compare trainings on fixed views of the images with the published recipe.

    python -m experiments views --datasets shapes --seeds 1 2 3

Each method is trained with each number of DATALOADER.VIEWS on the base classes, and tested on their
validation images, by which a number is chosen, on their test images and on novel classes. The runs
of the latter are those of ``experiments table --overrides``: neither command repeats what the other
has finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from configs.protocols import BASE2NEW, TEST_NEW, TRAIN_BASE, Protocol, Step
from dassl.command import Parser, number, say
from dassl.errors import UserError
from experiments.cells import cell
from experiments.runs import Job, runs_of
from experiments.scores import Scores
from experiments.sweep import check_folders, run_all
from experiments.table import (
    add_run_arguments,
    check_config_files,
    known_datasets,
    known_methods,
)
from experiments.writing import brief, render

METHODS = ("CoOp", "KgCoOp", "TCP", "LAMM", "ProDA", "HiCroPL")
VALIDATE = Step(
    *("validate", "base", "base", "Validation"),
    TRAIN_BASE.folder.replace("train_base", "validate"),
    loads=TRAIN_BASE,
    options=("TEST.SPLIT", "val"),
)
PROTOCOL = Protocol(
    *("views", "fixed views", (TRAIN_BASE, VALIDATE, TEST_NEW)), summary=BASE2NEW.summary
)


def jobs_of(dataset: str, method: str, views: int, arguments: argparse.Namespace) -> list[Job]:
    """List the jobs of a row of the table, one for each seed."""
    runs = [
        runs_of(
            *(PROTOCOL, method, dataset, seed),
            overrides=("DATALOADER.VIEWS", str(views)) if views else (),
            root=arguments.root,
            output_dir=arguments.output_dir,
        )
        for seed in arguments.seeds
    ]
    return [Job(PROTOCOL, tuple(each)) for each in runs]


def table(rows: dict[tuple[str, str, int], list[Job]], scores: Scores) -> str:
    """Render the accuracies, a row for each dataset, method and number of views."""
    lines = []
    for (dataset, method, views), jobs in rows.items():
        steps = zip(*(job.runs for job in jobs), strict=True)
        cells = [brief(cell(scores.accuracies(runs))) for runs in steps]
        harmonic = brief(cell([value for job in jobs for value in scores.summary(job)]))
        lines.append((dataset, method, str(views), *cells, harmonic))
    columns = [step.column for step in PROTOCOL.steps]
    return render(("Dataset", "Method", "VIEWS", *columns, "Harmonic mean"), lines)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m experiments views",
        description="Compare trainings on fixed views of the images with the published recipe.",
    )
    parser.add_argument("--datasets", nargs="+", default=["shapes"], choices=known_datasets())
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=known_methods())
    parser.add_argument(
        "--views",
        nargs="+",
        type=number(int, "a whole number from 0", lambda value: value >= 0),
        default=[0, 1, 4, 16],
        help="numbers of views; 0: the published recipe (default: 0 1 4 16)",
    )
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    try:
        check_folders(arguments.root, arguments.output_dir)
        rows = {
            (dataset, method, views): jobs_of(dataset, method, views, arguments)
            for dataset in arguments.datasets
            for method in arguments.methods
            for views in arguments.views
        }
        jobs = [job for group in rows.values() for job in group]
        check_config_files(jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    code = run_all(list(dict.fromkeys(jobs)), arguments.jobs)
    if code != 0:
        return code
    scores = Scores()
    text = table(rows, scores)
    seeds = " ".join(map(str, arguments.seeds))
    caption = ["Accuracy in percent", *scores.backbones, f"seeds {seeds}"]
    say(f"\n{', '.join(caption)}, mean ± standard deviation:\n\n{text}")
    return scores.report()
