"""Differences of methods that were tested on the same images, in tables and words."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from configs.protocols import Protocol
from dassl.errors import UserError
from experiments.bootstrap import Interval, interval_over_seeds, resampled_accuracies
from experiments.compare import Method, Planned
from experiments.outcomes import Outcome, Outcomes, check_comparable, check_same_settings
from experiments.rank_diagram import Panel
from experiments.runs import Run
from experiments.significance import (
    LEAST_DATASETS,
    LEVEL,
    average_ranks,
    critical_difference,
    friedman_p,
    holm,
    least_p,
    shown,
    signed_rank_p,
)
from experiments.writing import render

RANDOM_SEED = 1  # of the resampled images
AVERAGE = "average"


class Comparison:
    """What the methods' finished runs are right about.

    Args:
        planned: the runs.
        protocol: theirs.
        outcomes: reads them.

    Raises:
        UserError: no run has finished, or runs cannot be compared.
    """

    def __init__(self, planned: Sequence[Planned], protocol: Protocol, outcomes: Outcomes) -> None:
        self.protocol = protocol
        self.methods = list(dict.fromkeys(p.method for p in planned))
        self.seeds = list(dict.fromkeys(p.seed for p in planned))
        self.rows = list(dict.fromkeys(p.row for p in planned))
        # The source is no target: averages and tests over datasets leave it out.
        self.source = planned[0].run.dataset if protocol.transfers else ""
        self.averaged = [row for row in self.rows if row != self.source]
        self.headings = list(dict.fromkeys(p.heading for p in planned))
        steps = {step.column for step in protocol.steps}
        has_summary = protocol.summary is not None and steps <= set(self.headings)
        self.summary = protocol.summary[0] if protocol.summary and has_summary else ""
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
        if not firsts:
            raise UserError(f"METHOD: expected finished runs, got none in {planned[0].run.folder}")
        configs = [{"config": outcome.config} for outcome in firsts.values()]
        self.backbones = dict.fromkeys(map(Run.backbone_in, configs))
        self.shots = dict.fromkeys(p.run.shots for p in planned if p.run.is_trained)

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
        for row, by_heading in rows.items():
            intervals[row] = {}
            for heading, values in self.with_summary(by_heading).items():
                by_seed = values[:, 0] - values[:, 1]
                by_seed = by_seed[:, ~np.isnan(by_seed[0])]
                if by_seed.size:
                    intervals[row][heading] = interval_over_seeds(by_seed)
        return intervals


class Pair(NamedTuple):
    """A comparison of two methods.

    Attributes:
        first, second: the methods.
        intervals: of first - second, by row and heading.
        p: of the signed-rank test by heading, corrected for the number of pairs.
        favors: by heading, 1 where the first method is mostly better on datasets, or -1.
    """

    first: Method
    second: Method
    intervals: dict[str, dict[str, Interval]]
    p: dict[str, float]
    favors: dict[str, int]


def compare_pairs(comparison: Comparison) -> list[Pair]:
    """Compare all pairs of methods, in their order."""
    pairs = [
        Pair(first, second, comparison.differences(first, second), {}, {})
        for first, second in itertools.combinations(comparison.methods, 2)
    ]
    for heading in comparison.columns:
        tested: list[tuple[Pair, float]] = []
        for pair in pairs:
            if heading in pair.intervals.get(AVERAGE, {}):
                means = [pair.intervals[row][heading].mean for row in comparison.averaged]
                p = signed_rank_p(means)
                if p is not None:
                    pair.favors[heading] = int(np.sign(np.median(means)))
                    tested.append((pair, p))
        for (pair, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
            pair.p[heading] = p
    return pairs


def cell(interval: Interval | None, n_seeds: int) -> str:
    """Format a difference; "-" where there is none. Says where it lacks seeds."""
    if interval is None:
        return "-"
    lacks = f" ({interval.seeds} of {n_seeds} seeds)" if interval.seeds < n_seeds else ""
    return f"{interval}{lacks}"


def table_of(pair: Pair, comparison: Comparison) -> str:
    """Render the differences of a pair: by dataset, on average, and how many are which."""
    columns, rows = comparison.columns, []
    for row, found in pair.intervals.items():
        name = f"{row} (source)" if row == comparison.source else row
        rows.append((name, *(cell(found.get(h), len(comparison.seeds)) for h in columns)))
    if AVERAGE in pair.intervals:
        counts = []
        for heading in columns:
            if heading in pair.intervals[AVERAGE]:
                signs = [pair.intervals[row][heading].sign for row in comparison.averaged]
                counts.append(" / ".join(str(signs.count(sign)) for sign in (1, 0, -1)))
            else:
                counts.append("-")
        rows.append(("win / tie / loss", *counts))
    if pair.p:
        ps = [shown(pair.p[h]) if h in pair.p else "-" for h in columns]
        rows.append(("signed-rank test", *ps))
    return render(("Dataset", *columns), rows)


def sentence(pair: Pair, comparison: Comparison) -> str:
    """Say what can be said of a pair."""
    n = len(comparison.averaged)
    row, where = AVERAGE, f"the average of these {n} datasets"
    if n == 1:
        row = where = comparison.averaged[0]
    signs: dict[str, int | None] = {
        heading: found.sign if (found := pair.intervals[row].get(heading)) else None
        for heading in comparison.columns
    }
    text = f"{pair.first.text} against {pair.second.text}, on {where}: {verdicts(signs)}."
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
        None: "results are missing in {}",
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
    rows.append(("Friedman's test", *(shown(panel.p) for panel in columns)))
    rows.append(("critical difference", *(f"{panel.difference:.2f}" for panel in columns)))
    return render(("Method", *panels), rows)


def caption(comparison: Comparison) -> str:
    """Say what the numbers are."""
    parts = ["Differences of accuracy in points", *filter(None, comparison.backbones)]
    if comparison.shots:
        parts.append(f"{', '.join(map(str, comparison.shots))} shots")
    seeds = " ".join(map(str, comparison.seeds))
    over = "images and seeds" if len(comparison.seeds) > 1 else "images, for this seed alone"
    return f"{', '.join(parts)}, seed {seeds}, [95% interval over {over}]:"


def limits(comparison: Comparison, n_pairs: int) -> list[str]:
    """Say where there are too few datasets for a test over them."""
    n = len(comparison.averaged)
    least = least_p(n)
    if n < LEAST_DATASETS:
        return [
            f"No test over datasets: with {n} of them no p can be below {least:.4g}; tests need "
            f"{LEAST_DATASETS} or more."
        ]
    if least * n_pairs > LEVEL:
        return [
            f"With {n} datasets and {n_pairs} pairs, Holm's correction leaves no p of the "
            f"signed-rank test below {least * n_pairs:.4g}; compare fewer methods."
        ]
    return []


def report(comparison: Comparison) -> str:
    """Return all tables, with a sentence for each pair."""
    pairs = compare_pairs(comparison)
    texts = [caption(comparison)]
    for pair in pairs:
        texts.append(f"{pair.first.text} - {pair.second.text}:")
        texts += [table_of(pair, comparison), sentence(pair, comparison)]
    texts += limits(comparison, len(pairs))
    n = len(comparison.averaged)
    if len(comparison.methods) > 2 and n >= LEAST_DATASETS and (panels := ranks_of(comparison)):
        texts += [
            f"Average ranks over {n} datasets, 1 is best:",
            rank_table(panels),
            "Methods whose ranks differ by less than the critical difference (Nemenyi, 5%) cannot "
            f"be told apart, nor can any where Friedman's p is above {LEVEL}.",
        ]
    return "\n\n".join(texts)
