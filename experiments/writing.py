"""Tables as text: Markdown, CSV and LaTeX; and the generated parts of Markdown pages."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from dassl.table import aligned
from experiments.cells import Cell, Table, Titled

FORMATS = ("markdown", "csv", "latex")
MISSING = "-"
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as Markdown, its columns padded to be readable on a terminal, too."""
    escaped = [[text.replace("|", r"\|") for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in aligned(header, escaped))


def filled(page: str, name: str, part: str) -> str:
    """Return a page with a part between its marks, in place of what is there.

    Args:
        page: the page's text; ``<!-- NAME -->`` begins the part and ``<!-- /NAME -->`` ends it.
        name: the part's name.
        part: what to put there.

    Raises:
        ValueError: the page does not have one such place.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    if (page.count(begin), page.count(end), rest.count(end)) != (1, 1, 1):
        raise ValueError(f"expected one {begin} and below it one {end}")
    return f"{before}{begin}\n{part}\n{end}{after}"


def brief(cell: Cell | None) -> str:
    """Write mean and, over several seeds, standard deviation; "-" if there is no mean.

    The half-width of the interval, where it is known, follows in parentheses.
    """
    if cell is None:
        return MISSING
    interval = "" if cell.half_width is None else f" (± {cell.half_width:.1f})"
    return f"{_spread(cell, '±')}{interval}"


def full(cell: Cell | None, sign: str = "±") -> str:
    """Write mean, standard deviation, number of seeds, and interval: "74.3 ± 0.3 (3) [73, 75]"."""
    if cell is None:
        return MISSING
    ends = interval_of(cell)
    seeds = f" ({cell.seeds})" if cell.seeds else ""
    interval = f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else ""
    return f"{_spread(cell, sign)}{seeds}{interval}"


def interval_of(cell: Cell) -> tuple[float, float] | None:
    """Return the ends of a cell's interval, which are percentages; None where it is not known."""
    if cell.half_width is None:
        return None
    return max(0.0, cell.mean - cell.half_width), min(100.0, cell.mean + cell.half_width)


def _spread(cell: Cell, sign: str) -> str:
    if not cell.seeds:  # published, with two digits
        return f"{cell.mean:.2f}"
    deviation = "" if cell.deviation is None else f" {sign} {cell.deviation:.1f}"
    return f"{cell.mean:.1f}{deviation}"


def markdown(table: Table, write: Callable[[Cell | None], str]) -> str:
    """Return a table as Markdown, with its notes below it."""
    rows = [(*head, *map(write, cells)) for head, cells in table.rows]
    return "\n\n".join([render(table.header, rows), *table.notes])


def document(
    tables: Sequence[Titled], caption: str, kind: str, write: Callable[[Cell | None], str]
) -> str:
    """Return tables as text.

    Args:
        tables: all of them.
        caption: what holds for all figures.
        kind: one of ``FORMATS``.
        write: how to write a cell in Markdown.
    """
    if kind == "csv":
        return comma_separated(tables)
    if kind == "latex":
        titles = [f"{one.title}. {caption}." if one.title else f"{caption}." for one in tables]
        pairs = zip(titles, tables, strict=True)
        return "\n\n".join(latex(title, one.table) for title, one in pairs)
    texts = [f"{caption}:"]
    for one in tables:
        texts += [*filter(None, [one.title and f"{one.title}:"]), markdown(one.table, write)]
    return "\n\n".join(texts)


def latex(title: str, table: Table) -> str:
    """Return a table for LaTeX, which needs the package booktabs."""
    n_heads = len(table.header) - len(table.rows[0][1]) if table.rows else len(table.header)
    lines = []
    for head, cells in table.rows:
        texts = [*map(_escaped, head), *(full(cell, r"$\pm$") for cell in cells)]
        lines.append(f"{' & '.join(texts)} \\\\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{_escaped(' '.join([title, *table.notes]))}}}",
            f"\\begin{{tabular}}{{{'l' * n_heads}{'c' * (len(table.header) - n_heads)}}}",
            r"\toprule",
            f"{' & '.join(map(_escaped, table.header))} \\\\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in text).replace("±", r"$\pm$")


def comma_separated(tables: Sequence[Titled]) -> str:
    """Return tables as one CSV with a line for each cell; missing ones are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ("protocol", "dataset", "method", "shots", "column")
        + ("mean", "standard_deviation", "seeds", "low", "high")
    )
    for _, protocol, shots, table in tables:
        for head, cells in table.rows:
            where = (protocol.name, *head, shots or "")[:4]
            for heading, cell in zip(table.header[len(head) :], cells, strict=True):
                figures: tuple[object, ...] = ("",) * 5
                if cell is not None:
                    deviation = "" if cell.deviation is None else round(cell.deviation, 4)
                    ends = interval_of(cell)
                    low, high = ("", "") if ends is None else (round(end, 4) for end in ends)
                    figures = (round(cell.mean, 4), deviation, cell.seeds or "", low, high)
                writer.writerow((*where, heading, *figures))
    return file.getvalue().rstrip("\n")
