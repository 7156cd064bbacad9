"""What finished runs were right about, image by image, and whether two runs may be compared."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dassl.errors import UserError
from experiments.runs import Run

# Settings that the runs of two methods share, besides their images.
SHARED = ("DATASET.NAME", "DATASET.NUM_SHOTS", "INPUT.SIZE", "MODEL.BACKBONE.NAME")
OF_A_SEED = ("SEED", "MODEL.INIT_WEIGHTS")  # settings in which the seeds of a method may differ


@dataclass(frozen=True)
class Outcome:
    """What a finished run was right about.

    Args:
        run: the run.
        images: path and class name of each test image, sorted (n).
        right: whether the run was right about it (n,).
        config: of the run, as nested plain dicts; empty where its results have none.
    """

    run: Run
    images: list[tuple[str, str]]
    right: np.ndarray
    config: dict[str, Any]


class Outcomes:
    """Reads each run once; names and counts what is missing or damaged."""

    def __init__(self) -> None:
        self._found: dict[Path, Outcome | None] = {}
        self._missing: list[Path] = []

    def of(self, run: Run) -> Outcome | None:
        """Return the outcome of a run, None if it is missing or damaged; report a damaged one."""
        if run.folder not in self._found:
            self._found[run.folder] = None
            if not run.is_finished:
                self._missing.append(run.folder)
            else:
                try:
                    self._found[run.folder] = read_outcome(run)
                except UserError as error:
                    print(f"skipped: {error}", file=sys.stderr)
        return self._found[run.folder]

    def report(self) -> int:
        """Name the missing runs and count them and the damaged ones; return the exit code.

        It is 1 where a file is damaged: what is printed lacks a run that has finished.
        """
        for folder in self._missing:
            print(f"missing: {folder}", file=sys.stderr)
        unread = sum(outcome is None for outcome in self._found.values())
        damaged, missing = unread - len(self._missing), len(self._missing)
        if unread:
            total = len(self._found)
            print(
                f"skipped: {damaged} damaged and {missing} missing of {total} runs", file=sys.stderr
            )
        return 1 if damaged else 0


def read_outcome(run: Run) -> Outcome:
    """Read the results and the predictions of a finished run.

    Raises:
        UserError: they are missing or damaged, do not belong together, or are of one image.
    """
    from dassl.evaluation.predictions import PREDICTIONS_FILE, read_predictions  # imports torch

    results, path = run.results(), run.place / PREDICTIONS_FILE
    found = read_predictions(str(path))
    right = found.top_indices[:, 0] == found.labels
    accuracy, kept = 100 * right.mean(), results["accuracy"]
    if abs(accuracy - kept) > 0.001:
        raise UserError(
            f"{path}: expected accuracy {kept:.4f} as in the results, got {accuracy:.4f}"
        )
    if len(right) < 2:
        raise UserError(f"{path}: expected two images or more, got {len(right)}")
    images = list(zip(found.paths.tolist(), found.class_names[found.labels].tolist(), strict=True))
    order = sorted(range(len(images)), key=images.__getitem__)
    config = results.get("config")
    return Outcome(
        run,
        [images[i] for i in order],
        right[order],
        config if isinstance(config, dict) else {},
    )


def check_same_settings(first: Outcome, second: Outcome) -> None:
    """Check that two runs of one method differ in the seed alone.

    Raises:
        UserError: they do not; the message says what differs.
    """
    from dassl.config import first_difference
    from dassl.engine.same_run import FREE_KEYS

    # none of them changes what is learned; other images are noticed
    switches = [f"TEST.{key}" for key in ("SAVE_LOGITS", "SAVE_ATTENTION", "SAVE_EVOLUTION")]
    ignored = (*FREE_KEYS, *OF_A_SEED, *switches)
    _refuse(first, second, first_difference(first.config, second.config, ignored))


def check_comparable(first: Outcome, second: Outcome) -> None:
    """Check that two runs have the same test images and share what two methods must share.

    Raises:
        UserError: they do not; the message says what differs.
    """
    for key in SHARED:
        if key == "DATASET.NUM_SHOTS" and not (first.run.is_trained and second.run.is_trained):
            continue
        one, two = _setting(first.config, key), _setting(second.config, key)
        if one is not None and two is not None and one != two:
            _refuse(first, second, (key, one, two))
    if first.images != second.images:
        odd = sorted(set(first.images) ^ set(second.images))
        what = f"{len(first.images)} and {len(second.images)} test images"
        if odd:
            place = (first if odd[0] in first.images else second).run.place
            what += f", of which '{odd[0][0]}' of class '{odd[0][1]}' is only in {place}"
        raise UserError(f"{_names(first, second)}: {what}")


def _setting(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _names(first: Outcome, second: Outcome) -> str:
    return f"cannot compare {first.run.place} with {second.run.place}"


def _refuse(first: Outcome, second: Outcome, difference: tuple[str, Any, Any] | None) -> None:
    if difference is not None:
        key, one, two = difference
        raise UserError(f"{_names(first, second)}: {key} is {one} in one and {two} in the other")
