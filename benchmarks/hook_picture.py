"""Draw what each method does to the layers of the two towers: docs/images/hook.svg.

    python -m benchmarks.hook_picture

Each registered method is built with its paper's config for ViT-B/16, random weights and ten class
names, and takes a training step. It takes about two minutes.
"""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

from torch import Tensor

from benchmarks.cost import measure
from benchmarks.cost.__main__ import methods_of
from benchmarks.cost.cells import Cell
from clip.layer import Layer, Layers, as_layers
from dassl.command import Parser, run
from dassl.utils.tools import atomic_write

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "hook.svg"
NAMES = 10
VARIANTS = "prompts of each image, or an ensemble"
KINDS = {
    "prompts": "#4c78a8",
    "prompts of each class": "#72b7b2",
    VARIANTS: "#b279a2",
    "adapters": "#f58518",
}
ADAPTERS = ("qkv", "out", "mlp", "block")


def kinds_of(layer: Layer, tower: str) -> list[str]:
    """Name what a layer adds to a block of a tower."""
    found = [kind for kind in ("adapters",) if any(getattr(layer, name) for name in ADAPTERS)]
    prompts = layer.prompts
    if prompts is None:
        return found
    rows = prompts.shape[:-2] if isinstance(prompts, Tensor) else ()
    if tower == "vision":
        return [VARIANTS if any(n > 1 for n in rows) else "prompts", *found]
    if len(rows) == 2:
        return [VARIANTS, *found]
    return ["prompts of each class" if any(n > 1 for n in rows) else "prompts", *found]


def layers_of(method: str, folder: Path) -> dict[str, list[list[str]]]:
    """Return what a method's training step adds to each block, by tower."""
    subject = measure.Ours(Cell(method, NAMES, batch=2), folder)
    config = subject.model.clip.config
    found: dict[str, list[list[str]]] = {
        "text": [[] for _ in range(config.text_layers)],
        "vision": [[] for _ in range(config.vision_layers)],
    }

    def look(entries: Layers, n_blocks: int, tower: str) -> list[Layer]:
        layers = as_layers(entries, n_blocks, tower)
        for kinds, layer in zip(found[tower], layers, strict=True):
            kinds += [kind for kind in kinds_of(layer, tower) if kind not in kinds]
        return layers

    with mock.patch("clip.model.as_layers", look), mock.patch("clip.vision.as_layers", look):
        if subject.no_step:
            subject.test()
        else:
            subject.step()
    return found


def draw(found: dict[str, dict[str, list[list[str]]]], path: Path) -> None:
    """Draw a row for each method, a square for each block."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch, Rectangle

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "hook", "font.size": 9})
    figure, axes = pyplot.subplots(1, 2, figsize=(8.5, 0.27 * len(found) + 1.2), sharey=True)
    for ax, tower in zip(axes, ("text", "vision"), strict=True):
        for row, blocks in enumerate(each[tower] for each in found.values()):
            for i, kinds in enumerate(blocks):
                colors = [KINDS[kind] for kind in kinds] or ["#ececec"]
                for part, color in enumerate(colors):
                    corner = (i + 0.08, row - 0.38 + part * 0.76 / len(colors))
                    ax.add_patch(Rectangle(corner, 0.84, 0.76 / len(colors), color=color, lw=0))
        ax.set(xlim=(0, len(blocks)), ylim=(len(found) - 0.4, -0.6), title=f"{tower} tower")
        ax.set_xticks([i + 0.5 for i in range(len(blocks))], range(1, len(blocks) + 1))
        ax.set_yticks(range(len(found)), found)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    legend = [Patch(color=color, label=kind) for kind, color in KINDS.items()]
    figure.legend(handles=legend, loc="lower center", ncols=len(KINDS), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(str(path), "wb") as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> int:
    Parser(description=__doc__.splitlines()[0]).parse_args()
    one_model = cache(measure.random_model)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(measure, "random_model", one_model),
    ):
        every = {name: layers_of(name, Path(folder)) for name in methods_of(None)}
    hooked = {
        name: towers
        for name, towers in every.items()
        if any(kinds for blocks in towers.values() for kinds in blocks)
    }
    draw(hooked, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
