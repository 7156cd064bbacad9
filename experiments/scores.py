"""What the finished runs of a plan have achieved; the damaged and the missing are counted."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from dassl.errors import UserError
from experiments.intervals import mean_and_half_width, shares_right
from experiments.runs import Job, Run


class Scores:
    """The accuracies of finished runs; damaged or missing ones are skipped and counted."""

    def __init__(self) -> None:
        self.backbones: dict[str, None] = {}  # of the runs read, in their order
        self.precisions: dict[str, None] = {}
        self._accuracies: dict[Path, float | None] = {}
        self._views: dict[Path, int] = {}
        self._damaged = 0
        self._right: dict[Path, dict[str, bool] | None] = {}
        self._damaged_predictions = 0

    def accuracy(self, run: Run) -> float | None:
        """Return the accuracy in percent, None if there is none; report a damaged file."""
        folder = run.folder
        if folder not in self._accuracies:
            self._accuracies[folder] = self._read(run)
        return self._accuracies[folder]

    def _read(self, run: Run) -> float | None:
        if not run.is_finished:
            return None
        try:
            results = run.results()
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)
            self._damaged += 1
            return None
        if backbone := run.backbone_in(results):
            self.backbones[backbone] = None
        if isinstance(precision := results.get("precision"), str):  # earlier versions had none
            self.precisions[precision] = None
        if run.is_trained:
            self._views[run.folder] = run.views_in(results)
        return float(results["accuracy"])

    def accuracies(self, runs: Iterable[Run]) -> list[float]:
        """Return the accuracies that exist."""
        return [a for a in map(self.accuracy, runs) if a is not None]

    def named(self, method: str, jobs: Iterable[Job]) -> str:
        """Return a method's name, marked where its runs that were read saw fixed views."""
        folders = [run.folder for job in jobs for run in job.runs]
        found = sorted({self._views[folder] for folder in folders if folder in self._views})
        return f"{method} (VIEWS {', '.join(map(str, found))})" if any(found) else method

    def summary(self, job: Job) -> list[float]:
        """Return the protocol's summary of a job, empty if an accuracy for it is missing."""
        steps: dict[str, list[float]] = {step.name: [] for step in job.protocol.steps}
        for run in job.runs:
            steps[run.step.name] += self.accuracies([run])
        complete = sum(map(len, steps.values())) == len(job.runs) and all(steps.values())
        if job.protocol.summary is None or not complete:
            return []
        return [job.protocol.summary[1](steps)]

    def right(self, run: Run) -> dict[str, bool] | None:
        """Return {test picture: whether the run is right}; None without readable predictions."""
        folder = run.folder
        if folder not in self._right:
            self._right[folder] = self._read_predictions(run)
        return self._right[folder]

    def _read_predictions(self, run: Run) -> dict[str, bool] | None:
        from dassl.evaluation.predictions import PREDICTIONS_FILE, read_predictions

        path = run.place / PREDICTIONS_FILE
        if not path.exists():
            return None
        try:
            found = read_predictions(str(path))
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)
            self._damaged_predictions += 1
            return None
        right = found.top_indices[:, 0] == found.labels
        return dict(zip(found.paths.tolist(), right.tolist(), strict=True))

    def shares(self, runs: Iterable[Run]) -> dict[str, float]:
        """Return {test picture: share of finished runs that are right}; empty if one is unread."""
        rights = [self.right(run) for run in runs if self.accuracy(run) is not None]
        known = [right for right in rights if right is not None]
        return shares_right(known) if len(known) == len(rights) else {}

    def half_width(self, runs: Iterable[Run]) -> float | None:
        """Return the half-width of the test set's interval; None without predictions."""
        shares = self.shares(runs)
        return mean_and_half_width(shares.values())[1] if shares else None

    def report(self) -> int:
        """Print lines that count what was skipped, if anything was; return the exit code.

        It is 1 where a file is damaged: what is printed lacks a run that has finished.
        """
        missing = sum(a is None for a in self._accuracies.values()) - self._damaged
        if missing or self._damaged:
            total = len(self._accuracies)
            skipped = f"{self._damaged} damaged and {missing} missing of {total} results"
            print(f"skipped: {skipped}", file=sys.stderr)
        unknown = sum(right is None for right in self._right.values())
        if unknown:
            print(
                f"no intervals: {unknown} of {len(self._right)} runs have no predictions that can "
                "be read",
                file=sys.stderr,
            )
        return 1 if self._damaged or self._damaged_predictions else 0
