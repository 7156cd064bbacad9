"""The protocols of the field as data: classes trained on, classes tested, and the summary.

A protocol is a chain of steps, each one run of ``train.py``; a step that tests a model names the
step that trained it. Every step says where below the output folder its runs lie (the scheme of
the public scripts) and in which column of a table its accuracy stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

NOVEL_CLASSES = "novel classes"  # what a method must be able to do: predict classes it never saw


@dataclass(frozen=True)
class Step:
    """One run of a protocol.

    Args:
        name: of the step.
        train: classes trained on (all, base or new).
        test: classes tested.
        column: heading of its accuracy; may hold {shots} and {target}.
        folder: of the run; fields are those of ``Run.folder``.
        loads: the step whose model is tested, None where this step trains one.
        transfers: test on another dataset than the one trained on, without any shots of it.
        needs: what the method must be able to do; "" for nothing.
    """

    name: str
    train: str
    test: str
    column: str
    folder: str
    loads: Step | None = None
    transfers: bool = False
    needs: str = ""


@dataclass(frozen=True)
class Protocol:
    """Steps in the order of need, and their summary.

    Args:
        name: on the command line.
        title: in messages.
        steps: in the order of need.
        shots: training images a class; a run of each step for each of these numbers.
        summary: its heading, and its value from {step name: accuracies in percent}; None for none.
        targets: {dataset trained on: datasets tested}, for steps that transfer.
    """

    name: str
    title: str
    steps: tuple[Step, ...]
    shots: tuple[int, ...] = (16,)
    summary: tuple[str, Callable[[Mapping[str, Sequence[float]]], float]] | None = None
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)


def harmonic_mean(base: float, novel: float) -> float:
    """Return the harmonic mean of two accuracies, 0 where both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def base_and_novel(accuracies: Mapping[str, Sequence[float]]) -> float:
    """Return the harmonic mean of the accuracies on base and on novel classes."""
    return harmonic_mean(*accuracies["train_base"], *accuracies["test_new"])


def mean_of_targets(accuracies: Mapping[str, Sequence[float]]) -> float:
    """Return the mean accuracy over the target datasets; the source is no part of it."""
    return fmean(accuracies["test_target"])


_ALL_CLASSES = "{dataset}/{trainer}/{config}_{shots}shots{variant}/seed{seed}"
_BASE2NEW = "{dataset}/shots_{shots}/{trainer}/{config}{variant}/seed{seed}"
_TRANSFER = "evaluation/{trainer}/{config}_{shots}shots{variant}/{transfer}/seed{seed}"

TRAIN_BASE = Step("train_base", "base", "base", "Base", f"base2new/train_base/{_BASE2NEW}")
TEST_NEW = Step(
    *("test_new", "base", "new", "Novel", f"base2new/test_new/{_BASE2NEW}"),
    loads=TRAIN_BASE,
    needs=NOVEL_CLASSES,
)
TRAIN_ALL = Step("train_all", "all", "all", "{shots}-shot", _ALL_CLASSES)
TRAIN_SOURCE = Step("train_source", "all", "all", "{target}", _ALL_CLASSES)
TEST_TARGET = Step(
    *("test_target", "all", "all", "{target}", _TRANSFER),
    loads=TRAIN_SOURCE,
    transfers=True,
    needs=NOVEL_CLASSES,
)

BASE2NEW = Protocol(
    *("base2new", "base to novel", (TRAIN_BASE, TEST_NEW)),
    summary=("Harmonic mean", base_and_novel),
)
FEW_SHOT = Protocol("few_shot", "few-shot", (TRAIN_ALL,), shots=(1, 2, 4, 8, 16))
CROSS_DATASET = Protocol(
    *("cross_dataset", "cross-dataset", (TRAIN_SOURCE, TEST_TARGET)),
    summary=("Average", mean_of_targets),
    targets={
        "imagenet": (
            *("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
            *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
        ),
        "shapes": ("glyphs", "digits"),
    },
)
DOMAIN_GENERALIZATION = Protocol(
    *("domain_generalization", "domain generalization", (TRAIN_SOURCE, TEST_TARGET)),
    summary=("Average", mean_of_targets),
    targets={
        "imagenet": ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
        "shapes": ("shapes_v2", "shapes_sketch", "shapes_noise", "shapes_rendition"),
    },
)
PROTOCOLS = {p.name: p for p in (BASE2NEW, FEW_SHOT, CROSS_DATASET, DOMAIN_GENERALIZATION)}
