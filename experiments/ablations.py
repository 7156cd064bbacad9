"""Repeat the tables of the HiCroPL, HISF and ProMPT papers next to their figures, as Markdown.

    python -m experiments ablations --tables hicropl4 hisf4 promp4 --seeds 1 2 3

``experiments/paper_rows.py`` has the tables; every row is a config. The runs use the same folders
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

from dassl.command import Parser, say
from dassl.errors import UserError
from experiments.cells import cell
from experiments.configs import EMBEDDED_SOURCE, is_embedded
from experiments.paper_rows import PAPER_COLUMNS, TABLES, Row, Table, hisf
from experiments.protocols import BASE2NEW, Protocol
from experiments.runs import Job, Run, runs_of
from experiments.scores import Scores
from experiments.sweep import check_folders, run_all
from experiments.table import add_run_arguments, check_config_files, known_datasets
from experiments.writing import brief, render

MEASURED = (  # in docs/ablations.md
    *("hicropl_update", "hicropl4", "hicropl6", "hicropl7"),
    *("hisf4", "hisf5", "hisf_readings", "promp4", "promp5"),
)
SEARCH = "hisf_lambdas"
LAMBDAS_LE = (0.1,)
LAMBDAS_SA = (0.1, 1.0, 10.0)


def jobs_of(row: Row, protocol: Protocol, arguments: argparse.Namespace) -> list[Job]:
    """List the jobs of a row, one for each seed and number of shots.

    What transfers starts from the source of the embedded datasets, or from ImageNet.
    """
    dataset = arguments.dataset
    if protocol.transfers:
        dataset = EMBEDDED_SOURCE if is_embedded(dataset) else "imagenet"
    what = {"overrides": row.options, "root": arguments.root, "output_dir": arguments.output_dir}
    jobs = [
        Job(protocol, tuple(runs_of(protocol, row.method, dataset, seed, shots, **what)))
        for shots in protocol.shots
        for seed in arguments.seeds
    ]
    return list(dict.fromkeys(jobs))  # what is not trained depends on neither


def search_jobs_of(row: Row, arguments: argparse.Namespace) -> list[Job]:
    """List the jobs that train on base classes and test on their validation images."""
    on_validation = row._replace(options=(*row.options, "TEST.SPLIT", "val"))
    jobs = jobs_of(on_validation, BASE2NEW, arguments)
    return [Job(BASE2NEW, job.runs[:1]) for job in jobs]


def search_rows() -> list[Row]:
    """List the rows of HISF with each pair of lambda_1 and lambda_2."""
    return [
        hisf(f"{first} {second}", LAMBDA_LE=first, LAMBDA_SA=second)
        for first, second in itertools.product(LAMBDAS_LE, LAMBDAS_SA)
    ]


def ablation_table(table: Table, arguments: argparse.Namespace, scores: Scores) -> str:
    """Render mean and standard deviation over seeds next to the paper's figures, if it has any."""
    protocol, lines = table.protocol, []
    summary = [protocol.summary[0]] if protocol.summary else []
    figures = PAPER_COLUMNS[protocol] if any(row.paper for row in table.rows) else ()
    header: tuple[str, ...] = ()
    for row in table.rows:
        jobs = jobs_of(row, protocol, arguments)
        columns: dict[str, list[Run]] = {}
        for run in (run for job in jobs for run in job.runs):
            columns.setdefault(run.column, []).append(run)
        cells = [brief(cell(scores.accuracies(runs))) for runs in columns.values()]
        if summary:
            cells.append(brief(cell([mean for job in jobs for mean in scores.summary(job)])))
        header = ("Variant", *columns, *summary)
        lines.append((row.label, *cells, *(row.paper or ("-",) * len(figures))))
    return render((*header, *(f"Paper: {figure}" for figure in figures)), lines)


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
        (str(first), *(brief(cell(found[f"{first} {second}"])) for second in LAMBDAS_SA))
        for first in LAMBDAS_LE
    ]
    return f"{render(header, lines)}\n\nBest lambda_1 and lambda_2: {best}"


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m experiments ablations",
        description="Repeat the tables of the HiCroPL, HISF and ProMPT papers.",
    )
    parser.add_argument(
        "--tables",
        nargs="+",
        default=list(MEASURED),
        choices=[*TABLES, SEARCH],
        metavar="TABLE",
        help=f"among {', '.join([*TABLES, SEARCH])} (default: those of docs/ablations.md)",
    )
    parser.add_argument(
        "--dataset",
        default="shapes",
        choices=known_datasets(),
        help="dataset trained on, except for what transfers (default: shapes)",
    )
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = read_arguments(argv)
    jobs: list[Job] = []
    try:
        check_folders(arguments.root, arguments.output_dir)
        for name in arguments.tables:
            if name == SEARCH:
                jobs += [job for row in search_rows() for job in search_jobs_of(row, arguments)]
            else:
                rows, protocol = TABLES[name].rows, TABLES[name].protocol
                jobs += [job for row in rows for job in jobs_of(row, protocol, arguments)]
        check_config_files(jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # two tables may have a row in common
    code = run_all(list(dict.fromkeys(jobs)), arguments.workers)
    if code != 0:
        return code
    scores = Scores()
    parts = []
    for name in arguments.tables:
        if name == SEARCH:
            title, text = "HISF's lambdas, validation accuracy", search_table(arguments, scores)
        else:
            title, text = TABLES[name].title, ablation_table(TABLES[name], arguments, scores)
        parts.append(f"## {title}\n\n{text}")
    seeds = " ".join(map(str, arguments.seeds))
    caption = [
        "Accuracy in percent",
        arguments.dataset,
        *scores.backbones,
        *scores.precisions,
        f"seeds {seeds}",
    ]
    say(f"\n{', '.join(caption)}, mean ± standard deviation:")
    say("\n" + "\n\n".join(parts))
    return scores.report()
