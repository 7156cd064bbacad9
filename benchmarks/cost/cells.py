"""What is measured: the cells of the tables, the ratios that are asked for, public figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

CLASSES = (10, 50, 100, 500, 1000)
PLAIN_TO = 100  # classes up to which the plain reference is measured; beyond, it is extrapolated
GROWTH_CLASSES = 50  # of the cells that show growth with batch and prompt length
GROWTH_PROMPTS = (4, 8, 16)
TEST_BATCH = 32  # images of a measured evaluation batch where class features are kept


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
    phases: tuple[str, ...] = ("step", "evaluation")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Cell:
        """Make a cell from what its JSON says."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @property
    def name(self) -> str:
        """A name that no other cell has, for its file."""
        parts = [self.method, self.path, self.precision, f"k{self.classes}"]
        parts += [f"{key}{getattr(self, key)}" for key in ("batch", "prompts") if getattr(self, key)]
        parts += ["views"] * self.views
        parts += ["_".join(self.options).replace("/", "_")] * bool(self.options)
        parts += [f"{self.test_batches}x{self.test_batch}"] * (self.test_batches > 0)
        parts += [self.phases[0]] * (len(self.phases) == 1)
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
        return self.cell.but(precision=precision)

    def plain(self, classes: int) -> Cell:
        """The reference, at so many classes: it knows no features and recomputes nothing."""
        return self.cell.but(path="plain", classes=classes, views=False, options=())


def step(method: str, batch: int, classes: int, **values: Any) -> Cell:
    return Cell(method, classes, batch=batch, phases=("step",), **values)


def evaluation(method: str, classes: int, **values: Any) -> Cell:
    whole = {"test_batch": 100, "test_batches": 10, "phases": ("evaluation",)}
    return Cell(method, classes, **whole, **values)


RECOMPUTING = ("MODEL.RECOMPUTE", "always")
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
SHARE = Cell("HiCroPL", 50, batch=32, phases=("step",))  # whose share of the matrix rate has goals
SHARE_TARGETS = (0.95, 0.85)


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


def growth_cells(methods: Sequence[str], batches: dict[str, int]) -> list[Cell]:
    """Return the cells that show growth with batch and prompt length.

    Args:
        methods: those that take steps.
        batches: that of each method's config file.
    """
    cells = []
    for method in methods:
        paper = batches[method]
        sizes = sorted({max(1, paper // 2), paper, 2 * paper})
        cells += [step(method, size, GROWTH_CLASSES) for size in sizes]
        cells += [step(method, 0, GROWTH_CLASSES, prompts=m) for m in GROWTH_PROMPTS]
    return cells


def plain_sizes(classes: int) -> list[int]:
    """Return at how many classes a reference is measured, for a value at ``classes``."""
    return [classes] if classes <= PLAIN_TO else [k for k in CLASSES if k <= PLAIN_TO]
