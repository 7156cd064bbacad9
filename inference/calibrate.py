"""Fit what a run's probabilities mean to its validation images.

    python -m inference.calibrate output/run --coverage 0.9 0.95

It writes calibration.json into the run's folder, which ``predict.py`` and ``Classifier`` follow.
Nothing is fitted to test images; what the calibration gives is measured on them.

Exit codes: 0 done, 2 bad input, or a disk or memory that failed (one line on stderr says what),
130 interrupted. Then nothing is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import datasets  # noqa: F401  (registers the datasets and their config keys)
from dassl.command import Parser, number, say
from dassl.command import run as run_command
from dassl.config import get_cfg_default, merge_from_dict, set_key
from dassl.data import DataManager
from dassl.engine.checkpoints import check_classes
from dassl.engine.run_folder import CALIBRATION_FILE
from dassl.engine.same_run import settings_in
from dassl.errors import UserError
from dassl.evaluation import check_logits, read_predictions
from dassl.evaluation.predictions import PREDICTIONS_FILE
from dassl.metrics import accuracy, ece, label_ranks, nll
from dassl.table import print_table
from dassl.utils import set_random_seed
from dassl.utils.logger import errors_alone
from dassl.utils.places import check_files
from inference.calibration import (
    BOUNDS,
    Calibration,
    check_coverages,
    fit_temperature,
    set_sizes,
    threshold,
    write_calibration,
)
from inference.classifier import Classifier


class Scored(NamedTuple):
    """Logits (n, K) and labels (n,) of images."""

    logits: Tensor
    labels: Tensor


def data_of(folder: str, root: str) -> tuple[Any, DataManager]:
    """Return a run's config, and the images that it had.

    Args:
        folder: of the run.
        root: where the datasets are now; "" for where they were.

    Raises:
        UserError: the images cannot be found or read, or a key of the config is unknown.
    """
    config = settings_in(folder)
    assert config is not None  # a classifier was made from it
    cfg = get_cfg_default(config["TRAINER"]["NAME"])
    merge_from_dict(cfg, config, folder)
    if root:
        set_key(cfg, "DATASET.ROOT", root)
    cfg.VERBOSE = False
    cfg.freeze()
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)  # a few-shot sample that is not on the disk is drawn again
    return cfg, DataManager(cfg)


def scored(classifier: Classifier, loader: Any, what: str) -> Scored:
    """Compute the logits of a loader's images.

    Raises:
        LogitsError: one is not finite.
    """
    logits, labels = [], []
    for batch in tqdm(loader, desc=what, disable=not sys.stderr.isatty()):
        logits.append(classifier.logits(batch["img"]))
        check_logits(logits[-1], batch["impath"])
        labels.append(batch["label"])
    return Scored(torch.cat(logits), torch.cat(labels))


def recorded(classifier: Classifier, folder: str) -> Scored | None:
    """Return what the run itself kept of its test images, if it is all logits."""
    path = os.path.join(folder, PREDICTIONS_FILE)
    if classifier.record.results.get("split") != "test" or not os.path.isfile(path):
        return None
    found = read_predictions(path)
    if found.logits is None or found.class_names.tolist() != classifier.labels:
        return None
    return Scored(torch.from_numpy(found.logits), torch.from_numpy(found.labels))


def check_validation(dataset: Any, name: str) -> None:
    """Raise ``UserError`` where a dataset has no images to fit anything to."""
    if not dataset.val:
        raise UserError(f"DATASET.NAME: expected a dataset with validation images, got '{name}'")
    if not dataset.val_is_disjoint:
        raise UserError(
            "DATASET.NAME: expected a dataset whose validation images are not test images, got "
            f"'{name}'"
        )


def figures(images: Scored, temperature: float) -> dict[str, float]:
    """Return accuracy in percent, NLL in nats and ECE at a temperature."""
    logits = images.logits.double() / temperature
    return {metric.__name__: metric(logits, images.labels) for metric in (accuracy, nll, ece)}


def calibrate(validation: Scored, coverages: Iterable[float]) -> Calibration:
    """Fit a temperature, 1 where none is best, and the threshold of each coverage."""
    temperature = fit_temperature(*validation)
    if temperature is None:
        say(
            f"The temperature stays 1: on the {len(validation.labels)} validation images, none "
            f"from {BOUNDS[0]:g} to {BOUNDS[1]:g} is best"
            + (", as all are recognized" if accuracy(*validation) == 100 else "")
        )
        temperature = 1.0
    probabilities = (validation.logits.double() / temperature).softmax(dim=1)
    thresholds = {each: threshold(probabilities, validation.labels, each) for each in coverages}
    return Calibration(temperature, thresholds, len(validation.labels))


def print_figures(parts: dict[str, Scored], temperature: float) -> None:
    """Print what the temperature changes, on the images of each part."""
    rows = []
    for part, images in parts.items():
        for each in (1.0, temperature):
            percent, *others = figures(images, each).values()
            cells = [f"{percent:.1f}%", *(f"{value:.4f}" for value in others)]
            rows.append((part, f"{len(images.labels):,}", f"{each:.4g}", *cells))
    print_table(("Split", "Images", "Temperature", "Accuracy", "NLL", "ECE"), rows)


def print_sets(test: Scored | None, calibration: Calibration) -> None:
    """Print how often the sets have the true class of test images, and how large they are."""
    rows = []
    for coverage, least in sorted(calibration.thresholds.items()):
        cells = ("-", "-")
        if test is not None:
            probabilities = (test.logits.double() / calibration.temperature).softmax(dim=1)
            sizes = set_sizes(probabilities, least)
            covered = (label_ranks(probabilities, test.labels) < sizes).double().mean()
            cells = (f"{100 * covered:.1f}%", f"{sizes.double().mean():.2f}")
        rows.append((f"{coverage:g}", f"{least:.4g}", *cells))
    print_table(("Coverage", "Probability from", "Covered on test", "Classes in a set"), rows)


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit code.

    Raises:
        UserError: bad input.
    """
    classifier = Classifier.from_run(args.run)
    check_files(args.run, [CALIBRATION_FILE])
    cfg, data = data_of(args.run, args.root)
    dataset = data.dataset
    check_validation(dataset, cfg.DATASET.NAME)
    check_classes(classifier.labels, dataset.classnames, args.run)
    check_coverages(args.coverage, len(dataset.val))
    parts = {"validation": scored(classifier, data.val_loader, "validation")}
    calibration = calibrate(parts["validation"], args.coverage)
    if dataset.test_classnames == dataset.classnames:
        kept = recorded(classifier, args.run)
        parts["test"] = kept or scored(classifier, data.test_loader, "test")
        after = figures(parts["test"], calibration.temperature)
        calibration = replace(calibration, test={name: after[name] for name in ("nll", "ece")})
    print_figures(parts, calibration.temperature)
    if calibration.thresholds:
        say()
        print_sets(parts.get("test"), calibration)
    if cfg.TEST.FINAL_MODEL == "best_val" or classifier.method.fit is not None:
        say("The run chose its model by the validation images: it may do worse on others")
    write_calibration(calibration, args.run)
    say(f"Written to {os.path.join(args.run, CALIBRATION_FILE)}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m inference.calibrate",
        description="Calibrate the probabilities of a run on its validation images.",
    )
    share = number(float, "a number between 0 and 1", lambda value: 0 < value < 1)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run")
    add("--root", default="", help="folder that holds the datasets, where it is another one now")
    add(
        "--coverage",
        type=share,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="also find sets of classes that have the true one for this share of pictures",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command line, the process's own without ``argv``, and return the exit code."""

    def command() -> int:
        args = build_parser().parse_args(argv)
        with errors_alone():  # the standard output is for the figures
            return run(args)

    return run_command(command, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
