"""Critical-difference diagrams of average ranks, as Demsar draws them (JMLR 7, 2006)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.significance import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Panel(NamedTuple):
    """Average ranks of methods in one column.

    Attributes:
        ranks: by method, 1 for the best.
        p: of Friedman's test.
        difference: the critical one, of ranks.
    """

    ranks: dict[str, float]
    p: float
    difference: float


def groups_of(panel: Panel) -> list[tuple[float, float]]:
    """Return the largest groups of methods that cannot be told apart, by their first and last rank.

    A group lies within the critical difference; those inside another one are left out.
    """
    ranks = sorted(panel.ranks.values())
    groups: list[tuple[float, float]] = []
    for first in ranks:
        last = max(rank for rank in ranks if rank - first < panel.difference)
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups


def draw(axes: Axes, heading: str, panel: Panel) -> None:
    """Draw one column: the scale, a line to each method's name, and a bar over each group."""
    methods = sorted(panel.ranks, key=panel.ranks.__getitem__)
    k, groups = len(methods), groups_of(panel)
    top = 0.4 * len(groups) + 0.3  # below the scale, in lines of text
    left = (k + 1) // 2  # the better half of the names stands on the left
    axes.set_xlim(0.3, k + 0.7)
    axes.set_ylim(top + left + 0.2, -2.6)
    axes.axis("off")
    axes.set_title(f"{heading} (Friedman: {shown(panel.p)})", fontsize=10)
    axes.plot([1, k], [0, 0], color="black", linewidth=1)
    for tick in range(1, k + 1):
        axes.plot([tick, tick], [0, -0.2], color="black", linewidth=1)
        axes.text(tick, -0.3, str(tick), ha="center", va="bottom", fontsize=8)
    axes.plot([1, 1 + panel.difference], [-1.5, -1.5], color="black", linewidth=2)
    axes.text(1, -1.65, f"critical difference {panel.difference:.2f}", va="bottom", fontsize=8)
    for number, name in enumerate(methods):
        rank, is_left = panel.ranks[name], number < left
        line = top + (number if is_left else k - 1 - number) + 0.5
        edge = 0.9 if is_left else k + 0.1
        axes.plot([rank, rank, edge], [0, line, line], color="black", linewidth=0.8)
        side = "right" if is_left else "left"
        text = f"{name}  {rank:.2f}" if is_left else f"{rank:.2f}  {name}"
        axes.text(edge + (-0.05 if is_left else 0.05), line, text, ha=side, va="center", fontsize=9)
    for number, (first, last) in enumerate(groups):
        height = 0.4 * (number + 1)
        axes.plot([first - 0.03, last + 0.03], [height, height], color="black", linewidth=3)


def save(panels: Mapping[str, Panel], path: Path) -> None:
    """Write an SVG with a diagram for each heading, one below the other.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from dassl.utils import atomic_write  # imports torch

    k = max(len(panel.ranks) for panel in panels.values())
    figure = Figure(figsize=(8, len(panels) * (1.4 + 0.25 * k)), layout="constrained")
    for axes, (heading, panel) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True
    ):
        draw(axes, heading, panel)
    # text stays text: it can be searched and read aloud
    with rc_context({"svg.fonttype": "none"}), atomic_write(str(path), "wb") as file:
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
