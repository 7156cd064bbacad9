"""Print tables of the accuracies of finished runs, or train and test methods first.

    python -m experiments table output --published
    python -m experiments table --datasets emoji --methods ZeroshotCLIP CoOp HiCroPL --seeds 1 2 3
    python -m experiments table --protocol cross_dataset --datasets imagenet --methods MMA --no-run

With OUTPUT folders, all finished runs below them are read, and nothing is run. Without, every run
is one call of ``train.main``, as on the command line, in the folder that the scripts use. Finished
runs are skipped and interrupted ones resumed, so the same command can be repeated. Damaged or
missing results are skipped and counted.

Exit codes: 0 done, 1 a run failed or a result was skipped, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from configs.choice import CONFIGS, EMBEDDED_SOURCE
from configs.protocols import BASE2NEW, FEW_SHOT, PROTOCOLS, Protocol
from dassl.command import Parser, say
from dassl.errors import UserError, escaped
from experiments import cells
from experiments.cells import Cell, Entry, Table, Titled
from experiments.runs import Job, runs_of
from experiments.scores import Scores
from experiments.sweep import check_folders, run_all
from experiments.writing import FORMATS, brief, document, full

ALL_CLASSES = "All classes"  # column of the few-shot runs next to base-to-novel
OF_FOUND = ("outputs", "protocol", "datasets", "methods", "format", "published")  # options


def tabulate(
    jobs: Sequence[Job], protocol: Protocol, scores: Scores, intervals: bool = False
) -> Table:
    """Return a table of finished jobs.

    A row is a dataset and a method, in the order of ``jobs``, and also a number of shots if there
    are several that the columns do not tell apart. Cells summarize all seeds, with ``intervals``
    also the test set.
    """
    runs = sorted((r for job in jobs for r in job.runs), key=lambda r: r.shots)
    columns = {step.column: step.name for step in protocol.steps if "{" not in step.column}
    columns |= {run.column: run.step.name for run in runs if run.step in protocol.steps}
    if any(job.protocol is not protocol for job in jobs):
        columns[ALL_CLASSES] = ""
    several = protocol is not FEW_SHOT and len({r.shots for r in runs if r.is_trained}) > 1

    of_method: dict[str, list[Job]] = {}
    for job in jobs:
        of_method.setdefault(job.runs[0].trainer, []).append(job)
    scores.accuracies(runs)  # names depend on the results
    rows: dict[tuple[str, ...], None] = {}
    entries = []
    for job in jobs:
        first = job.runs[0]
        name = scores.named(first.trainer, of_method[first.trainer])
        row = (first.dataset, name, *([str(first.shots)] if several else []))
        rows[row] = None
        for run in job.runs:
            column = run.column if run.step in protocol.steps else ALL_CLASSES
            if (accuracy := scores.accuracy(run)) is not None:
                entries.append(Entry(row, column, accuracy, run))
    half_width = scores.half_width if intervals else lambda runs: None
    return cells.tabulate(entries, list(rows), columns, protocol, half_width)


def plan(arguments: argparse.Namespace) -> list[Job]:
    """List the jobs that the command line asks for, dataset by dataset and method by method.

    Raises:
        UserError: ``runs_of`` raises it, or a config file does not exist.
    """
    protocol = PROTOCOLS[arguments.protocol]
    jobs: dict[Job, None] = {}
    for dataset in arguments.datasets:
        also = [FEW_SHOT] if dataset in arguments.few_shot else []
        for method in arguments.methods:
            for seed in arguments.seeds:
                for kind in (protocol, *also):
                    for shots in arguments.shots or protocol.shots:
                        runs = runs_of(
                            *(kind, method, dataset, seed, shots),
                            config=arguments.config,
                            overrides=arguments.overrides,
                            backbone=arguments.backbone,
                            targets=arguments.targets,
                            root=arguments.root,
                            output_dir=arguments.output_dir,
                        )
                        # Runs that are not trained do not depend on seed and shots.
                        jobs[Job(kind, tuple(runs))] = None
    check_config_files(jobs)
    return list(jobs)


def check_config_files(jobs: Iterable[Job]) -> None:
    """Raise UserError if a config file of a run does not exist."""
    for path in {run.config_file: None for job in jobs for run in job.runs}:
        if not path.is_file():
            raise UserError(f"config: expected a config file, got {path}, which does not exist")


def number_above_0(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got '{text}'")
    return int(text)


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the folders of data and runs."""
    parser.add_argument("--root", default="data", help="folder of the datasets (default: data)")
    parser.add_argument(
        "--output-dir", default="output", help="folder of all runs (default: output)"
    )


def add_setting_arguments(parser: argparse.ArgumentParser, transfers: bool = True) -> None:
    """Add the options for the config that a method runs with."""
    parser.add_argument(
        "--config", default="", help="name of the config file (default: the paper's)"
    )
    parser.add_argument(
        "--backbone", default="", help="backbone of all runs, in place of the config file's"
    )
    if transfers:
        parser.add_argument("--targets", nargs="+", default=[], help="datasets to transfer to")
    parser.add_argument(
        "--overrides",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="settings of config keys, for all runs",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that executes jobs."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add_place_arguments(parser)
    add_jobs_argument(parser)


def add_jobs_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option for the number of runs at a time on this machine."""
    parser.add_argument(
        "--jobs",
        type=number_above_0,
        default=min(4, os.cpu_count() or 1),
        help="runs at a time, sharing the cores (default: one per core, at most 4)",
    )


def known_methods() -> list[str]:
    """List the methods that have config files."""
    return sorted(path.name for path in CONFIGS.glob("trainers/[!_]*"))


def known_datasets() -> list[str]:
    """List the datasets that have a config file."""
    return sorted(path.stem for path in CONFIGS.glob("datasets/[!_]*.yaml"))


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line; report an invalid one in one line and exit with code 2."""
    parser = Parser(
        prog="python -m experiments table",
        description="Print tables of finished runs, or train and test methods first.",
    )
    methods, datasets = known_methods(), known_datasets()
    parser.add_argument(
        "outputs",
        nargs="*",
        metavar="OUTPUT",
        help="folders whose finished runs are read; nothing is run",
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, help=f"(default: {BASE2NEW.name}, of OUTPUT all)"
    )
    parser.add_argument(
        "--datasets",
        nargs="+",
        choices=datasets,
        help=f"trained on (default: {EMBEDDED_SOURCE}, of OUTPUT all)",
    )
    parser.add_argument("--methods", nargs="+", choices=methods, help="(default: all)")
    parser.add_argument(
        "--format", default=FORMATS[0], choices=FORMATS, help="LaTeX needs booktabs"
    )
    parser.add_argument(
        "--published", action="store_true", help="also print the figures of the papers"
    )
    parser.add_argument(
        "--shots",
        nargs="+",
        type=number_above_0,
        default=[],
        help="images per class (default: the protocol's)",
    )
    parser.add_argument(
        "--few-shot",
        nargs="+",
        default=[],
        choices=datasets,
        help="datasets, among --datasets, on which to train on all classes, too",
    )
    parser.add_argument("--no-run", action="store_true", help="only read finished runs")
    parser.add_argument(
        "--intervals",
        action="store_true",
        help="also print the 95%% intervals that come from the finite test set",
    )
    add_setting_arguments(parser)
    add_run_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.outputs:
        for name, value in vars(arguments).items():
            if name not in OF_FOUND and value != parser.get_default(name):
                option = name.replace("_", "-")
                parser.error(f"--{option}: expected no OUTPUT, whose runs are only read")
        return arguments
    if arguments.format != FORMATS[0] and not arguments.no_run:
        parser.error(f"--format {arguments.format}: expected OUTPUT or --no-run")
    arguments.protocol = arguments.protocol or BASE2NEW.name
    arguments.datasets = arguments.datasets or [EMBEDDED_SOURCE]
    arguments.methods = arguments.methods or methods
    if not set(arguments.few_shot) <= set(arguments.datasets):
        parser.error("--few-shot names a dataset that --datasets does not")
    if arguments.few_shot and arguments.protocol != BASE2NEW.name:
        parser.error(f"--few-shot requires --protocol {BASE2NEW.name}")
    return arguments


def show_found(arguments: argparse.Namespace) -> int:
    """Print the tables of the finished runs below output folders; return the exit code.

    Raises:
        UserError: an output is no folder, or there is nothing to show.
    """
    from experiments.found import find
    from experiments.rows import caption, tables_of

    runs, skipped, unfinished = find(arguments.outputs)
    n_results = len(runs) + len(skipped)
    chosen = [
        run
        for run in runs
        if (not arguments.datasets or run.dataset in arguments.datasets)
        and (not arguments.methods or run.trainer in arguments.methods)
    ]
    tables, twice = tables_of(chosen)
    tables = [one for one in tables if arguments.protocol in (None, one.protocol.name)]
    for line in (skipped := [*skipped, *twice]):
        print(f"skipped: {escaped(line)}", file=sys.stderr)
    if skipped:
        print(f"skipped: {len(skipped)} of {n_results} results", file=sys.stderr)
    if unfinished:
        print(f"unfinished runs, without results: {unfinished}", file=sys.stderr)
    if not tables:
        where = ", ".join(arguments.outputs)
        raise UserError(f"OUTPUT: expected finished runs of a protocol, got none in {where}")
    show(tables, caption(chosen), arguments, full)
    return 1 if skipped else 0


def show(
    tables: Sequence[Titled],
    caption: str,
    arguments: argparse.Namespace,
    write: Callable[[Cell | None], str],
) -> None:
    """Print tables in the format asked for, with the published figures if these are."""
    if arguments.published:
        from experiments.published import with_published

        tables = [one._replace(table=with_published(one)) for one in tables]
    say(document(tables, caption, arguments.format, write))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    try:
        if arguments.outputs:
            return show_found(arguments)
        jobs = plan(arguments)
        check_folders(arguments.root, arguments.output_dir, written=not arguments.no_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not arguments.no_run:
        start = time.monotonic()
        # Methods are usually listed from the fastest to the slowest; the slowest start first, so
        # that no core is idle at the end.
        slowness = {method: number for number, method in enumerate(arguments.methods)}
        by_need = sorted(jobs, key=lambda job: -slowness[job.runs[0].trainer])
        code = run_all(by_need, arguments.jobs)
        if code != 0:
            return code
        minutes, seconds = divmod(round(time.monotonic() - start), 60)
        say(f"\nDone in {minutes} min {seconds} s. ", end="")
    protocol, scores = PROTOCOLS[arguments.protocol], Scores()
    groups = {"": jobs}
    if protocol.transfers:  # another source has other targets
        groups = {
            name: [job for job in jobs if job.runs[0].dataset == name]
            for name in dict.fromkeys(arguments.datasets)
        }
    numbers = arguments.shots or protocol.shots
    shots = numbers[0] if len(numbers) == 1 and protocol is not FEW_SHOT else 0
    tables = [
        Titled("", protocol, shots, tabulate(own, protocol, scores, arguments.intervals))
        for own in groups.values()
    ]
    caption = ["Accuracy in percent", *scores.backbones, *scores.precisions]
    caption.append(f"{', '.join(map(str, numbers))} shots")
    seeds = " ".join(map(str, arguments.seeds))
    spread = ", mean ± standard deviation" if len(arguments.seeds) > 1 else ""
    if arguments.intervals:
        spread += ", (± half of the test set's 95% interval)"
    show(tables, f"{', '.join(caption)}, seed {seeds}{spread}", arguments, brief)
    return scores.report()
