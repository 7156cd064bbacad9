"""The figures that the papers print, from experiments/data: a file for each paper."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from configs.choice import PUBLIC
from experiments.cells import AVERAGE, Cell, Table, Titled

DATA = Path(__file__).parent / "data"
ABSENT = "-"


class Accuracies(NamedTuple):
    """Mean accuracies of a method on base and novel classes, and the harmonic mean."""

    base: float
    novel: float
    harmonic_mean: float


class Printed(NamedTuple):
    """A table as printed.

    Attributes:
        source: paper, number of the table and backbone; or where else it is listed.
        about: what its rows vary; "" for methods.
        protocol: its name.
        shots: images per class, for protocols that have no columns for them.
        figures: {(dataset, row): {column: text}}; ``ABSENT`` where there is none.
    """

    source: str
    about: str
    protocol: str
    shots: int
    figures: Mapping[tuple[str, str], Mapping[str, str]]


@functools.cache
def printed() -> dict[str, Printed]:
    """Return all tables, by the name of the file and the number, such as "hicropl14"."""
    found = {}
    for path in sorted(DATA.glob("*.yaml")):
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        for number, table in content["tables"].items():
            n, figures = len(table["columns"]), {}
            for row, text in table["rows"].items():
                values = text.split()
                for i, dataset in enumerate(table["datasets"]):
                    own = values[i * n : (i + 1) * n]
                    figures[(dataset, row)] = dict(zip(table["columns"], own, strict=True))
            source = f"{content['name']}, Table {number}, {content['backbone']}"
            source = table.get("source", source)
            about, shots = table.get("about", ""), content["shots"]
            found[f"{path.stem}{number}"] = Printed(
                source, about, table["protocol"], shots, figures
            )
    return found


def averages() -> dict[str, Accuracies]:
    """Return the base-to-novel averages over 11 datasets by trainer; the first paper's count."""
    found: dict[str, Accuracies] = {}
    for table in printed().values():
        if table.protocol == "base2new" and not table.about:
            for (dataset, row), figures in table.figures.items():
                if dataset == AVERAGE:
                    found.setdefault(row, Accuracies(*map(float, figures.values())))
    return found


AVERAGES = averages()


def with_published(shown: Titled) -> Table:
    """Add rows with the papers' figures below those of the same dataset and method.

    Equal figures of several papers are one row. Averages are there if the table has the papers'
    datasets.
    """
    _, protocol, shots, table = shown
    n_heads = len(table.rows[0][0]) if table.rows else 2
    headings = table.header[n_heads:]
    has_average = {head[0] for head, _ in table.rows} - {AVERAGE} == set(PUBLIC)
    rows = []
    for i, (head, cells) in enumerate(table.rows):
        rows.append((head, cells))
        dataset, trainer = head[0], head[1].partition(" ")[0]
        following = table.rows[i + 1][0] if i + 1 < len(table.rows) else ("", "")
        if following[:1] == head[:1] and following[1].partition(" ")[0] == trainer:
            continue  # behind the last row of the method
        sources: dict[tuple[float | None, ...], list[str]] = {}
        for one in printed().values():
            figures = one.figures.get((dataset, trainer))
            is_fit = one.protocol == protocol.name and shots in (0, one.shots) and not one.about
            if figures and is_fit and (dataset != AVERAGE or has_average):
                texts = (figures.get(heading, ABSENT) for heading in headings)
                values = tuple(None if text == ABSENT else float(text) for text in texts)
                sources.setdefault(values, []).append(one.source)
        for values, names in sources.items():
            if any(value is not None for value in values):
                of_paper = [
                    None if value is None else Cell(value, None, 0, None) for value in values
                ]
                label = f"{trainer}, published: {'; '.join(names)}"
                rows.append(((dataset, label, *[""] * (n_heads - 2)), of_paper))
    return table._replace(rows=rows)
