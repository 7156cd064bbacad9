"""What is measured: the cells of the tables, the ratios that are asked for, public figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

MODELS = ("ViT-B/16", "small")  # small: for a rehearsal, in minutes
CLASSES = (10, 50, 100, 500, 1000)
PLAIN_TO = 100  # classes up to which the plain reference is measured; beyond, it is extrapolated
GROWTH_CLASSES = 50  # of the cells that show growth with batch and prompt length, and variants
GROWTH_PROMPTS = (4, 8, 16)
TEST_BATCH = 32  # images of a measured evaluation batch where class features are kept

# For the estimate of how long a run takes: ViT-B/16, forward.
START_SECONDS = 10.0
IMAGE_FLOPS, TOKEN_FLOPS = 35e9, 77e6
TOKENS = {"ours": 8, "plain": 77}  # of a class


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement, in a process of its own.

    Attributes:
        method: name of the registered trainer.
        classes: K.
        precision: the method's PREC.
        path: "ours", or "plain" for the plain reference, which is always fp32.
        batch: images of a step; 0: what the paper's config file says.
        prompts: prompts of a layer; 0: what the config file says.
        views: the image features of the frozen tower are known, as with DATALOADER.VIEWS > 0.
        options: KEY, VALUE, ... of the config; a key that the config lacks is left out.
        test_batch, test_batches: what is evaluated; 0: a batch of the default size.
        model: one of ``MODELS``, with random weights.
        row: number of the row of ``ROWS`` that it is measured for, from 1; 0: none.
        phases: "step" and "evaluation", or one of them.
    """

    method: str
    classes: int
    precision: str = "fp32"
    path: str = "ours"
    batch: int = 0
    prompts: int = 0
    views: bool = False
    options: tuple[str, ...] = ()
    test_batch: int = 0
    test_batches: int = 0
    row: int = 0
    model: str = MODELS[0]
    phases: tuple[str, ...] = ("step", "evaluation")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Cell:
        """Make a cell from what its JSON says."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fields)

    @property
    def name(self) -> str:
        """A name that no other cell has, for its file."""
        parts = [self.method, self.path, self.precision, f"k{self.classes}"]
        parts += [f"{key}{n}" for key in ("row", "batch", "prompts") if (n := getattr(self, key))]
        parts += () if self.row else self.options[::2]
        parts += [] if self.model == MODELS[0] else [self.model]
        return "-".join(parts)

    def but(self, **values: Any) -> Cell:
        return dataclasses.replace(self, **values)


class Row(NamedTuple):
    """A ratio of the plain reference to ours that is aimed at.

    Args:
        title: of the row.
        cell: ours in fp32; the other precision and the reference follow from it.
        targets: in fp32 and in the other precision; None where none is stated.
        quantity: "seconds" or "bytes".
    """

    title: str
    cell: Cell
    targets: tuple[float | None, float | None]
    quantity: str = "seconds"

    def ours(self, precision: str) -> Cell:
        options = self.cell.options or KEEPING
        return self.cell.but(precision=precision, row=1 + ROWS.index(self), options=options)

    def plain(self, classes: int) -> Cell:
        """Return the reference at so many classes: it knows no features and recomputes nothing."""
        plain = {"path": "plain", "precision": "fp32", "views": False, "options": ()}
        return self.ours("fp32").but(classes=classes, **plain)

    def cells(self, low: str) -> list[Cell]:
        """Ours in fp32 and in the other precision, and the reference: measured by turns."""
        plain = [self.plain(k) for k in plain_sizes(self.cell.classes)]
        return [self.ours("fp32"), self.ours(low), *plain]


def step(method: str, batch: int, classes: int, **values: Any) -> Cell:
    return Cell(method, classes, batch=batch, phases=("step",), **values)


def evaluation(method: str, classes: int, **values: Any) -> Cell:
    whole: dict[str, Any] = {"test_batch": 100, "test_batches": 10, "phases": ("evaluation",)}
    return Cell(method, classes, **whole, **values)


# Rows are timed without computing anything twice; those of memory may do it.
KEEPING, RECOMPUTING = ("MODEL.RECOMPUTE", "never"), ("MODEL.RECOMPUTE", "always")
ROWS = (
    Row("CoOp, batch 32, 50 classes, VIEWS > 0", step("CoOp", 32, 50, views=True), (25, 45)),
    Row("CoOp, batch 32, 500 classes, VIEWS > 0", step("CoOp", 32, 500, views=True), (14, 26)),
    Row("CoOp, batch 32, 50 classes, VIEWS 0", step("CoOp", 32, 50), (1.45, 3.3)),
    Row("MaPLe, batch 4, 50 classes", step("MaPLe", 4, 50), (3.0, 7)),
    Row("MaPLe, batch 4, 500 classes", step("MaPLe", 4, 500), (13, 26)),
    Row("CoCoOp, batch 1, 50 classes", step("CoCoOp", 1, 50), (9, 22)),
    Row("ProMPT, batch 4, 50 classes", step("ProMPT", 4, 50), (8, 16)),
    Row("HiCroPL, batch 32, 50 classes, VIEWS 0", step("HiCroPL", 32, 50), (1.4, 3.0)),
    Row(
        "HiCroPL, batch 32, 50 classes, VIEWS > 0",
        step("HiCroPL", 32, 50, views=True),
        (2.0, 4.3),
    ),
    Row("PromptSRC, batch 4, 50 classes, VIEWS > 0", step("PromptSRC", 4, 50, views=True), (3, 6)),
    Row("evaluation, MaPLe, 500 classes, batch 100, 10 batches", evaluation("MaPLe", 500), (3, 6)),
    Row(
        "evaluation, CoOp, 50 classes, second seed on the same test split",
        evaluation("CoOp", 50, views=True),
        (20, None),
    ),
    Row(
        "peak memory beside the model, HiCroPL, batch 32, 50 classes, recomputing",
        step("HiCroPL", 32, 50, options=RECOMPUTING),
        (2, 3),
        "bytes",
    ),
    Row(
        "peak memory beside the model, MaPLe, batch 4, 1,000 classes, recomputing",
        step("MaPLe", 4, 1000, options=RECOMPUTING),
        (8, 10),
        "bytes",
    ),
)
SHARE_OF = "HiCroPL, batch 32, 50 classes, VIEWS 0"  # row whose share of the matrix rate has goals
SHARE_TARGETS = (0.95, 0.85)


# How a step is computed, by the title of its column; the results are the same.
VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "COMPILE": ("MODEL.COMPILE", "True"),
    "CUDA_GRAPH": ("MODEL.CUDA_GRAPH", "True"),
    "both": ("MODEL.COMPILE", "True", "MODEL.CUDA_GRAPH", "True"),
}
VARIED = (("MaPLe", 4), ("PromptSRC", 4), ("HiCroPL", 32))  # methods and batches


class Public(NamedTuple):
    """What a method's public code took in fp32, on a machine of PUBLIC_RATE GFLOP/s."""

    method: str
    batch: int
    classes: int
    seconds: float


PUBLIC_RATE = 160.0
PUBLIC_TOLERANCE = 0.15
PUBLIC = (
    Public("MaPLe", 4, 50, 5.89),
    Public("MaPLe", 4, 300, 48.4),
    Public("CoCoOp", 1, 50, 4.51),
    Public("CoOp", 32, 50, 10.97),
    Public("HiCroPL", 32, 50, 31.4),
)


def variant_cells(method: str, batch: int, precision: str, has_graphs: bool) -> list[Cell]:
    """Return the cells that show what each of ``VARIANTS`` is worth."""
    cell = step(method, batch, GROWTH_CLASSES, precision=precision)
    found = [cell.but(options=options) for options in VARIANTS.values()]
    return [c for c in found if has_graphs or "MODEL.CUDA_GRAPH" not in c.options]


def graph_cell(method: str, batch: int, precision: str) -> Cell:
    """Return the cell that shows a method's step as one CUDA graph."""
    options = VARIANTS["CUDA_GRAPH"]
    return step(method, batch, GROWTH_CLASSES, precision=precision, options=options)


def table_cells(
    methods: Sequence[str],
    plain: Sequence[str],
    classes: Sequence[int],
    precisions: Sequence[str],
) -> list[Cell]:
    """Return the cells of the cost table; ``plain`` names the methods that have a reference."""
    cells = []
    for method in methods:
        for k in classes:
            cells += [Cell(method, k, precision) for precision in precisions]
            if method in plain and k <= PLAIN_TO:
                cells.append(Cell(method, k, path="plain"))
    return cells


def growth_cells(method: str, batch: int, has_prompts: bool) -> list[Cell]:
    """Return the cells that show growth with batch and prompt length, around the paper's batch."""
    sizes = sorted({max(1, batch // 2), batch, 2 * batch})
    lengths = GROWTH_PROMPTS if has_prompts else ()
    return [
        *(step(method, size, GROWTH_CLASSES) for size in sizes),
        *(step(method, 0, GROWTH_CLASSES, prompts=m) for m in lengths),
    ]


def plain_sizes(classes: int) -> list[int]:
    """Return at how many classes a reference is measured, for a value at ``classes``."""
    return [classes] if classes <= PLAIN_TO else [k for k in CLASSES if k <= PLAIN_TO]


class Kind(NamedTuple):
    """What a method computes, for the estimate.

    Args:
        batch: images of a step.
        steps: it has any.
        images_alone: nothing that is learned enters the vision tower.
        per_image: class features are computed for each image.
    """

    batch: int
    steps: bool
    images_alone: bool
    per_image: bool


def rough_flops(cell: Cell, phase: str, kind: Kind) -> float:
    """Estimate the FLOPs of one round of a cell's phase; those of a rehearsal are next to none."""
    if cell.model != MODELS[0] or (phase == "step" and not kind.steps):
        return 0.0
    images = cell.batch or kind.batch
    if phase == "evaluation":
        images = cell.test_batch or TEST_BATCH
    image = images * IMAGE_FLOPS
    text = cell.classes * TOKENS[cell.path] * TOKEN_FLOPS * (images if kind.per_image else 1)
    if cell.views and kind.images_alone:
        image = 0.0
    if phase == "step":  # gradients cost as much again
        image, text = image * (1 if kind.images_alone else 2), 2 * text
    return image + text
