"""Repeat the ablation tables of the ProMPT and HISF papers on Shapes, next to their figures.

    python -m experiments ablations --tables promp4 promp5 hisf4 hisf5 --seeds 1 2 3

Base-to-novel with ViT-Mini-2; every row is one setting of the config. The runs use the same folders
as ``experiments.table``, so neither command repeats what the other has finished. ``hisf_lambdas``
is the search that chose HISF's lambdas by accuracy on the validation images of the base classes,
without novel classes or test images.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

from dassl.command import Parser, say
from dassl.errors import UserError
from experiments.configs import MINI
from experiments.executors import Job, check_folders, run_all
from experiments.protocols import BASE2NEW
from experiments.runs import runs_of
from experiments.table import Scores, add_run_arguments, cell, render

SHOTS = 16
DATASET = "shapes"


class Row(NamedTuple):
    """A line of a paper's table.

    Args:
        label: its name in the paper.
        method: the trainer.
        options: KEY VALUE pairs for its config.
        paper: the paper's base, novel and harmonic mean, averages over 11 datasets; "-" if none.
    """

    label: str
    method: str
    options: tuple[str, ...]
    paper: tuple[str, str, str]


def promp(label: str, paper: tuple[str, str, str], **settings: object) -> Row:
    return Row(label, "ProMPT", pairs("PROMPT", settings), paper)


def hisf(label: str, paper: tuple[str, str, str], **settings: object) -> Row:
    return Row(label, "HISF", pairs("HISF", settings), paper)


def pairs(node: str, settings: dict[str, object]) -> tuple[str, ...]:
    return tuple(
        text for key, value in settings.items() for text in (f"TRAINER.{node}.{key}", str(value))
    )


TABLES: dict[str, tuple[str, list[Row]]] = {
    "promp4": (
        "ProMPT, Table 4: iterations N",
        [
            promp("0", ("69.34", "74.77", "71.95"), ITERATIONS=0),
            promp("1", ("79.69", "74.01", "76.74"), ITERATIONS=1),
            promp("2", ("80.94", "74.89", "77.80")),
        ],
    ),
    "promp5": (
        "ProMPT, Table 5: components",
        [
            promp("ProMPT", ("80.94", "74.89", "77.80")),
            promp("-Iter", ("69.34", "74.22", "71.70"), ITERATIONS=0),
            promp("-G_V", ("80.47", "73.12", "76.62"), VISION_GENERATOR=False),
            promp("-G_T", ("79.20", "70.68", "74.70"), TEXT_GENERATOR=False),
            promp(
                "-G",
                ("78.92", "70.93", "74.71"),
                VISION_GENERATOR=False,
                TEXT_GENERATOR=False,
            ),
            promp("-F", ("78.70", "72.52", "75.48"), FEATURE_FILTER=False),
        ],
    ),
    "hisf4": (
        "HISF, Table 4: modules",
        [
            # this row has the figures of MaPLe's paper
            Row("MaPLe setting", "MaPLe", (), ("82.28", "75.14", "78.55")),
            hisf("w/o PI", ("83.76", "75.57", "79.66"), PROMPT_INIT=False),
            hisf("w/o SF", ("82.45", "74.96", "78.71"), SEMANTIC_FUSION=False),
            hisf("PI + SF", ("85.39", "76.12", "80.75")),
        ],
    ),
    # The table's columns L_CE, L_S and L_LP are not defined in the paper. L_LP is on in every row
    # and is read as the classification loss, L_CE as that of the label (category) embeddings, L_S
    # as semantic alignment; the last two rows read L_CE as cross-entropy and L_LP as L_le instead.
    "hisf5": (
        "HISF, Table 5: loss terms",
        [
            hisf("L_cls", ("-", "-", "79.41"), LAMBDA_LE=0.0, LAMBDA_SA=0.0),
            hisf("L_cls + L_le + L_sa", ("-", "-", "80.75")),
            hisf("L_cls + L_sa", ("-", "-", "80.67"), LAMBDA_LE=0.0),
            hisf("L_cls + L_le", ("-", "-", "80.35"), LAMBDA_SA=0.0),
            hisf("L_le", ("-", "-", "79.41"), LOSS_CLS=False, LAMBDA_SA=0.0),
            hisf("L_le + L_sa", ("-", "-", "80.67"), LOSS_CLS=False),
        ],
    ),
}
HEADER = ("Variant", "Base", "Novel", "Harmonic mean", "Paper: base", "novel", "harmonic mean")

SEARCH = "hisf_lambdas"
LAMBDAS_LE = (0.1,)
LAMBDAS_SA = (0.1, 1.0, 10.0)


def jobs_of(row: Row, arguments: argparse.Namespace) -> list[Job]:
    """List the base-to-novel jobs with a row's settings, one for each seed."""
    what = {"overrides": row.options, "root": arguments.root, "output_dir": arguments.output_dir}
    return [
        Job(BASE2NEW, tuple(runs_of(BASE2NEW, row.method, DATASET, seed, SHOTS, **what)))
        for seed in arguments.seeds
    ]


def search_jobs_of(row: Row, arguments: argparse.Namespace) -> list[Job]:
    """List the jobs that train on base classes and test on their validation images."""
    on_validation = row._replace(options=(*row.options, "TEST.SPLIT", "val"))
    return [Job(BASE2NEW, job.runs[:1]) for job in jobs_of(on_validation, arguments)]


def search_rows() -> list[Row]:
    """List the rows of HISF with each pair of lambda_1 and lambda_2."""
    return [
        hisf(f"{first} {second}", ("-", "-", "-"), LAMBDA_LE=first, LAMBDA_SA=second)
        for first, second in itertools.product(LAMBDAS_LE, LAMBDAS_SA)
    ]


def ablation_table(rows: Sequence[Row], arguments: argparse.Namespace, scores: Scores) -> str:
    """Render mean and standard deviation over seeds next to the paper's figures."""
    lines = []
    for row in rows:
        jobs = jobs_of(row, arguments)
        parts = zip(*(job.runs for job in jobs), strict=True)
        base, novel = (cell(scores.accuracies(runs)) for runs in parts)
        means = cell([mean for job in jobs for mean in scores.summary(job)])
        lines.append((row.label, base, novel, means, *row.paper))
    return render(HEADER, lines)


def search_table(arguments: argparse.Namespace, scores: Scores) -> str:
    """Render validation accuracies, lambda_1 by row and lambda_2 by column, and the best pair."""
    found = {
        row.label: scores.accuracies(job.runs[0] for job in search_jobs_of(row, arguments))
        for row in search_rows()
    }
    # the smaller pair if equal
    best = max(found, key=lambda label: statistics.fmean(found[label] or [-1.0]))
    header = ("lambda_1 \\ lambda_2", *map(str, LAMBDAS_SA))
    lines = [
        (str(first), *(cell(found[f"{first} {second}"]) for second in LAMBDAS_SA))
        for first in LAMBDAS_LE
    ]
    return f"{render(header, lines)}\n\nBest lambda_1 and lambda_2: {best}"


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m experiments ablations",
        description="Repeat the ablation tables of the ProMPT and HISF papers on Shapes.",
    )
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=[*TABLES, SEARCH])
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = read_arguments(argv)
    try:
        check_folders(arguments.root, arguments.output_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    jobs: list[Job] = []
    for name in arguments.tables:
        if name == SEARCH:
            jobs += [job for row in search_rows() for job in search_jobs_of(row, arguments)]
        else:
            jobs += [job for row in TABLES[name][1] for job in jobs_of(row, arguments)]
    # two tables may have a row in common
    code = run_all(list(dict.fromkeys(jobs)), arguments.workers)
    if code != 0:
        return code
    seeds = " ".join(map(str, arguments.seeds))
    say(f"\nAccuracy in percent on Shapes, {MINI}, {SHOTS} shots, seeds {seeds}.")
    scores = Scores()
    for name in arguments.tables:
        if name == SEARCH:
            say(f"\nHISF's lambdas, validation accuracy\n\n{search_table(arguments, scores)}")
        else:
            title, rows = TABLES[name]
            say(f"\n{title}\n\n{ablation_table(rows, arguments, scores)}")
    return scores.report()
