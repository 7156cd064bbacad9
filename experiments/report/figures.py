"""The report's figures, each a small SVG: a phone shows one beside or below the other."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from dassl.errors import escaped
from experiments.bootstrap import Interval
from experiments.rank_diagram import Panel, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (3.6, 2.7)  # inches
COLORS = (
    *("#4269d0", "#e8842a", "#3ca951", "#d6336c", "#7a5fc7", "#12a5b8", "#9c6b4e", "#b5a100"),
    *("#6c757d", "#e377c2", "#1b5e20", "#0b3c8c", "#ff8ab7", "#97bbf5", "#a463f2", "#c92a2a"),
)
NAMED_CLASSES = 30  # with more, a confusion matrix has no names
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "report",  # the same runs give the same page
    "text.parse_math": False,  # a class may be called "$x$"
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.6",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "xtick.color": "0.3",
    "ytick.color": "0.3",
}
Curves = Mapping[str, Sequence[tuple[int, float]]]


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Give each name a color; with very many they repeat."""
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(dict.fromkeys(names))}


def svg_of(figure: Figure, what: str) -> Markup:
    """Return a figure as an element for HTML; ``what`` is read aloud in its place."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = escaped(buffer.getvalue(), kept="\n\t")
    text = text[text.index("<svg") :]
    text = re.sub(r' id="[a-zA-Z._]+_\d+"', "", text)  # of parts; other figures have them, too
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(escaped(what))}"', 1))


def panel(title: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    return figure, axes


def shots(title: str, curves: Curves, colors: Mapping[str, str]) -> Markup:
    """Draw accuracy by number of shots; what has 0 shots is a level."""
    figure, axes = panel(title)
    for name, points in curves.items():
        trained = [point for point in points if point[0] > 0]
        for _, accuracy in points[: len(points) - len(trained)]:
            axes.axhline(accuracy, color=colors[name], linestyle="--", linewidth=1.2)
        xs, ys = zip(*trained, strict=True) if trained else ((), ())
        axes.plot(xs, ys, "o-", color=colors[name], linewidth=1.4, markersize=3.5)
    ticks = sorted({int(x) for points in curves.values() for x, _ in points if x > 0})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="shots", ylabel="accuracy in %")
    return svg_of(figure, f"{title}: accuracy by number of shots")


def losses(title: str, curves: Curves, colors: Mapping[str, str]) -> Markup:
    """Draw the loss by epoch."""
    figure, axes = panel(title)
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), color=colors[name], linewidth=1.3)
    axes.set(xlabel="epoch", ylabel="loss")
    return svg_of(figure, f"{title}: loss by epoch")


def scatter(
    title: str, points: Mapping[str, tuple[float, ...]], colors: Mapping[str, str]
) -> Markup:
    """Draw accuracies on base and novel classes, with lines of equal harmonic mean."""
    figure, axes = panel(title)
    for name, (base, novel) in points.items():
        axes.plot(base, novel, "o", color=colors[name], markersize=6, markeredgecolor="white")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, y = np.meshgrid(np.linspace(left, right, 60), np.linspace(low, high, 60))
    levels = axes.contour(
        x, y, 2 * x * y / np.maximum(x + y, 1e-9), 5, colors="0.8", linewidths=0.8
    )
    axes.clabel(levels, fontsize=6, fmt="%.0f")
    axes.grid(False)
    axes.set_xlabel("base accuracy in %")
    axes.set_ylabel("novel accuracy in %")
    return svg_of(figure, f"{title}: accuracy on novel against base classes")


def intervals(title: str, gains: Mapping[str, Interval], colors: Mapping[str, str]) -> Markup:
    """Draw differences with their intervals, one method below the other."""
    figure, axes = panel(title, (SIZE[0], 0.9 + 0.2 * len(gains)))
    for row, (name, found) in enumerate(gains.items()):
        ends = [found.mean - found.half_width, found.mean + found.half_width]
        axes.plot(ends, [row, row], "|-", color=colors[name], linewidth=1.2, markersize=5)
        axes.plot(found.mean, row, "o", color=colors[name], markersize=4)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(gains)), list(gains))
    axes.set_ylim(len(gains) - 0.5, -0.5)
    axes.set_xlabel("points over zero-shot")
    return svg_of(figure, f"{title}: gain over zero-shot by method")


def reliability(title: str, sums: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> Markup:
    """Draw the share of right predictions by confidence; an area is a bin's number of images.

    ``sums`` are (3, bins): of the confidences, of the right predictions, of all.
    """
    figure, axes = panel(title)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    for name, found in sums.items():
        confidence, right, images = found[:, found[2] > 0]
        axes.plot(confidence / images, right / images, color=colors[name], linewidth=1.2)
        areas = 6 + 150 * images / images.sum()
        axes.scatter(confidence / images, right / images, areas, colors[name], alpha=0.6)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right ones")
    return svg_of(figure, f"{title}: reliability diagram")


def confusions(title: str, counts: np.ndarray, names: Sequence[str]) -> Markup:
    """Draw a confusion matrix (K, K), the own class in rows, as shares of each row."""
    figure, axes = panel(title, (4.4, 4.2))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.grid(False)
    if len(names) <= NAMED_CLASSES:
        short = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), short, fontsize=6)
    axes.set(xlabel="predicted", ylabel="own class")
    return svg_of(figure, f"{title}: confusion matrix")


def ranks(heading: str, found: Panel) -> Markup:
    """Draw a critical-difference diagram."""
    figure, axes = panel("", (7.2, 1.4 + 0.25 * len(found.ranks)))
    draw(axes, heading, found)
    return svg_of(figure, f"{heading}: average ranks and critical difference")
