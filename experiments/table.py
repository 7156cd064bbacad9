"""Train and test methods under one protocol and print a table of their accuracies.

    python -m experiments table --datasets emoji --methods ZeroshotCLIP CoOp HiCroPL --seeds 1 2 3
    python -m experiments table --protocol cross_dataset --datasets imagenet --methods MMA --no-run

Every run is one call of ``train.main``, as on the command line, in the folder that the scripts use.
Finished runs are skipped and interrupted ones resumed, so the same command can be repeated. Damaged
or missing results are skipped and counted.

Exit codes: 0 done, 1 a run failed or a result is damaged, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dassl.command import Parser, say
from dassl.errors import UserError
from dassl.table import aligned
from experiments.configs import CONFIGS, EMBEDDED_SOURCE
from experiments.intervals import (
    half_width_of_mean,
    mean_and_half_width,
    propagated,
    shares_right,
)
from experiments.protocols import BASE2NEW, FEW_SHOT, PROTOCOLS, Protocol
from experiments.runs import Job, Run, runs_of
from experiments.sweep import check_folders, run_all

ALL_CLASSES = "All classes"  # column of the few-shot runs next to base-to-novel


class Scores:
    """The accuracies of finished runs; damaged or missing ones are skipped and counted."""

    def __init__(self) -> None:
        self.backbones: dict[str, None] = {}  # of the runs read, in their order
        self.precisions: dict[str, None] = {}
        self._accuracies: dict[Path, float | None] = {}
        self._views: dict[Path, int] = {}
        self._damaged = 0
        self._right: dict[Path, dict[str, bool] | None] = {}
        self._damaged_predictions = 0

    def accuracy(self, run: Run) -> float | None:
        """Return the accuracy in percent, None if there is none; report a damaged file."""
        folder = run.folder
        if folder not in self._accuracies:
            self._accuracies[folder] = self._read(run) if run.is_finished else None
        return self._accuracies[folder]

    def _read(self, run: Run) -> float | None:
        try:
            results = run.results()
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)
            self._damaged += 1
            return None
        if backbone := run.backbone_in(results):
            self.backbones[backbone] = None
        if isinstance(precision := results.get("precision"), str):  # earlier versions had none
            self.precisions[precision] = None
        if run.is_trained:
            self._views[run.folder] = run.views_in(results)
        return float(results["accuracy"])

    def accuracies(self, runs: Iterable[Run]) -> list[float]:
        """Return the accuracies that exist."""
        return [a for a in map(self.accuracy, runs) if a is not None]

    def named(self, method: str, jobs: Iterable[Job]) -> str:
        """Return a method's name, marked where its runs that were read saw fixed views."""
        folders = [run.folder for job in jobs for run in job.runs]
        found = sorted({self._views[folder] for folder in folders if folder in self._views})
        return f"{method} (VIEWS {', '.join(map(str, found))})" if any(found) else method

    def summary(self, job: Job) -> list[float]:
        """Return the protocol's summary of a job, empty if an accuracy for it is missing."""
        steps: dict[str, list[float]] = {step.name: [] for step in job.protocol.steps}
        for run in job.runs:
            steps[run.step.name] += self.accuracies([run])
        complete = sum(map(len, steps.values())) == len(job.runs) and all(steps.values())
        if job.protocol.summary is None or not complete:
            return []
        return [job.protocol.summary[1](steps)]

    def right(self, run: Run) -> dict[str, bool] | None:
        """Return {test picture: whether the run is right}; None without readable predictions."""
        folder = run.folder
        if folder not in self._right:
            self._right[folder] = self._read_predictions(run)
        return self._right[folder]

    def _read_predictions(self, run: Run) -> dict[str, bool] | None:
        from dassl.evaluation.predictions import PREDICTIONS_FILE, read_predictions

        path = run.place / PREDICTIONS_FILE
        if not path.exists():
            return None
        try:
            found = read_predictions(str(path))
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)
            self._damaged_predictions += 1
            return None
        right = found.top_indices[:, 0] == found.labels
        return dict(zip(found.paths.tolist(), right.tolist(), strict=True))

    def shares(self, runs: Iterable[Run]) -> dict[str, float]:
        """Return {test picture: share of finished runs that are right}; empty if one is unread."""
        rights = [self.right(run) for run in runs if self.accuracy(run) is not None]
        known = [right for right in rights if right is not None]
        return shares_right(known) if len(known) == len(rights) else {}

    def half_width(self, runs: Iterable[Run]) -> float | None:
        """Return the half-width of the test set's interval; None without predictions."""
        shares = self.shares(runs)
        return mean_and_half_width(shares.values())[1] if shares else None

    def summary_half_width(self, jobs: Iterable[Job]) -> float | None:
        """Return the half-width of the summary of the complete jobs of one method and dataset."""
        complete = [job for job in jobs if self.summary(job)]
        parts = list(zip(*(job.runs for job in complete), strict=True))
        known = [half for half in map(self.half_width, parts) if half is not None]
        if not parts or len(known) < len(parts):
            return None
        summarize = complete[0].protocol.summary

        def function(values: Sequence[float]) -> float:
            steps: dict[str, list[float]] = {}
            for runs, value in zip(parts, values, strict=True):
                steps.setdefault(runs[0].step.name, []).append(value)
            assert summarize is not None
            return summarize[1](steps)

        means = [statistics.fmean(self.accuracies(runs)) for runs in parts]
        return propagated(function, means, known)

    def report(self) -> int:
        """Print lines that count what was skipped, if anything was; return the exit code.

        It is 1 where a file is damaged: what is printed lacks a run that has finished.
        """
        missing = sum(a is None for a in self._accuracies.values()) - self._damaged
        if missing or self._damaged:
            total = len(self._accuracies)
            skipped = f"{self._damaged} damaged and {missing} missing of {total} results"
            print(f"skipped: {skipped}", file=sys.stderr)
        unknown = sum(right is None for right in self._right.values())
        if unknown:
            print(
                f"no intervals: {unknown} of {len(self._right)} runs have no predictions that can "
                "be read",
                file=sys.stderr,
            )
        return 1 if self._damaged or self._damaged_predictions else 0


def cell(values: Sequence[float], half_width: float | None = None) -> str:
    """Format the mean and, over several seeds, sample standard deviation; "-" if empty.

    The half-width of the test set's interval, where it is known, follows in parentheses.
    """
    if not values:
        return "-"
    parts = [f"{statistics.fmean(values):.1f}"]
    if len(values) > 1:
        parts.append(f"± {statistics.stdev(values):.1f}")
    if half_width is not None:
        parts.append(f"(± {half_width:.1f})")
    return " ".join(parts)


def tabulate(
    jobs: Sequence[Job], protocol: Protocol, scores: Scores, intervals: bool = False
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of a table of finished jobs.

    A row is a dataset and a method, in the order of ``jobs``, and also a number of shots if there
    are several that the columns do not tell apart. Cells summarize all seeds, with ``intervals``
    also the test set. Several datasets have averages, unless the protocol transfers.
    """
    runs = sorted((r for job in jobs for r in job.runs), key=lambda r: r.shots)
    headings = [s.column for s in protocol.steps if "{" not in s.column]
    headings += [r.column for r in runs if r.step in protocol.steps]
    summary = [protocol.summary[0]] if protocol.summary else []
    others = [ALL_CLASSES] if any(job.protocol is not protocol for job in jobs) else []
    columns = [*dict.fromkeys(headings), *summary, *others]
    several = protocol is not FEW_SHOT and len({r.shots for r in runs if r.is_trained}) > 1

    rows: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        first = job.runs[0]
        key = (first.dataset, first.trainer, *([str(first.shots)] if several else []))
        rows.setdefault(key, []).append(job)

    def by_column(jobs: Sequence[Job]) -> dict[str, list[Run]]:
        found: dict[str, list[Run]] = {column: [] for column in columns if column not in summary}
        for run in (run for job in jobs for run in job.runs):
            found[run.column if run.step in protocol.steps else ALL_CLASSES].append(run)
        return found

    def cells(jobs: Sequence[Job]) -> list[str]:
        found = {
            column: cell(scores.accuracies(runs), scores.half_width(runs) if intervals else None)
            for column, runs in by_column(jobs).items()
        }
        for heading in summary:
            own = [job for job in jobs if job.protocol is protocol]
            values = [value for job in own for value in scores.summary(job)]
            half_width = scores.summary_half_width(own) if intervals else None
            found[heading] = cell(values, half_width)
        return [found[column] for column in columns]

    table = []
    for (dataset, method, *shots), jobs in rows.items():
        values = cells(jobs)
        table.append((dataset, scores.named(method, jobs), *shots, *values))
    datasets = {key[0]: None for key in rows}
    if len(datasets) > 1 and not protocol.transfers:
        for rest in {key[1:]: None for key in rows}:
            parts = [by_column(rows[(dataset, *rest)]) for dataset in datasets]
            found = average_cells(parts, protocol, scores, intervals)
            averaged = [job for dataset in datasets for job in rows[(dataset, *rest)]]
            named = (scores.named(rest[0], averaged), *rest[1:])
            table.append(("average", *named, *(found[column] for column in columns)))
    header = ("Dataset", "Method", *(["Shots"] if several else []), *columns)
    return header, table


def average_cells(
    parts: Sequence[Mapping[str, Sequence[Run]]],
    protocol: Protocol,
    scores: Scores,
    intervals: bool,
) -> dict[str, str]:
    """Return a method's means over datasets by column; "-" where a dataset lacks a result.

    The summary is that of the means, as in the papers.

    Args:
        parts: {column: a run of each seed} of each dataset.
        protocol: without steps that transfer.
        scores: of the runs.
        intervals: whether cells have the test sets' interval.
    """
    means: dict[str, list[float]] = {}
    half_widths: dict[str, float | None] = {}
    for column in parts[0]:
        groups = [part[column] for part in parts]
        found = [scores.accuracies(runs) for runs in groups]
        is_complete = len({*map(len, groups), *map(len, found)}) == 1
        seeds = zip(*found, strict=True) if is_complete else ()
        means[column] = list(map(statistics.fmean, seeds))
        is_asked = intervals and means[column]
        known = [scores.half_width(runs) for runs in groups] if is_asked else [None]
        half_widths[column] = half_width_of_mean(known)
    if protocol.summary is not None:
        heading, summarize = protocol.summary
        names = {step.name: step.column for step in protocol.steps}

        def function(values: Sequence[float]) -> float:
            return summarize({name: [value] for name, value in zip(names, values, strict=True)})

        own = [means[column] for column in names.values()]
        means[heading] = list(map(function, zip(*own, strict=True))) if all(own) else []
        widths = [w for column in names.values() if (w := half_widths[column]) is not None]
        half_widths[heading] = None
        if len(widths) == len(names):
            half_widths[heading] = propagated(function, list(map(statistics.fmean, own)), widths)
    return {column: cell(values, half_widths[column]) for column, values in means.items()}


def render(header: tuple[str, ...], table: Sequence[tuple[str, ...]]) -> str:
    """Return the table as Markdown, its columns padded to be readable on a terminal, too."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in aligned(header, table))


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
    parser.add_argument(
        "--workers",
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
        description="Train and test methods under one protocol and print a table.",
    )
    methods, datasets = known_methods(), known_datasets()
    parser.add_argument("--protocol", default=BASE2NEW.name, choices=PROTOCOLS)
    parser.add_argument("--datasets", nargs="+", default=[EMBEDDED_SOURCE], choices=datasets)
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
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
        help="also print the 95 %% intervals that come from the finite test set",
    )
    add_setting_arguments(parser)
    add_run_arguments(parser)
    arguments = parser.parse_args(argv)
    if not set(arguments.few_shot) <= set(arguments.datasets):
        parser.error("--few-shot names a dataset that --datasets does not")
    if arguments.few_shot and arguments.protocol != BASE2NEW.name:
        parser.error(f"--few-shot requires --protocol {BASE2NEW.name}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    try:
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
        code = run_all(by_need, arguments.workers)
        if code != 0:
            return code
        minutes, seconds = divmod(round(time.monotonic() - start), 60)
        say(f"\nDone in {minutes} min {seconds} s. ", end="")
    protocol, scores = PROTOCOLS[arguments.protocol], Scores()
    table = render(*tabulate(jobs, protocol, scores, arguments.intervals))
    shots = ", ".join(map(str, arguments.shots or protocol.shots))
    caption = ["Accuracy in percent", *scores.backbones, *scores.precisions, f"{shots} shots"]
    seeds = " ".join(map(str, arguments.seeds))
    spread = ", mean ± standard deviation" if len(arguments.seeds) > 1 else ""
    if arguments.intervals:
        spread += ", (± half of the test set's 95 % interval)"
    say(f"{', '.join(caption)}, seed {seeds}{spread}:\n\n{table}")
    return scores.report()
