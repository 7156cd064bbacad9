"""The protocols of the field as data: classes trained on, classes tested, and the summary.

A protocol is a chain of steps, each one run of ``train.py``; a step that tests a model names the
step that trained it. Every step defines the folder of its runs below the output folder (the scheme
of the public scripts) and the column of a table that shows its accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

NOVEL_CLASSES = "novel classes"  # a capability of methods: predicting classes not seen in training


@dataclass(frozen=True)
class Step:
    """One run of a protocol.

    Args:
        name: name of the step.
        train: classes trained on (all, base or new).
        test: classes tested.
        column: heading of its accuracy; may contain {shots} and {target}.
        folder: folder of the run, with the fields of ``Run.folder``.
        loads: the step whose model is tested; None if this step trains one.
        transfers: whether it tests on a dataset other than the training one, without its shots.
        needs: capability that the method must have; "" for none.
        options: KEY VALUE pairs of the step alone.
    """

    name: str
    train: str
    test: str
    column: str
    folder: str
    loads: Step | None = None
    transfers: bool = False
    needs: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """Steps in the order of execution, and their summary.

    Args:
        name: name on the command line.
        title: name in messages.
        steps: steps in the order of execution.
        shots: numbers of training images per class; each step has a run for each of them.
        summary: its heading, and its value from {step name: accuracies in percent}; None for none.
        targets: {dataset trained on: datasets tested}, for steps that transfer.
    """

    name: str
    title: str
    steps: tuple[Step, ...]
    shots: tuple[int, ...] = (16,)
    summary: tuple[str, Callable[[Mapping[str, Sequence[float]]], float]] | None = None
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def transfers(self) -> bool:
        """Tell whether a step transfers: its results are by target, not by training dataset."""
        return any(step.transfers for step in self.steps)


def harmonic_mean(base: float, novel: float) -> float:
    """Return the harmonic mean of two accuracies, 0 if both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def base_and_novel(accuracies: Mapping[str, Sequence[float]]) -> float:
    """Return the harmonic mean of the accuracies on base and on novel classes."""
    return harmonic_mean(*accuracies["train_base"], *accuracies["test_new"])


def mean_of_targets(accuracies: Mapping[str, Sequence[float]]) -> float:
    """Return the mean accuracy over the target datasets, without the source."""
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
        "emoji": ("animals", "food", "faces", "shapes", "glyphs", "digits"),
    },
)
DOMAIN_GENERALIZATION = Protocol(
    *("domain_generalization", "domain generalization", (TRAIN_SOURCE, TEST_TARGET)),
    summary=("Average", mean_of_targets),
    targets={
        "imagenet": ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
        "emoji": ("emoji_v2", "emoji_sketch", "emoji_noise", "emoji_rendition"),
    },
)
PROTOCOLS = {p.name: p for p in (BASE2NEW, FEW_SHOT, CROSS_DATASET, DOMAIN_GENERALIZATION)}
