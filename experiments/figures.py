"""Draw what ProMPT and HISF record in an evaluation.

    python -m experiments figures evolution RUN_DIR [--images 6] [--output FILE.png]
    python -m experiments figures attention RUN_DIR [--output FILE.png]

``evolution`` reads the evolution.jsonl that ProMPT writes with ``TEST.RECORD "('evolution',)"``
and, like the paper's Figures 6 and 7, shows images that the iterations corrected, confirmed and
spoiled, with the prediction and the confidence of each step. ``attention`` reads the attention.npz
that HISF writes with ``TEST.RECORD "('attention',)"`` and shows how much the prompt tokens of each
tower and fusion layer attend to each label (eq. 6). The figure is written to RUN_DIR, as
evolution.png or attention.png, unless --output names another file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dassl.command import Parser, say
from dassl.errors import UserError, check_regular
from dassl.json_file import parse_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
THUMBNAIL = 256  # pixels of the longer side of an image in the contact sheet
RIGHT, WRONG = "#9fd8a4", "#f3a6a0"
NAMED_LABELS = 48  # with more classes, the heat maps have no class names


class Step(NamedTuple):
    """The prediction for an image after the initialization or after an iteration."""

    label: int
    name: str
    confidence: float  # probability of that class
    true: float  # probability of the image's own class


class Evolution(NamedTuple):
    """One line of evolution.jsonl."""

    path: str
    label: int
    name: str
    steps: list[Step]

    @property
    def was_right(self) -> bool:
        return self.steps[0].label == self.label

    @property
    def is_right(self) -> bool:
        return self.steps[-1].label == self.label

    @property
    def rise(self) -> float:
        """The rise of the probability of the image's own class, from the first to the last step."""
        return self.steps[-1].true - self.steps[0].true


class Group(NamedTuple):
    """Images on which the iterations had the same effect, the clearest cases first."""

    title: str
    images: list[Evolution]


def read_evolution(path: Path) -> list[Evolution]:
    """Read the lines of an evolution.jsonl.

    Raises:
        UserError: the file is missing or empty, or a line is damaged.
    """
    check_regular(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"'{path}' does not exist; ProMPT writes it with TEST.RECORD \"('evolution',)\""
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read '{path}': {reason}") from error
    found = [evolution(line, f"line {i} of '{path}'") for i, line in enumerate(lines, start=1)]
    if not found:
        raise UserError(f"'{path}' is empty; expected a line for each image")
    for i, image in enumerate(found, start=1):
        if len(image.steps) != len(found[0].steps):
            raise UserError(
                f"line {i} of '{path}' has {len(image.steps)} steps but line 1 has "
                f"{len(found[0].steps)}; all must have the same number"
            )
    return found


def evolution(line: str, place: str) -> Evolution:
    try:
        record = parse_json(line, "it")
        steps = []
        for step in record["steps"]:
            label, name, confidence = step["top"][0]
            steps.append(Step(int(label), str(name), float(confidence), float(step["true"])))
        if not steps:
            raise ValueError("no steps")
        return Evolution(
            str(record["path"]), int(record["label"]), str(record["class_name"]), steps
        )
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__} {error}"
        raise UserError(f"{place} is damaged: {reason}") from error


def groups_of(images: Sequence[Evolution]) -> list[Group]:
    """Group the images that were corrected, confirmed and spoiled.

    Images whose own class gained the most probability come first, in the spoiled group those whose
    own class lost the most; ties keep the order of the file.
    """
    corrected = [image for image in images if not image.was_right and image.is_right]
    confirmed = [image for image in images if image.was_right and image.is_right]
    spoiled = [image for image in images if image.was_right and not image.is_right]
    return [
        Group("Corrected: wrong, then right", sorted(corrected, key=lambda image: -image.rise)),
        Group("Confirmed: right, still right", sorted(confirmed, key=lambda image: -image.rise)),
        Group("Spoiled: right, then wrong", sorted(spoiled, key=lambda image: image.rise)),
    ]


def draw_evolution(images: Sequence[Evolution], n_shown: int) -> Figure:
    """Draw the contact sheet: a column for each group with up to ``n_shown`` images.

    Raises:
        UserError: an image cannot be read.
    """
    from matplotlib.figure import Figure

    groups = groups_of(images)
    n_steps = len(images[0].steps)
    n_rows = max(1, *(min(n_shown, len(group.images)) for group in groups))
    row_height = 0.6 + 0.25 * n_steps
    head = 1.15  # inches
    height = head + n_rows * row_height
    figure = Figure(figsize=(13.5, height))

    total = len(images)
    before, after = (
        100 * sum(flags) / total
        for flags in zip(*((image.was_right, image.is_right) for image in images), strict=True)
    )
    neither = sum(not image.was_right and not image.is_right for image in images)
    iterations = "1 iteration" if n_steps == 2 else f"{n_steps - 1} iterations"
    figure.text(
        *(0.012, 1 - 0.12 / height),
        f"{total:,} images: {before:.1f}% right at initialization, {after:.1f}% right after "
        f"{iterations}; {neither:,} wrong at both",
        va="top",
        fontsize=13,
        weight="bold",
    )
    figure.text(
        *(0.012, 1 - 0.42 / height),
        "Above each: the image's own class. Bars: the class predicted at each step and its "
        "probability, ✔ right or ✘ wrong; below a wrong one the probability of the own class.",
        va="top",
        fontsize=9,
        color="0.3",
    )
    body = figure.add_gridspec(
        *(n_rows, 3),
        left=0.012,
        right=0.958,
        top=1 - head / height,
        bottom=0.12 / height,
        wspace=0.18,
        hspace=0.26,
    )
    for column, group in enumerate(groups):
        share = f"{len(group.images):,} ({100 * len(group.images) / total:.1f}%)"
        left = body[0, column].get_position(figure).x0
        figure.text(
            *(left, 1 - 0.68 / height),
            f"{group.title} — {share}",
            va="top",
            fontsize=11,
            weight="bold",
        )
        if not group.images:
            figure.text(left, 1 - head / height, "No image", va="top", color="0.4", fontsize=11)
        for row, image in enumerate(group.images[:n_shown]):
            cell = body[row, column].subgridspec(1, 2, width_ratios=(1, 2.2), wspace=0.34)
            draw_image(figure.add_subplot(cell[0]), image.path)
            draw_steps(figure.add_subplot(cell[1]), image)
    return figure


def draw_image(axes: Axes, path: str) -> None:
    from dassl.utils import read_image

    picture = read_image(path)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    axes.imshow(picture, interpolation="nearest")
    axes.set_anchor("E")
    axes.axis("off")


def draw_steps(axes: Axes, image: Evolution) -> None:
    """Draw a bar for each step, the initialization on top."""
    for i, step in enumerate(image.steps):
        right = step.label == image.label
        axes.barh(i - 0.06, step.confidence, height=0.7, color=RIGHT if right else WRONG)
        if not right:
            axes.barh(i + 0.37, step.true, height=0.14, color=RIGHT)
        mark = "✔" if right else "✘"
        axes.text(0.012, i - 0.06, f"{mark} {short(step.name, 32)}", va="center", fontsize=8.5)
        axes.text(1.02, i - 0.06, f"{100 * step.confidence:.1f}%", va="center", fontsize=8.5)
    n_steps = len(image.steps)
    axes.set_xlim(0, 1)
    axes.set_ylim(n_steps - 0.5, -0.5)
    names = ["init", *(f"iter {n}" for n in range(1, n_steps))]
    axes.set_yticks(range(n_steps), names, fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.8")
    axes.set_title(short(image.name, 40), loc="left", fontsize=9, weight="bold", pad=2)


def short(name: str, length: int) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= length else name[: length - 1] + "…"


class Attention(NamedTuple):
    """An attention.npz: K class names and, by tower and fusion layer, (m, K) or (K, m, K)."""

    class_names: list[str]
    weights: dict[str, dict[int, np.ndarray]]


def read_attention(path: Path) -> Attention:
    """Read an attention.npz.

    Raises:
        UserError: the file is missing or damaged, or has other contents.
    """
    from dassl.evaluation.predictions import reason_of

    check_regular(path)
    weights: dict[str, dict[int, np.ndarray]] = {"text": {}, "vision": {}}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [str(name) for name in arrays["class_names"]]
            for key in arrays.files:
                if key != "class_names":
                    tower, layer = key.split(".")
                    weights[tower][int(layer)] = arrays[key]
    except FileNotFoundError as error:
        raise UserError(
            f"'{path}' does not exist; HISF writes it with TEST.RECORD \"('attention',)\""
        ) from error
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds for damaged files
        reason = reason_of(error)
        raise UserError(f"'{path}' is damaged or not an attention.npz: {reason}") from error
    if not weights["text"] or weights["text"].keys() != weights["vision"].keys():
        raise UserError(f"'{path}' must have the same fusion layers for both towers")
    for tower, layers in weights.items():
        for layer, array in layers.items():
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise UserError(f"'{path}': {tower}.{layer} must hold finite numbers")
            if array.ndim not in (2, 3) or array.shape[-1] != len(names) or array.size == 0:
                raise UserError(
                    f"'{path}': {tower}.{layer} has shape {array.shape}; expected (tokens, "
                    f"{len(names)}) or ({len(names)}, tokens, {len(names)})"
                )
    return Attention(names, weights)


def draw_attention(attention: Attention) -> Figure:
    """Draw a heat map for each tower (rows) and fusion layer (columns).

    A row of a heat map is a prompt token and a column a label. If each class has its own prompts,
    the rows are the tokens of the first class, then those of the second, and so on. Colors show
    multiples of 1/K, the weight of each label if a token prefers none.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = attention.class_names
    relative = {
        tower: {layer: weights * len(names) for layer, weights in layers.items()}
        for tower, layers in attention.weights.items()
    }
    arrays = [array for layers in relative.values() for array in layers.values()]
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    norm = TwoSlopeNorm(1, min(low, 0.999), max(high, 1.001))

    heights = [
        min(8.0, max(0.8, 0.17 * max(array.size // len(names) for array in layers.values())))
        for layers in relative.values()
    ]
    n_layers = len(relative["text"])
    width = min(6.0, max(2.5, 0.2 * len(names)))
    figure = Figure(
        figsize=(n_layers * width + 3, sum(heights) + 3),
        layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08),
    )
    panels = figure.subplots(
        *(len(relative), n_layers), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for row, (tower, layers) in enumerate(relative.items()):
        for axes, (layer, array) in zip(panels[row], sorted(layers.items()), strict=True):
            image = draw_weights(axes, array, names, norm)
            axes.set_title(f"{tower} tower, layer {layer}", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("label" if len(names) <= NAMED_LABELS else f"{len(names):,} labels")
        if len(names) <= NAMED_LABELS:
            axes.set_xticks(range(len(names)), [short(n, 30) for n in names], rotation=90)
            axes.tick_params(axis="x", labelsize=8)
    bar = figure.colorbar(image, ax=panels, shrink=0.6, pad=0.01)
    bar.set_label(f"weight × {len(names):,} (1: every label alike)")
    figure.suptitle("How much each prompt token attends to each label", fontsize=13, weight="bold")
    return figure


def draw_weights(axes: Axes, weights: np.ndarray, names: Sequence[str], norm: Any) -> Any:
    """Draw one heat map of (m, K) or (K, m, K); return the image, for the color bar."""
    from matplotlib.patches import Rectangle

    m, n_labels = weights.shape[-2:]
    rows = weights.reshape(-1, n_labels)
    image = axes.imshow(rows, cmap="RdBu_r", norm=norm, aspect="auto")
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=8)
    if weights.ndim == 2:
        axes.set_yticks(range(m), [f"token {i}" for i in range(1, m + 1)])
    elif n_labels > NAMED_LABELS:
        axes.set_yticks([])
        axes.set_ylabel(f"{m} tokens of each of {n_labels:,} classes")
    else:
        axes.set_yticks(np.arange(n_labels) * m + (m - 1) / 2, [short(n, 30) for n in names])
        axes.set_ylabel(f"{m} tokens of each class; outlined: its own label")
        for i in range(n_labels):
            axes.axhline(i * m - 0.5, color="white", linewidth=0.8)
            own = Rectangle((i - 0.5, i * m - 0.5), 1, m, fill=False, linewidth=0.9, zorder=3)
            axes.add_patch(own)
    return image


def save(figure: Figure, path: Path) -> None:
    from dassl.utils import atomic_write

    with atomic_write(str(path), "wb") as file:
        figure.savefig(file, format="png", dpi=DPI)


def image_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got '{text}'")
    return int(text)


def png_path(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, got '{text}'")
    return Path(text)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m experiments figures",
        description="Draw what ProMPT and HISF record in an evaluation.",
    )
    commands = parser.add_subparsers(dest="figure", required=True)
    for name, text in (
        ("evolution", "what ProMPT's iterations corrected, confirmed and spoiled"),
        ("attention", "which labels HISF's prompts attend to"),
    ):
        command = commands.add_parser(name, help=text, description=f"Draw {text}.")
        command.add_argument("run_dir", type=Path, help="output folder of the evaluation")
        command.add_argument(
            "--output", type=png_path, help=f"figure to write (default: RUN_DIR/{name}.png)"
        )
        if name == "evolution":
            command.add_argument(
                "--images", type=image_count, default=6, help="images of each group (default: 6)"
            )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = read_arguments(argv)
    folder: Path = arguments.run_dir
    output = arguments.output or folder / f"{arguments.figure}.png"
    try:
        if arguments.figure == "evolution":
            figure = draw_evolution(read_evolution(folder / "evolution.jsonl"), arguments.images)
        else:
            figure = draw_attention(read_attention(folder / "attention.npz"))
        save(figure, output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(str(output))
    return 0
