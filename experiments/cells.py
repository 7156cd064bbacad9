"""The cells of a table: accuracies of finished runs over seeds and test images, and their averages.

The summary of averages is that of the averages, as in the papers; averages over datasets are of
columns in which every dataset has the same seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from configs.protocols import Protocol
from experiments.intervals import half_width_of_mean, half_width_over_seeds, propagated
from experiments.runs import Run

AVERAGE = "average"


class Cell(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: in percent.
        deviation: sample standard deviation over the seeds; None for one seed.
        seeds: their number; 0 for a published figure.
        half_width: of the 95% interval, in points; None where it is not known or not asked for.
    """

    mean: float
    deviation: float | None
    seeds: int
    half_width: float | None


class Entry(NamedTuple):
    """The accuracy of a finished run and its place in a table.

    Attributes:
        row: dataset, method, and the number of shots where rows tell them apart.
        column: heading.
        accuracy: in percent.
        run: it is of.
    """

    row: tuple[str, ...]
    column: str
    accuracy: float
    run: Run


class Table(NamedTuple):
    """A table with a row for each dataset and method.

    Attributes:
        header: of the first columns, then of the cells.
        rows: what stands in the first columns, and the cells; None where a run is missing.
        notes: lines that say what the averages leave out.
        entries: it was made from.
    """

    header: tuple[str, ...]
    rows: list[tuple[tuple[str, ...], list[Cell | None]]]
    notes: list[str]
    entries: Sequence[Entry] = ()


class Titled(NamedTuple):
    """A table of a protocol.

    Attributes:
        title: says what the caption of all tables does not.
        protocol: of its runs.
        shots: images per class; 0 where they are columns or rows.
        table: the table.
    """

    title: str
    protocol: Protocol
    shots: int
    table: Table


class Sample(NamedTuple):
    """An accuracy of each seed, with the half-width that the test images leave their mean."""

    by_seed: Mapping[int, float]
    half_width: float | None


HalfWidth = Callable[[Sequence[Run]], float | None]


def cell(
    values: Sequence[float], half_width: float | None = None, over_seeds: bool = False
) -> Cell | None:
    """Return the cell of the values of all seeds, None if there are none.

    Args:
        values: in percent.
        half_width: that the test images leave their mean.
        over_seeds: whether the interval is over the seeds, too.
    """
    if not values:
        return None
    if half_width is not None and over_seeds:
        half_width = math.hypot(half_width, half_width_over_seeds(values))
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Cell(statistics.fmean(values), deviation, len(values), half_width)


def tabulate(
    entries: Sequence[Entry],
    rows: Sequence[tuple[str, ...]],
    columns: Mapping[str, str],
    protocol: Protocol,
    half_width: HalfWidth,
    over_seeds: bool = False,
) -> Table:
    """Put entries into a table, with the protocol's summary and averages over datasets.

    Args:
        entries: in any order, one for each row, column and seed.
        rows: to show, in their order.
        columns: {heading: step of the protocol, "" for what stands beside it}.
        protocol: theirs; where it transfers, there are no averages over datasets.
        half_width: gives the test images' half-width of the mean of runs.
        over_seeds: whether intervals are over the seeds, too.
    """
    runs: dict[tuple[tuple[str, ...], str], dict[int, Entry]] = {}
    for entry in entries:
        runs.setdefault((entry.row, entry.column), {})[entry.run.seed] = entry
    samples: dict[tuple[str, ...], dict[str, Sample]] = {row: {} for row in rows}
    for (row, column), own in runs.items():
        ordered = dict(sorted(own.items()))
        accuracies = {seed: entry.accuracy for seed, entry in ordered.items()}
        half = half_width([entry.run for entry in ordered.values()])
        samples[row][column] = Sample(accuracies, half)

    notes: list[str] = []
    datasets = list(dict.fromkeys(row[0] for row in rows))
    if len(datasets) > 1 and not protocol.transfers:
        missing = []
        for rest in dict.fromkeys(row[1:] for row in rows):
            parts = [samples.get((dataset, *rest), {}) for dataset in datasets]
            found = {column: averaged([part.get(column) for part in parts]) for column in columns}
            complete = {column: one for column, one in found.items() if one is not None}
            samples[(AVERAGE, *rest)] = complete
            absent = [column for column in columns if column not in complete]
            is_begun = any(column in part for part in parts for column in absent)
            if is_begun:
                missing.append(f"{' '.join(rest)} ({', '.join(absent)})")
        notes.append(
            f"An average is over all {len(datasets)} datasets, where each has the same seeds."
            + (f" There is none for {'; '.join(missing)}." if missing else "")
        )
    headings = list(columns)
    if protocol.summary is not None:
        # in front of what stands beside the protocol
        headings.insert(sum(map(bool, columns.values())), protocol.summary[0])
    table: list[tuple[tuple[str, ...], list[Cell | None]]] = []
    for row, own_samples in samples.items():
        every = with_summary(own_samples, columns, protocol)
        cells = []
        for heading in headings:
            sample = every.get(heading)
            cells.append(
                cell(list(sample.by_seed.values()), sample.half_width, over_seeds)
                if sample
                else None
            )
        table.append((row, cells))
    first = ("Dataset", "Method", "Shots")[: len(rows[0])] if rows else ("Dataset", "Method")
    return Table((*first, *headings), table, notes, entries)


def averaged(samples: Sequence[Sample | None]) -> Sample | None:
    """Return the mean over datasets, None unless every one has the same seeds."""
    known = [sample for sample in samples if sample is not None]
    seeds = {tuple(sample.by_seed) for sample in known}
    if len(known) < len(samples) or len(seeds) != 1:
        return None
    means = {
        seed: statistics.fmean(sample.by_seed[seed] for sample in known) for seed in seeds.pop()
    }
    return Sample(means, half_width_of_mean([sample.half_width for sample in known]))


def with_summary(
    samples: Mapping[str, Sample], columns: Mapping[str, str], protocol: Protocol
) -> dict[str, Sample]:
    """Add the summary of a row, of the seeds that all of the protocol's columns have."""
    steps = {column: step for column, step in columns.items() if step}
    parts = [samples[column] for column in steps if column in samples]
    if protocol.summary is None or len(parts) < len(steps):
        return dict(samples)
    heading, summarize = protocol.summary

    def function(values: Sequence[float]) -> float:
        grouped: dict[str, list[float]] = {}
        for step, value in zip(steps.values(), values, strict=True):
            grouped.setdefault(step, []).append(value)
        return summarize(grouped)

    seeds = [seed for seed in parts[0].by_seed if all(seed in part.by_seed for part in parts)]
    if not seeds:
        return dict(samples)
    of_seeds = {seed: [part.by_seed[seed] for part in parts] for seed in seeds}
    half_widths = [part.half_width for part in parts if part.half_width is not None]
    half_width = None
    if len(half_widths) == len(parts):
        means = [statistics.fmean(values) for values in zip(*of_seeds.values(), strict=True)]
        half_width = propagated(function, means, half_widths)
    by_seed = {seed: function(values) for seed, values in of_seeds.items()}
    return {**samples, heading: Sample(by_seed, half_width)}
