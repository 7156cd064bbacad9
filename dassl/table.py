"""Tables of text; torch is not needed, as for ``dassl.errors``."""

from __future__ import annotations

from collections.abc import Sequence

from dassl.command import say


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return header, a rule of dashes, and rows, their cells padded to the widest of a column."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (header, ["-" * width for width in widths], *rows)
    return [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell."""
    for cells in aligned(header, rows):
        say("  ".join(cells).rstrip())
