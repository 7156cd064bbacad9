"""The sections about accuracy: tables, curves, gains over zero-shot, calibration, training."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from configs.protocols import BASE2NEW, FEW_SHOT
from dassl.engine.run_folder import TENSORBOARD_FOLDER
from dassl.errors import UserError
from dassl.evaluation import Predictions, read_predictions
from dassl.evaluation.predictions import PREDICTIONS_FILE
from dassl.metrics import BINS, bins_of
from experiments.bootstrap import Interval
from experiments.cells import AVERAGE, Cell, Titled
from experiments.compare import ACCURACY, Method, Planned
from experiments.comparison import Comparison, ranks_of
from experiments.found import Found
from experiments.outcomes import Outcomes
from experiments.report import figures
from experiments.report.blocks import Block, Figures, Section, Table
from experiments.rows import caption
from experiments.runs import Run
from experiments.significance import LEAST_DATASETS
from experiments.writing import full

Results = Mapping[Path, Mapping[str, Any]]  # the results.json of each run's folder


class Group:
    """The runs of a table.

    Attributes:
        table, protocol, title: of the table.
        runs: the finished runs, each with the label of its method.
        colors: by label.
    """

    def __init__(self, titled: Titled) -> None:
        self.table, self.protocol, self.title = titled.table, titled.protocol, titled.title
        place = {heading: number for number, heading in enumerate(self.table.header)}
        entries = sorted(titled.table.entries, key=lambda e: (e.run.is_trained, place[e.column]))
        self.runs = [(", ".join(entry.row[1:]), entry.run) for entry in entries]
        self.colors = figures.colors_of([label for label, _ in self.runs])

    def heading(self, run: Run) -> str:
        """Return the column of a run in what has a row for each target."""
        return ACCURACY if self.protocol.transfers else run.column

    def firsts(self) -> Iterator[tuple[str, Run]]:
        """Yield a training run of each label and dataset: with the lowest seed, the most shots."""
        trained = [pair for pair in self.runs if pair[1].is_trained and not pair[1].step.loads]
        trained.sort(key=lambda pair: (pair[1].seed, -pair[1].shots))
        found: dict[tuple[str, str], Run] = {}
        for label, run in trained:
            found.setdefault((label, run.dataset), run)
        return ((label, run) for (label, _), run in found.items())


def accuracies(group: Group) -> Section:
    """Tabulate the accuracies, and draw few-shot curves or base against novel."""
    table = group.table
    n_heads = len(table.rows[0][0])
    averages: list[list[str]] = []
    others: list[list[str]] = []
    drawn: dict[str, dict[str, dict[str, Cell]]] = {}  # by dataset, label and column
    for head, cells in sorted(table.rows, key=lambda row: row[0][0] != AVERAGE):
        (averages if head[0] == AVERAGE else others).append([*head, *map(full, cells)])
        known = {h: c for h, c in zip(table.header[n_heads:], cells, strict=True) if c is not None}
        drawn.setdefault(head[0], {})[", ".join(head[1:])] = known
    blocks: list[Block] = [Table(table.header, averages)] if averages else []
    if group.protocol is FEW_SHOT:
        blocks += few_shot_curves(group, drawn)
    elif group.protocol is BASE2NEW:
        blocks += base_against_novel(group, drawn)
    runs = [entry.run for entry in table.entries if isinstance(entry.run, Found)]
    return Section(
        group.title, f"{caption(runs)}.", [*blocks, Table(table.header, others)], table.notes
    )


def few_shot_curves(group: Group, drawn: Mapping[str, Any]) -> list[Block]:
    """Draw accuracy by number of shots, a figure for each dataset."""
    svgs = []
    for dataset, by_label in drawn.items():
        curves = {
            label: sorted((int(heading.split("-")[0]), c.mean) for heading, c in cells.items())
            for label, cells in by_label.items()
        }
        svgs.append(figures.shots(dataset, curves, group.colors))
    caption = "Accuracy by number of training images per class; dashed: zero-shot."
    return [Figures(svgs, group.colors, caption)]


def base_against_novel(group: Group, drawn: Mapping[str, Any]) -> list[Block]:
    """Draw a point for each method, on each dataset and on average."""
    headings = [step.column for step in BASE2NEW.steps]
    svgs = []
    for dataset, by_label in drawn.items():
        points = {
            label: tuple(cells[heading].mean for heading in headings)
            for label, cells in by_label.items()
            if cells.keys() >= {*headings}
        }
        if points:
            svgs.append(figures.scatter(dataset, points, group.colors))
    caption = "Accuracy on novel against base classes; the harmonic mean is the same along a line."
    return [Figures(svgs, group.colors, caption)] if svgs else []


def gains(group: Group, outcomes: Outcomes) -> Section | None:
    """Compare each method with zero-shot, by dataset, and all of them by rank."""
    seeds = sorted({run.seed for _, run in group.runs if run.is_trained})
    untrained = [label for label, run in group.runs if not run.is_trained]
    title = f"{group.title}: gain over {untrained[0] if untrained else 'zero-shot'}"
    if not seeds:
        return None
    if not untrained:
        return Section(title, "", [], ["There is no finished zero-shot run to compare with."])
    most = max(run.shots for _, run in group.runs)
    planned = [
        Planned(
            Method(label, run.trainer, (), ""),
            run.target,
            ACCURACY if group.protocol.transfers else run.step.column.format(shots=most),
            seed,
            run,
        )
        for label, run in group.runs
        if run.shots in (0, most)
        for seed in ([run.seed] if run.is_trained else seeds)
    ]
    planned.sort(key=lambda p: not p.run.is_trained)  # the first one names the source
    if not any(outcomes.of(p.run) for p in planned):
        return Section(title, "", [], ["No run has predictions to compare."])
    try:
        comparison = Comparison(planned, group.protocol, outcomes)
        reference = next(m for m in comparison.methods if m.text == untrained[0])
        others = [method for method in comparison.methods if method is not reference]
        found = {m.text: comparison.differences(m, reference) for m in others}
        ranks = rank_diagram(group, planned, outcomes)
    except UserError as error:
        return Section(title, "", [], [str(error)])
    row = AVERAGE if len(comparison.averaged) > 1 else comparison.averaged[0]
    heading = comparison.columns[-1]
    lines = []
    panels: dict[str, dict[str, Interval]] = {name: {} for name in (row, *comparison.rows)}
    for label, by_row in found.items():
        own = {name: by_row[name][heading] for name in panels if heading in by_row.get(name, {})}
        for name, interval in own.items():
            panels[name][label] = interval
        signs = [own[dataset].sign for dataset in comparison.averaged if dataset in own]
        cells = [str(by_row.get(row, {}).get(column, "-")) for column in comparison.columns]
        lines.append([label, *cells, " / ".join(str(signs.count(sign)) for sign in (1, 0, -1))])
    svgs = [figures.intervals(name, own, group.colors) for name, own in panels.items() if own]
    text = (
        "Differences in points on the same test images, with 95% intervals over images and seeds. "
        f"Trained with {most} images per class. The last column counts the datasets on which the "
        f"{heading.lower()} is better, not shown to differ, and worse."
    )
    header = ["Method", *(f"{column}, {row}" for column in comparison.columns), "+ / = / -"]
    blocks: list[Block] = [Table(header, lines)]
    blocks += [Figures(svgs, {}, f"Gain in {heading.lower()}.")] if svgs else []
    return Section(title, text, [*blocks, *ranks])


def rank_diagram(group: Group, planned: Sequence[Planned], outcomes: Outcomes) -> list[Block]:
    """Draw average ranks of the methods that have all runs, where they are enough for a test."""
    numbers = Counter(p.method for p in planned if outcomes.of(p.run) is not None)
    complete = [p for p in planned if numbers[p.method] == max(numbers.values())]
    comparison = Comparison(complete, group.protocol, outcomes)
    if len(comparison.methods) < 3 or len(comparison.averaged) < LEAST_DATASETS:
        return []
    found = ranks_of(comparison)
    caption = "Average ranks over datasets, 1 is best; a bar joins what cannot be told apart."
    svgs = [figures.ranks(h, found[h]) for h in comparison.columns[-1:] if h in found]
    return [Figures(svgs, {}, caption)] if svgs else []


def predictions_of(run: Run) -> Predictions | None:
    """Read a run's predictions, None where they are missing or damaged."""
    try:
        return read_predictions(str(run.place / PREDICTIONS_FILE))
    except UserError:
        return None


def calibration(group: Group, results: Results) -> Section:
    """Tabulate the expected calibration error, and draw reliability diagrams."""
    errors: dict[str, dict[str, list[float]]] = {}
    sums: dict[str, dict[str, np.ndarray]] = {}
    unread = 0
    for label, run in group.runs:
        heading, ece = group.heading(run), results[run.place].get("ece")
        if isinstance(ece, (int, float)):
            errors.setdefault(label, {}).setdefault(heading, []).append(ece)
        found = predictions_of(run)
        if found is None:
            unread += 1
            continue
        confidence = np.exp(found.top_logits[:, 0] - found.log_sum_exp).astype(float).clip(1e-9, 1)
        right, bins = found.top_indices[:, 0] == found.labels, bins_of(confidence)
        own = sums.setdefault(label, {}).setdefault(heading, np.zeros((3, BINS)))
        own += [np.bincount(bins, w, BINS) for w in (confidence, right, np.ones(len(bins)))]
    headings = list(dict.fromkeys(h for by_heading in errors.values() for h in by_heading))
    rows = [
        [label, *(f"{statistics.fmean(own[h]):.3f}" if h in own else "-" for h in headings)]
        for label, own in errors.items()
    ]
    colors = figures.colors_of([heading for found in sums.values() for heading in found])
    svgs = [figures.reliability(label, found, colors) for label, found in sums.items()]
    text = (
        f"Expected calibration error ({BINS} bins of equal width; 0 is best), the mean over "
        "datasets and seeds. The diagrams take the images of all of them together."
    )
    notes = [f"Runs without predictions that can be read: {unread}."] if unread else []
    blocks: list[Block] = (
        [Table(["Method", *(f"ECE, {h}" for h in headings)], rows)] if rows else []
    )
    blocks += [Figures(svgs, colors, "Right predictions by confidence.")] if svgs else []
    return Section(f"{group.title}: calibration", text, blocks, notes)


def training(group: Group, results: Results) -> Section | None:
    """Draw the loss by epoch, a figure for each method."""
    curves: dict[str, dict[str, Any]] = defaultdict(dict)
    lacking = 0
    for label, run in group.firsts():
        curve = loss_curve(run.place / TENSORBOARD_FOLDER, results[run.place].get("epoch"))
        lacking += not curve
        if curve:
            curves[label][run.dataset] = curve
    if not curves and not lacking:
        return None
    colors = figures.colors_of(sorted({d for found in curves.values() for d in found}))
    svgs = [figures.losses(label, found, colors) for label, found in curves.items()]
    notes = [f"Runs without curves: {lacking}."] if lacking else []
    blocks = [Figures(svgs, colors, "Mean loss of each epoch.")] if svgs else []
    text = "Of each method and dataset the run with the lowest seed."
    return Section(f"{group.title}: training", text, blocks, notes)


def loss_curve(folder: Path, epochs: Any) -> list[tuple[int, float]]:
    """Return epochs, from 1, with their losses; empty where there are none that can be read.

    The points of an epoch are running means, so its last one is that of the epoch.
    """
    losses: dict[int, float] = {}
    for path in sorted(folder.glob("events.*")):
        try:
            for record in RawEventFileLoader(str(path)).Load():
                event = Event.FromString(record)
                for value in event.summary.value:
                    if value.tag == "train/loss":
                        losses[event.step] = value.simple_value
        except Exception:  # of many kinds; what comes before the damage has been read
            continue
    if not losses or not isinstance(epochs, int) or epochs < 1:
        return []
    size = (max(losses) + 1) / epochs  # batches of an epoch
    ends = {epoch: round(size * epoch) - 1 for epoch in range(1, epochs + 1)}
    return [(epoch, losses[step]) for epoch, step in ends.items() if step in losses]
