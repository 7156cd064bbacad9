"""Repeat the tables of the HiCroPL, HISF and ProMPT papers next to their figures, as Markdown.

    python -m experiments ablations --tables hicropl4 hisf4 promp4 --seeds 1 2 3

``experiments/paper_rows.py`` has the tables; every row is a config. The runs use the same folders
as ``experiments.table``, so neither command repeats what the other has finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from configs.choice import EMBEDDED_SOURCE, is_embedded
from configs.protocols import Protocol
from dassl.command import Parser, say
from dassl.errors import UserError
from experiments.cells import cell
from experiments.paper_rows import PAPER_COLUMNS, TABLES, Row, Table
from experiments.runs import Job, Run, runs_of
from experiments.scores import Scores
from experiments.sweep import check_folders, run_all
from experiments.table import add_run_arguments, check_config_files, known_datasets
from experiments.writing import brief, render

MEASURED = (  # in docs/ablations.md
    *("hicropl_update", "hicropl4", "hicropl6", "hicropl7"),
    *("hisf4", "hisf5", "hisf_readings", "promp4", "promp5"),
)


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


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m experiments ablations",
        description="Repeat the tables of the HiCroPL, HISF and ProMPT papers.",
    )
    parser.add_argument(
        "--tables",
        nargs="+",
        default=list(MEASURED),
        choices=TABLES,
        metavar="TABLE",
        help=f"among {', '.join(TABLES)} (default: those of docs/ablations.md)",
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
            rows, protocol = TABLES[name].rows, TABLES[name].protocol
            jobs += [job for row in rows for job in jobs_of(row, protocol, arguments)]
        check_config_files(jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # two tables may have a row in common
    code = run_all(list(dict.fromkeys(jobs)), arguments.jobs)
    if code != 0:
        return code
    scores = Scores()
    parts = [
        f"## {TABLES[name].title}\n\n{ablation_table(TABLES[name], arguments, scores)}"
        for name in arguments.tables
    ]
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
