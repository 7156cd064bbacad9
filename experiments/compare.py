"""Compare methods on the same test images: differences with intervals, and tests over datasets.

    python -m experiments compare CoOp KgCoOp --datasets emoji food digits --seeds 1 2 3
    python -m experiments compare CoOp CoOp,TRAINER.COOP.N_CTX=4 CoOp@other-output --datasets emoji

A method may be followed by settings of its own and by the output folder of its runs. Only finished
runs are read; those that are missing are named.

Exit codes: 0 done, 1 a result is damaged, 2 bad input, such as runs that cannot be compared.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dassl.command import Parser, say
from dassl.errors import UserError, nearest
from experiments.bootstrap import Interval, interval_over_seeds, resampled_accuracies
from experiments.configs import EMBEDDED_SOURCE
from experiments.executors import Job, check_folders
from experiments.outcomes import Outcome, Outcomes, check_comparable, check_same_settings
from experiments.protocols import BASE2NEW, FEW_SHOT, PROTOCOLS, Protocol
from experiments.rank_diagram import Panel, save
from experiments.runs import Run, runs_of
from experiments.significance import (
    LEAST_DATASETS,
    LEVEL,
    average_ranks,
    critical_difference,
    friedman_p,
    holm,
    least_p,
    signed_rank_p,
)
from experiments.table import (
    add_place_arguments,
    add_setting_arguments,
    check_config_files,
    known_datasets,
    known_methods,
    number_above_0,
    render,
)

RANDOM_SEED = 1  # of the resampled images
AVERAGE = "average"
ACCURACY = "Accuracy"  # heading of a protocol that has a row for each target


class Method(NamedTuple):
    """A method on the command line: NAME[,KEY=VALUE...][@OUTPUT]."""

    text: str
    trainer: str
    overrides: tuple[str, ...]
    output_dir: str  # "" for that of --output-dir


def method(text: str) -> Method:
    """Read a method from the command line."""
    settings, _, output_dir = text.partition("@")
    trainer, *pairs = settings.split(",")
    if trainer not in (known := known_methods()):
        raise argparse.ArgumentTypeError(f"unknown method '{trainer}'; {nearest(trainer, known)}")
    overrides: list[str] = []
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not key or not value:
            raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got '{pair}' in '{text}'")
        overrides += [key, value]
    return Method(text, trainer, tuple(overrides), output_dir)


class Planned(NamedTuple):
    """A run that is compared, with its place in a table.

    Attributes:
        method: its method.
        row: dataset tested.
        heading: of its column.
        seed: it stands for; a run that is not trained stands for all.
        run: the run.
    """

    method: Method
    row: str
    heading: str
    seed: int
    run: Run


def plan(arguments: argparse.Namespace) -> list[Planned]:
    """List the runs that the command line asks for.

    Raises:
        UserError: ``runs_of`` raises it, or a config file does not exist.
    """
    protocol = PROTOCOLS[arguments.protocol]
    planned, jobs = [], []
    for contender, dataset, shots, seed in itertools.product(
        *(arguments.methods, arguments.datasets, arguments.shots or protocol.shots),
        arguments.seeds,
    ):
        runs = runs_of(
            *(protocol, contender.trainer, dataset, seed, shots),
            config=arguments.config,
            overrides=[*arguments.overrides, *contender.overrides],
            backbone=arguments.backbone,
            targets=arguments.targets,
            root=arguments.root,
            output_dir=contender.output_dir or arguments.output_dir,
        )
        jobs.append(Job(protocol, tuple(runs)))
        for run in runs:
            heading = ACCURACY if transfers(protocol) else run.step.column.format(shots=shots)
            planned.append(Planned(contender, run.target, heading, seed, run))
    check_config_files(jobs)
    return planned


def transfers(protocol: Protocol) -> bool:
    """Tell whether the protocol's rows are targets of one source."""
    return any(step.transfers for step in protocol.steps)


class Comparison:
    """What the methods' finished runs are right about.

    Args:
        planned: the runs.
        protocol: theirs.
        outcomes: reads them.

    Raises:
        UserError: runs cannot be compared.
    """

    def __init__(self, planned: Sequence[Planned], protocol: Protocol, outcomes: Outcomes) -> None:
        self.protocol = protocol
        self.methods = list(dict.fromkeys(p.method for p in planned))
        self.seeds = list(dict.fromkeys(p.seed for p in planned))
        self.rows = list(dict.fromkeys(p.row for p in planned))
        # The source is no target: averages and tests over datasets leave it out.
        self.source = planned[0].run.dataset if transfers(protocol) else ""
        self.averaged = [row for row in self.rows if row != self.source]
        self.summary = protocol.summary[0] if protocol.summary and not self.source else ""
        self.headings = list(dict.fromkeys(p.heading for p in planned))
        self._right: dict[tuple[Method, str, str], dict[int, np.ndarray]] = {}
        firsts: dict[tuple[object, ...], Outcome] = {}
        for contender, row, heading, seed, run in planned:
            outcome = outcomes.of(run)
            if outcome is not None:
                check_comparable(firsts.setdefault((row, heading), outcome), outcome)
                own = firsts.setdefault((contender, row, heading), outcome)
                check_same_settings(own, outcome)
                right = self._right.setdefault((contender, row, heading), {})
                right[seed] = outcome.right

    @property
    def columns(self) -> list[str]:
        """The headings, with that of the summary."""
        return [*self.headings, *filter(None, [self.summary])]

    def with_summary(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add the summary of values by heading, if all its parts are known."""
        steps = {step.column: step.name for step in self.protocol.steps}
        if not self.summary or not steps.keys() <= values.keys():
            return dict(values)
        assert self.protocol.summary is not None
        summarize = self.protocol.summary[1]

        def function(*numbers: float) -> float:
            pairs = zip(steps.values(), numbers, strict=True)
            return summarize({name: [number] for name, number in pairs})

        parts = [values[column] for column in steps]
        return {**values, self.summary: np.vectorize(function, otypes=[float])(*parts)}

    def accuracies(self, heading: str) -> np.ndarray | None:
        """Return the methods' means over seeds (datasets, methods), None if a run is missing."""
        means = []
        for row, contender in itertools.product(self.averaged, self.methods):
            found = {}
            for part in self.headings:
                right = self._right.get((contender, row, part), {})
                shares = [100 * right[s].mean() if s in right else np.nan for s in self.seeds]
                found[part] = np.array(shares)
            means.append(self.with_summary(found)[heading].mean())
        known = not np.isnan(means).any()
        return np.reshape(means, (len(self.averaged), len(self.methods))) if known else None

    def differences(self, first: Method, second: Method) -> dict[str, dict[str, Interval]]:
        """Return first - second by row and heading; "average" only where no run is missing.

        The summary of the average is that of the averages, as in the papers. Seeds are paired: the
        same one draws the same training images for both methods.
        """
        random = np.random.default_rng(RANDOM_SEED)
        rows: dict[str, dict[str, np.ndarray]] = {row: {} for row in self.rows}
        for row, heading in itertools.product(self.rows, self.headings):
            both = [self._right.get((m, row, heading), {}) for m in (first, second)]
            seeds = [n for n, seed in enumerate(self.seeds) if all(seed in r for r in both)]
            if seeds:
                right = np.stack([right[self.seeds[n]] for right in both for n in seeds])
                found = resampled_accuracies(right, random).reshape(-1, 2, len(seeds))
                rows[row][heading] = np.full((len(found), 2, len(self.seeds)), np.nan)
                rows[row][heading][:, :, seeds] = found
        if len(self.averaged) > 1:
            means = {}
            for heading in self.headings:
                known = [rows[row][heading] for row in self.averaged if heading in rows[row]]
                if len(known) == len(self.averaged) and not np.isnan(known).any():
                    means[heading] = np.mean(known, axis=0)
            rows[AVERAGE] = means
        intervals: dict[str, dict[str, Interval]] = {}
        for row, found in rows.items():
            intervals[row] = {}
            for heading, values in self.with_summary(found).items():
                by_seed = values[:, 0] - values[:, 1]
                by_seed = by_seed[:, ~np.isnan(by_seed[0])]
                if by_seed.size:
                    intervals[row][heading] = interval_over_seeds(by_seed)
        return intervals


class Pair(NamedTuple):
    """A comparison of two methods.

    Attributes:
        name: of both.
        intervals: of their difference, by row and heading.
        p: of the signed-rank test by heading, corrected for the number of pairs.
        favors: by heading, 1 where the first method is mostly better on datasets, or -1.
    """

    name: str
    intervals: dict[str, dict[str, Interval]]
    p: dict[str, float]
    favors: dict[str, int]


def compare_pairs(comparison: Comparison) -> list[Pair]:
    """Compare all pairs of methods, in their order."""
    numbers = list(itertools.combinations(range(len(comparison.methods)), 2))
    pairs = []
    for i, j in numbers:
        first, second = comparison.methods[i], comparison.methods[j]
        intervals = comparison.differences(first, second)
        pairs.append(Pair(f"{first.text} - {second.text}", intervals, {}, {}))
    for heading in comparison.columns:
        tested: list[tuple[Pair, float]] = []
        for pair in pairs:
            rows = [pair.intervals[row].get(heading) for row in comparison.averaged]
            complete = heading in pair.intervals.get(AVERAGE, {})
            means = [interval.mean for interval in rows if interval is not None]
            p = signed_rank_p(means) if complete else None
            if p is not None:
                pair.favors[heading] = int(np.sign(np.median(means)))
                tested.append((pair, p))
        for (pair, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
            pair.p[heading] = p
    return pairs


def table_of(pair: Pair, comparison: Comparison) -> str:
    """Render the differences of a pair: by dataset, on average, and how many are which."""
    columns, rows = comparison.columns, []
    for row, found in pair.intervals.items():
        name = f"{row} (source)" if row == comparison.source else row
        rows.append((name, *(str(found.get(heading, "-")) for heading in columns)))
    if len(comparison.averaged) > 1:
        signs = {
            heading: [
                pair.intervals[row][heading].sign
                for row in comparison.averaged
                if heading in pair.intervals[row]
            ]
            for heading in columns
        }
        counts = [" / ".join(str(signs[h].count(sign)) for sign in (1, 0, -1)) for h in columns]
        rows.append(("win / tie / loss", *counts))
    if pair.p:
        ps = [f"p = {pair.p[h]:.4f}" if h in pair.p else "-" for h in columns]
        rows.append(("signed-rank test", *ps))
    return render(("Dataset", *columns), rows)


def sentence(pair: Pair, comparison: Comparison) -> str:
    """Say what can be said of a pair."""
    first, _, second = pair.name.partition(" - ")
    n = len(comparison.averaged)
    row, where = AVERAGE, f"the average of these {n} datasets"
    if n == 1:
        row = where = comparison.averaged[0]
    signs: dict[str, int | None] = {
        heading: found.sign if (found := pair.intervals[row].get(heading)) else None
        for heading in comparison.columns
    }
    text = f"{first} against {second}, on {where}: {verdicts(signs)}."
    if pair.p:
        ps = {h: pair.favors[h] * (p <= LEVEL) for h, p in pair.p.items()}
        text += f" By the signed-rank test, on such datasets in general: {verdicts(ps)}."
    return text


def verdicts(signs: Mapping[str, int | None]) -> str:
    """Put into words in which columns the first of two methods is better, worse or neither."""
    words = {
        1: "better in {}",
        -1: "worse in {}",
        0: "no difference can be shown in {}",
        None: "runs are missing for {}",
    }
    groups = {sign: [h for h, found in signs.items() if found == sign] for sign in words}
    return "; ".join(words[sign].format(", ".join(own)) for sign, own in groups.items() if own)


def ranks_of(comparison: Comparison) -> dict[str, Panel]:
    """Return the methods' average ranks by heading, where no run is missing."""
    names = [contender.text for contender in comparison.methods]
    n = len(comparison.averaged)
    panels = {}
    for heading in comparison.columns:
        accuracies = comparison.accuracies(heading)
        if accuracies is not None:
            ranks = average_ranks(accuracies)
            p, difference = friedman_p(ranks, n), critical_difference(len(names), n)
            panels[heading] = Panel(dict(zip(names, ranks.tolist(), strict=True)), p, difference)
    return panels


def rank_table(panels: Mapping[str, Panel]) -> str:
    """Render average ranks with Friedman's and Nemenyi's tests."""
    columns = list(panels.values())
    rows = [(m, *(f"{panel.ranks[m]:.2f}" for panel in columns)) for m in columns[0].ranks]
    rows.append(("Friedman's test", *(f"p = {panel.p:.4f}" for panel in columns)))
    rows.append(("critical difference", *(f"{panel.difference:.2f}" for panel in columns)))
    return render(("Method", *panels), rows)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line; report an invalid one in one line and exit with code 2."""
    parser = Parser(
        prog="python -m experiments compare",
        description="Compare methods on the same test images. Only finished runs are read.",
    )
    parser.add_argument(
        "methods",
        nargs="+",
        type=method,
        metavar="METHOD[,KEY=VALUE...][@OUTPUT]",
        help="a method, with settings of its own and the folder of its runs",
    )
    parser.add_argument("--protocol", default=BASE2NEW.name, choices=PROTOCOLS)
    parser.add_argument(
        "--datasets", nargs="+", default=[EMBEDDED_SOURCE], choices=known_datasets()
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--shots",
        nargs="+",
        type=number_above_0,
        default=[],
        help="images per class (default: the protocol's)",
    )
    parser.add_argument(
        "--diagram", type=svg_path, help="critical-difference diagram to write, an SVG"
    )
    add_setting_arguments(parser)
    add_place_arguments(parser)
    arguments = parser.parse_args(argv)
    arguments.methods = list(dict.fromkeys(arguments.methods))
    if len(arguments.methods) < 2:
        parser.error(f"METHOD: expected two or more, got {arguments.methods[0].text}")
    if arguments.protocol != FEW_SHOT.name and len(arguments.shots) > 1:
        parser.error(f"--shots: expected one number, except with --protocol {FEW_SHOT.name}")
    if transfers(PROTOCOLS[arguments.protocol]) and len(arguments.datasets) > 1:
        parser.error(f"--datasets: expected one, the source, with --protocol {arguments.protocol}")
    if arguments.diagram and len(arguments.methods) < 3:
        parser.error("--diagram: expected three or more methods")
    return arguments


def svg_path(text: str) -> Path:
    """Read the name of the diagram."""
    if not text.lower().endswith(".svg"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .svg, got '{text}'")
    return Path(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    protocol, outcomes = PROTOCOLS[arguments.protocol], Outcomes()
    try:
        planned = plan(arguments)
        check_folders(arguments.root, arguments.output_dir, written=False)
        comparison = Comparison(planned, protocol, outcomes)
        n = len(comparison.averaged)
        if arguments.diagram and n < LEAST_DATASETS:
            raise UserError(f"--diagram: expected {LEAST_DATASETS} datasets or more, got {n}")
        say(report(comparison, arguments))
        if arguments.diagram:
            save(ranks_of(comparison), arguments.diagram)
            say(f"\n{arguments.diagram}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return outcomes.report()


def report(comparison: Comparison, arguments: argparse.Namespace) -> str:
    """Return all tables, with a sentence for each pair."""
    n, k = len(comparison.averaged), len(comparison.methods)
    pairs = compare_pairs(comparison)
    shots = ", ".join(map(str, arguments.shots or comparison.protocol.shots))
    seeds = " ".join(map(str, comparison.seeds))
    over = "images and seeds" if len(comparison.seeds) > 1 else "images, not other seeds"
    texts = [
        f"Differences of accuracy in points, {shots} shots, seed {seeds}, "
        f"[95 % interval over {over}]:"
    ]
    for pair in pairs:
        texts += [f"{pair.name}:", table_of(pair, comparison), sentence(pair, comparison)]
    if n < LEAST_DATASETS:
        texts.append(
            f"No test over datasets: with {n} of them no p can be below {least_p(n):.4g}; "
            f"it needs {LEAST_DATASETS}."
        )
        return "\n\n".join(texts)
    if k > 2 and (panels := ranks_of(comparison)):
        texts += [
            f"Average ranks over {n} datasets, 1 is best:",
            rank_table(panels),
            "Methods whose ranks differ by less than the critical difference (Nemenyi, 5 %) cannot "
            f"be told apart, nor can any where Friedman's p is above {LEVEL}.",
        ]
    return "\n\n".join(texts)
