"""Run what docs/results.md and ablations.md show, keep the results as cards, write the tables.

    python -m experiments evidence --jobs 2
    python -m experiments evidence --parts few_shot --no-run

A part is a protocol with its datasets, methods and seeds, or the papers' ablations. Runs that a
card in experiments/cards/results has are not repeated, whichever machine they ran on, nor are those
that have finished below the output folder; interrupted, the same command goes on. Cards are written
dataset by dataset, and the tables show what the cards have.

Exit codes: 0 done, 1 a run failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.protocols import BASE2NEW, CROSS_DATASET, DOMAIN_GENERALIZATION, FEW_SHOT
from dassl.command import Parser, say
from dassl.errors import UserError
from dassl.utils.tools import atomic_write
from experiments import verify
from experiments.ablations import MEASURED, ablation_table
from experiments.cells import AVERAGE, Table
from experiments.compare import ACCURACY, Planned, method
from experiments.comparison import Comparison, cell
from experiments.executors.local import Local
from experiments.paper_rows import TABLES
from experiments.result_cards import CardOutcomes, CardScores, Part, Row, Unit, keep, units_of
from experiments.sweep import INTERRUPTED, check_folders, sweep
from experiments.table import add_jobs_argument, add_place_arguments, known_methods, tabulate
from experiments.writing import brief, filled, render

DOCS = Path(__file__).parents[1] / "docs"
PAGE, ABLATIONS_PAGE = DOCS / "results.md", DOCS / "ablations.md"
ABLATIONS = "ablations"
TOTAL = "total"
OF_ABLATIONS = "shapes"  # their dataset
MAIN = ("CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC", "ProMPT", "HISF", "HiCroPL")
SETS = ("emoji", "food", "shapes")
SOURCE = SETS[0]
OF_FEW_SHOT = "digits"
PER_IMAGE = ("CoCoOp", "ProMPT")  # encode the texts anew for each image
REFERENCE = MAIN[-1]  # method that the others are compared with


def seeds_of(name: str) -> int:
    """Return the number of seeds of a method's transfers and ablations."""
    return 1 if name in PER_IMAGE else 3


def parts() -> dict[str, Part]:
    """Return the parts by the names of their protocols, and the papers' ablations."""
    others = tuple(Row(name, 3) for name in known_methods() if name not in MAIN)
    zero_shot = Row("ZeroshotCLIP", 1)
    few = (zero_shot, *(Row(name, 3) for name in MAIN))
    own = (zero_shot, *(Row(name, seeds_of(name)) for name in MAIN))
    rows = [row for name in MEASURED for row in TABLES[name].rows]
    ablated = (Row(row.method, seeds_of(row.method), row.options) for row in rows)
    return {
        BASE2NEW.name: Part(BASE2NEW, SETS, (*others, *(Row(name, 5) for name in MAIN))),
        FEW_SHOT.name: Part(FEW_SHOT, (OF_FEW_SHOT,), few),
        CROSS_DATASET.name: Part(CROSS_DATASET, (SOURCE,), own),
        DOMAIN_GENERALIZATION.name: Part(DOMAIN_GENERALIZATION, (SOURCE,), own),
        ABLATIONS: Part(BASE2NEW, (OF_ABLATIONS,), tuple(dict.fromkeys(ablated))),
    }


def execute(units: Sequence[Unit], jobs: int) -> int:
    """Execute what cards lack, and add all that has finished to them; return the exit code."""
    runs = [run for unit in units for run in unit.lacking().values()]
    executor = Local(jobs)
    is_new = not any(run.is_finished for run in runs)
    code = sweep(runs, executor) if runs else 0
    machine = {**verify.machine(), "threads": executor.threads} if is_new else {}
    return max(code, keep_all(units, machine))


def keep_all(units: Sequence[Unit], machine: Mapping[str, Any]) -> int:
    """Add what has finished to all cards; return the exit code, 2 where one could not be."""
    code = 0
    for unit in units:
        try:
            keep(unit, machine)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
    return code


# Tables ------------------------------------------------------------------------------------------


def block_of(part: Part, units: Sequence[Unit]) -> str:
    """Return the tables of a part as Markdown."""
    scores = CardScores(units)
    records = scores.records.values()
    if not records:
        return "No results yet."
    table = tabulate([j for u in units for j in u.jobs], part.protocol, scores, intervals=True)
    names = list(dict.fromkeys(head[0] for head, _ in table.rows))
    first = AVERAGE if AVERAGE in names else names[0]
    texts = [rows_of(table, first), *table.notes]
    measured = {unit.row for unit in units if unit.card()}
    if absent := [row.method for row in part.rows if row not in measured]:
        texts.append(f"No results yet: {', '.join(absent)}.")
    texts.append(differences(part, units))
    texts += [f"### {name}\n\n{rows_of(table, name)}" for name in names if name != first]
    texts.append(f"{len(scores.records):,} runs, {hours_of(scores)} in all.")
    return "\n\n".join(filter(None, texts))


def hours_of(scores: CardScores) -> str:
    """Say what the runs of the cards took."""
    seconds = sum(record.get("seconds") or 0 for record in scores.records.values())
    return f"{seconds / 3600:.1f} hours of one process"


def total_of(units: Sequence[Unit]) -> str:
    """Say how many of the planned runs the cards have, and what these took."""
    scores = CardScores(units)
    planned = {folder for unit in units for runs in unit.runs().values() for folder in runs}
    share = f"{len(scores.records):,} of the {len(planned):,} planned runs"
    return f"All parts so far: {share}, {hours_of(scores)}."


def rows_of(table: Table, dataset: str) -> str:
    """Return what is known of a dataset, with the number of seeds."""
    rows = []
    for head, cells in table.rows:
        if head[0] == dataset and any(cells):
            seeds = max(cell.seeds for cell in cells if cell)
            rows.append((*head[1:], str(seeds), *map(brief, cells)))
    n_heads = len(table.header) - len(table.rows[0][1])
    return render((*table.header[1:n_heads], "Seeds", *table.header[n_heads:]), rows)


def differences(part: Part, units: Sequence[Unit]) -> str:
    """Return how far ``REFERENCE`` is above the other main methods; "" without cards of it.

    Each difference is of the seeds that all cards of both methods have.
    """
    main: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.row.method in MAIN and unit.card():
            main.setdefault(unit.row.method, []).append(unit)
    of_reference = main.pop(REFERENCE, [])
    rows, columns, where = [], [], ""
    for name, own in main.items():
        pair = [*of_reference, *own]
        seeds = set.intersection(*(set(unit.card()["seeds"]) for unit in pair))
        if not (of_reference and seeds):
            continue
        planned = [
            Planned(method(unit.row.method), run.target, heading, run.seed, run)
            for unit in pair
            for job in unit.jobs
            for run in job.runs
            for heading in [ACCURACY if part.protocol.transfers else run.column]
            if run.seed in seeds
        ]
        comparison = Comparison(planned, part.protocol, CardOutcomes(pair))
        columns, averaged = comparison.columns, comparison.averaged
        row = AVERAGE if len(averaged) > 1 else averaged[0]
        where = f"the average of {len(averaged)} datasets" if len(averaged) > 1 else row
        found = comparison.differences(*comparison.methods)[row]
        shown = (cell(found.get(column), len(seeds)) for column in columns)
        rows.append((name, str(len(seeds)), *shown))
    if not rows:
        return ""
    table = render(("Method", "Seeds", *columns), rows)
    return (
        f"{REFERENCE} minus each other method on {where}, in points [95% interval over images "
        f"and seeds; of one seed, over images]:\n\n{table}"
    )


def ablations(units: Sequence[Unit], arguments: argparse.Namespace) -> dict[str, str]:
    """Return the papers' tables by their names."""
    scores, tables = CardScores(units), {}
    for name in MEASURED:
        seeds = range(1, 1 + min(seeds_of(row.method) for row in TABLES[name].rows))
        where = argparse.Namespace(**vars(arguments), dataset=OF_ABLATIONS, seeds=seeds)
        tables[name] = ablation_table(TABLES[name], where, scores)
    return tables


def write_blocks(page: Path, blocks: Mapping[str, str]) -> None:
    """Put blocks into a page, each between its marks, ``<!-- evidence:NAME -->`` and its end.

    Raises:
        UserError: the page has no such place, or cannot be written.
    """
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        try:
            text = filled(text, f"evidence:{name}", f"\n{block}\n")
        except ValueError as error:
            raise UserError(f"{page}: {error}") from error
    with atomic_write(str(page)) as file:
        file.write(text)
    say(str(page))


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m experiments evidence",
        description="Run what docs/results.md shows, keep the results as cards, write its tables.",
    )
    names = list(parts())
    parser.add_argument("--parts", nargs="+", default=names, choices=names, help="(default: all)")
    parser.add_argument("--no-run", action="store_true", help="only read what has finished")
    add_place_arguments(parser)
    add_jobs_argument(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    places = ["--root", arguments.root, "--output-dir", arguments.output_dir]
    jobs, code = arguments.jobs, 0
    try:
        check_folders(arguments.root, arguments.output_dir, written=not arguments.no_run)
        planned = {
            name: [units_of(part, dataset, places) for dataset in part.datasets]
            for name, part in parts().items()
        }
        every = [unit for datasets in planned.values() for own in datasets for unit in own]
        for unit in every:
            unit.card()  # what is damaged is said before anything runs
        for name in arguments.parts:
            for own in planned[name]:
                code = max(code, keep_all(own, {}) if arguments.no_run else execute(own, jobs))
                if code == INTERRUPTED:
                    return code
            units = [unit for own in planned[name] for unit in own]
            if name == ABLATIONS:
                write_blocks(ABLATIONS_PAGE, ablations(units, arguments))
            else:
                write_blocks(PAGE, {name: block_of(parts()[name], units)})
        write_blocks(PAGE, {TOTAL: total_of(every)})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code
