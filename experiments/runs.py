"""The runs of a protocol for a method: their folders, and their arguments for train.py.

The folders are those of the public scripts, so that a run that one command has finished is finished
for all. Overrides and an explicit backbone add one level below the config file's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.choice import (
    CLOSED_SET,
    CONFIGS,
    EMBEDDED_SOURCE,
    UNTRAINED,
    config_of,
    is_embedded,
)
from configs.protocols import NOVEL_CLASSES, Protocol, Step
from dassl.config.domains import Float
from dassl.errors import UserError, shown
from dassl.json_file import read_json

# As in dassl.engine.run_folder, which imports torch: skipping a finished run must not take seconds.
RESULTS_FILE = "results.json"
UNTRAINED_FOLDER = "{trainer}/{config}{variant}/{target}{subset}"
# The last part of a config key identifies it, except for these, which several sections have.
SHARED_NAMES = ("NAME", "BATCH_SIZE", "SAMPLER", "SUBSAMPLE_CLASSES")
# Keys that a run sets itself, and the options that set them.
OWN_KEYS = {
    "SEED": "--seed or --seeds",
    "OUTPUT_DIR": "--output-dir",
    "DATASET.ROOT": "--root",
    "DATASET.NAME": "the dataset",
    "DATASET.NUM_SHOTS": "--shots",
    "DATASET.SUBSAMPLE_CLASSES": "the protocol",
    "TRAINER.NAME": "the method",
    "MODEL.BACKBONE.NAME": "--backbone",
}


@dataclass(frozen=True)
class Run:
    """One run of ``train.py``.

    Args:
        step: step of the protocol.
        trainer: the method.
        dataset: dataset trained on.
        target: dataset tested; the same except for steps that transfer.
        seed: seed of the run.
        shots: training images per class; 0 if nothing is trained.
        config: name of the method's config file, without .yaml.
        overrides: KEY VALUE pairs for the config.
        backbone: name or weights file of the CLIP; "" for the config file's.
        root: folder of the datasets.
        output_dir: parent folder of all runs.
        load_epoch: epoch of the model to test; "" for the last.
    """

    step: Step
    trainer: str
    dataset: str
    target: str
    seed: int
    shots: int
    config: str
    overrides: tuple[str, ...] = ()
    backbone: str = ""
    root: str = "data"
    output_dir: Path = Path("output")
    load_epoch: str = ""

    def __str__(self) -> str:
        method = ",".join(filter(None, (self.trainer, self.variant)))
        data = self.dataset if self.target == self.dataset else f"{self.dataset} to {self.target}"
        trained = f", {self.shots} shots, seed {self.seed}" if self.is_trained else ""
        return f"{method} on {data}, {self.step.name}{trained}"

    @property
    def is_trained(self) -> bool:
        """Tell whether the run's method is trained; zero-shot methods are only tested."""
        return self.trainer not in UNTRAINED

    @property
    def variant(self) -> str:
        """The overrides and the backbone as a folder name; "" if there are none."""
        backbone = [f"backbone={self.backbone}"] if self.backbone else []
        return ",".join([*_pairs(self.overrides), *backbone]).replace("/", "-")

    @property
    def folder(self) -> Path:
        """The folder of the run's files."""
        usual = EMBEDDED_SOURCE if is_embedded(self.target) else "imagenet"
        transfer = self.target if self.dataset == usual else f"{self.dataset}_to_{self.target}"
        place = (self.step.folder if self.is_trained else UNTRAINED_FOLDER).format(
            dataset=self.dataset,
            target=self.target,
            transfer=transfer,
            subset="" if self.step.test == "all" else f"_{self.step.test}",
            trainer=self.trainer,
            config=self.config,
            variant=f"/{self.variant}" if self.variant else "",
            shots=self.shots,
            seed=self.seed,
        )
        # One epoch's result must not be mistaken for another's.
        epoch = f"_epoch{self.load_epoch}" if self.load_epoch else ""
        return self.output_dir / f"{place}{epoch}"

    @property
    def old_folders(self) -> list[Path]:
        """The folders of the same run in the scheme of the former ``benchmarks.table``."""
        parts = {
            "train_base": "train_base" if self.is_trained else "base",
            "test_new": "new",
            "train_all": "all",
        }
        usual = (self.config, self.backbone) == ("vit_mini", "") and self.shots in (0, 16)
        if self.step.name not in parts or not usual or self.load_epoch:
            return []
        part, overrides = parts[self.step.name], self.overrides
        if overrides[-2:] == ("TEST.SPLIT", "val"):
            part, overrides = "val", overrides[:-2]
        variant = ",".join([self.trainer, *_pairs(overrides)])
        place = Path(self.dataset, variant, f"seed{self.seed}", part)
        # "table" was below the usual output folder
        return [self.output_dir / place, self.output_dir / "table" / place]

    @property
    def place(self) -> Path:
        """The folder in which the run has finished, or else the one to run it in."""
        folders = (self.folder, *self.old_folders)
        return next((f for f in folders if (f / RESULTS_FILE).is_file()), self.folder)

    @property
    def is_finished(self) -> bool:
        """Tell whether the run has written its results."""
        return (self.place / RESULTS_FILE).is_file()

    @property
    def model(self) -> Run | None:
        """The run whose model this one tests; None if it trains one or there is none."""
        if self.step.loads is None or not self.is_trained:
            return None
        return replace(self, step=self.step.loads, target=self.dataset, load_epoch="")

    @property
    def arguments(self) -> list[str]:
        """The arguments for ``train.py``."""
        arguments = [
            *("--root", self.root),
            *("--seed", str(self.seed)),
            *("--trainer", self.trainer),
            *("--dataset-config-file", f"{CONFIGS}/datasets/{self.target}.yaml"),
            *("--config-file", str(self.config_file)),
            *("--output-dir", str(self.folder)),
        ]
        if self.backbone:
            arguments += ["--backbone", self.backbone]
        if not self.is_trained:
            arguments += ["--eval-only", "DATASET.SUBSAMPLE_CLASSES", self.step.test]
            return [*arguments, *self.overrides]
        if self.model:
            arguments += ["--model-dir", str(self.model.place), "--eval-only"]
        if self.load_epoch:
            arguments += ["--load-epoch", self.load_epoch]
        if not self.step.transfers:
            arguments += ["DATASET.NUM_SHOTS", str(self.shots)]
        if self.step.test != "all":
            arguments += ["DATASET.SUBSAMPLE_CLASSES", self.step.test]
        return [*arguments, *self.overrides, *self.step.options]

    @property
    def config_file(self) -> Path:
        """The path of the method's config file."""
        return CONFIGS / "trainers" / self.trainer / f"{self.config}.yaml"

    @property
    def column(self) -> str:
        """The heading of its accuracy in a table."""
        return self.step.column.format(shots=self.shots, target=self.target)

    def check_model(self, first: str) -> None:
        """Check that the model to test exists.

        Raises:
            UserError: it does not; the message names ``first``, the command that trains it.
        """
        # A given epoch may exist before training has finished.
        if self.model and not self.load_epoch and not self.model.is_finished:
            raise UserError(
                f"no finished training in {self.model.folder}; "
                f"first run, with the same settings: {first}"
            )

    def results(self) -> dict[str, Any]:
        """Read the results of the finished run, whose "accuracy" is a number in percent.

        Raises:
            UserError: the file is missing or damaged, or has no accuracy or a wrong one.
        """
        path = self.place / RESULTS_FILE
        try:
            found = read_json(str(path))
        except UserError as error:
            raise UserError(f"{path}: expected results, got a damaged file: {error}") from error
        accuracy: Any = found.get("accuracy") if isinstance(found, dict) else None
        if accuracy not in Float(min=0, max=100):
            got = shown(accuracy)
            raise UserError(f"{path}: expected a number in [0, 100] under 'accuracy', got {got}")
        correct, total = found.get("correct"), found.get("total")
        if isinstance(correct, int) and isinstance(total, int) and total > 0:
            expected = 100 * correct / total
            if abs(accuracy - expected) > 0.001:  # a damaged digit
                raise UserError(
                    f"{path}: expected accuracy {expected:.4f} of {correct} correct images in "
                    f"{total}, got {accuracy:.4f}"
                )
        return found

    @staticmethod
    def backbone_in(results: dict[str, Any]) -> str:
        """Return the name of the CLIP in the config of a run's results; "" where there is none."""
        name = _in_config(results, "MODEL", "BACKBONE", "NAME")
        return name if isinstance(name, str) else ""

    @staticmethod
    def views_in(results: dict[str, Any]) -> int:
        """Return the number of fixed views of a run's training images; 0: new ones each epoch."""
        views = _in_config(results, "DATALOADER", "VIEWS")
        return views if isinstance(views, int) else 0


@dataclass(frozen=True)
class Job:
    """The runs of a protocol for one method, dataset, seed and number of shots."""

    protocol: Protocol
    runs: tuple[Run, ...]


def _in_config(results: dict[str, Any], *names: str) -> Any:
    node: Any = results
    for name in ("config", *names):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _pairs(overrides: Sequence[str]) -> list[str]:
    """Name each KEY VALUE pair by the last part of its key."""
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return [f"{_short(key)}={value}" for key, value in pairs]


def _short(key: str) -> str:
    section, _, name = key.rpartition(".")
    return f"{section.rpartition('.')[2]}.{name}" if name in SHARED_NAMES else name


def check_overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return KEY VALUE pairs after checking that a run may have them.

    Raises:
        UserError: a key has no value, or the run sets it itself.
    """
    if len(overrides) % 2:
        raise UserError(
            f"overrides: expected KEY VALUE pairs, got '{overrides[-1]}' without a value"
        )
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if key in OWN_KEYS:
            raise UserError(f"{key}: expected to be set by {OWN_KEYS[key]}, got override {value}")
    return tuple(overrides)


def runs_of(
    protocol: Protocol,
    trainer: str,
    dataset: str,
    seed: int = 1,
    shots: int = 16,
    *,
    config: str = "",
    overrides: Sequence[str] = (),
    backbone: str = "",
    targets: Sequence[str] = (),
    root: str = "data",
    output_dir: str | os.PathLike[str] = "output",
) -> list[Run]:
    """List the runs of a protocol for one method, dataset and seed, in the order of execution.

    Runs that are not trained do not depend on seed and shots: they have seed 1 and 0 shots.

    Args:
        protocol: one of ``protocols.PROTOCOLS``.
        trainer: the method; steps that need a capability it lacks are left out.
        dataset: dataset trained on.
        seed: seed of every run.
        shots: training images per class.
        config: name of its config file; "" for the default one.
        overrides: KEY VALUE pairs for the config.
        backbone: name or weights file of the CLIP; "" for the config file's.
        targets: datasets to transfer to; empty for the protocol's.
        root: folder of the datasets.
        output_dir: parent folder of all runs.

    Raises:
        UserError: the overrides are invalid, or no config or targets are known.
    """
    first = Run(
        protocol.steps[0],
        *(trainer, dataset, dataset),
        seed=1 if trainer in UNTRAINED else seed,
        shots=0 if trainer in UNTRAINED else shots,
        config=config or config_of(trainer, protocol, dataset, shots, backbone),
        overrides=check_overrides(overrides),
        backbone=backbone,
        root=root,
        output_dir=Path(output_dir),
    )
    runs = []
    for step in protocol.steps:
        if step.needs == NOVEL_CLASSES and trainer in CLOSED_SET:
            continue
        places = [dataset]
        if step.transfers:
            places = list(targets or protocol.targets.get(dataset, ()))
            if not places:
                known = ", ".join(protocol.targets)
                raise UserError(
                    f"targets: expected dataset names, or a source among {known}; got '{dataset}'"
                )
        runs += [replace(first, step=step, target=place) for place in places]
    return runs
