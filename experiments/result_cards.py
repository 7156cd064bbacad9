"""Result cards of many runs: which seeds they lack, what they are extended by, and reading them."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.protocols import Protocol
from dassl.errors import UserError
from dassl.utils.tools import write_json
from experiments import verify
from experiments.outcomes import Outcome, Outcomes
from experiments.runs import Job, Run
from experiments.scores import Scores
from experiments.table import plan
from experiments.table import read_arguments as read_table_arguments

CARDS = Path(__file__).parent / "cards" / "results"
TOLERANCE = 3  # pictures of a test set that another machine may differ by


class Row(NamedTuple):
    """A method with its seeds, the first of which is 1, and settings of its own."""

    method: str
    seeds: int
    overrides: tuple[str, ...] = ()


class Part(NamedTuple):
    """Runs of a protocol.

    Attributes:
        protocol: theirs.
        datasets: trained on.
        rows: the methods.
    """

    protocol: Protocol
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]


class Unit(NamedTuple):
    """The runs of one card.

    Attributes:
        part: they belong to.
        dataset: trained on.
        row: the method.
        jobs: the runs, of all seeds and numbers of shots.
    """

    part: Part
    dataset: str
    row: Row
    jobs: list[Job]

    @property
    def path(self) -> Path:
        """The card's."""
        variant = self.jobs[0].runs[0].variant
        name = ",".join(filter(None, (f"{self.dataset}-{self.row.method}", variant)))
        return CARDS / self.part.protocol.name / f"{name}.json"

    def runs(self) -> dict[int, dict[str, Run]]:
        """Return the runs of each seed by their folders."""
        found: dict[int, dict[str, Run]] = {}
        for run in (run for job in self.jobs for run in job.runs):
            found.setdefault(run.seed, {})[place(run)] = run
        return found

    def card(self) -> dict[str, Any]:
        """Read the card; empty where there is none.

        Raises:
            UserError: it is damaged.
        """
        return verify.read_card(str(self.path)) if self.path.exists() else {}

    def lacking(self) -> dict[str, Run]:
        """Return the runs of the seeds of which the card lacks one."""
        known = {record["run"] for record in self.card().get("runs", [])}
        by_seed = [runs for runs in self.runs().values() if not runs.keys() <= known]
        return {folder: run for runs in by_seed for folder, run in runs.items()}


def options(part: Part, dataset: str, row: Row, seeds: Iterable[int]) -> list[str]:
    """Return the options of ``table`` for the runs of some seeds."""
    own = ["--protocol", part.protocol.name, "--datasets", dataset, "--methods", row.method]
    own += ["--seeds", *map(str, seeds)]
    return [*own, "--overrides", *row.overrides] if row.overrides else own


def place(run: Run) -> str:
    """Return a run's folder below the output folder."""
    return run.folder.relative_to(run.output_dir).as_posix()


def units_of(part: Part, dataset: str, places: Sequence[str]) -> list[Unit]:
    """List the units of a dataset.

    Args:
        part: it belongs to.
        dataset: trained on.
        places: the options for the folders of data and runs.
    """
    units = []
    for row in part.rows:
        own = options(part, dataset, row, range(1, row.seeds + 1))
        jobs = plan(read_table_arguments([*own, *places]))
        units.append(Unit(part, dataset, row, jobs))
    return units


def keep(unit: Unit, machine: Mapping[str, Any]) -> None:
    """Add finished runs to the unit's card, those of a seed together.

    Args:
        unit: its runs.
        machine: that has executed what the card lacks; empty where nobody knows.

    Raises:
        UserError: the card, or what a run has left, is damaged, or the runs have other settings or
            test images than those of the card.
    """
    lacking, old = unit.lacking(), unit.card()
    unfinished = {run.seed for run in lacking.values() if not run.is_finished}
    runs = {folder: run for folder, run in lacking.items() if run.seed not in unfinished}
    if not runs:
        return
    new = sorted({run.seed for run in runs.values()})
    planned = verify.Plan(unit.part.protocol.name, runs)
    where = unit.part, unit.dataset, unit.row
    card = verify.card_of(options(*where, new), planned, TOLERANCE, machine)
    if old:
        for name in ("method", "tag"):
            if card[name] != old[name]:
                raise UserError(f"{unit.path}: expected {name} {old[name]}, got {card[name]}")
        known = {alike(record): record for record in old["runs"]}
        for record in card["runs"]:
            like = known.get(alike(record), record)
            if odd := [name for name in verify.SAME if record[name] != like[name]]:
                what = f"the {odd[0]} of {like['run']}"
                raise UserError(f"{unit.path}: expected {what}, got another in {record['run']}")
        seeds = sorted({*old["seeds"], *new})
        kept = [record for record in old["runs"] if record["run"] not in runs]
        records = sorted([*kept, *card["runs"]], key=lambda record: record["seed"])
        command = verify.COMMAND + shlex.join(options(*where, seeds))
        card |= {"command": command, "seeds": seeds, "runs": records}
        card |= {"machine": machine if old["machine"] == machine else {}}
    unit.path.parent.mkdir(parents=True, exist_ok=True)
    write_json(card, str(unit.path))


def alike(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return what runs have in common that differ in the seed alone."""
    return record["dataset"], record["run"].rpartition("/seed")[0]


def right_in(record: Mapping[str, Any]) -> np.ndarray | None:
    """Return whether a card's run was right about each test image, in the order of their paths.

    None where the card does not say.

    Raises:
        UserError: it says something else than the number of images the run was right about.
    """
    if (text := record.get("right")) is None:
        return None
    total, correct = record["total"], record["correct"]
    try:
        bits = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (TypeError, ValueError):
        bits = np.zeros(0, np.uint8)
    right = np.unpackbits(bits).astype(bool)
    if len(bits) != -(-total // 8) or right.sum() != correct or right[total:].any():
        raise UserError(f"{record['run']}: right: expected bits of {correct} in {total} images")
    return right[:total]


class CardScores(Scores):
    """What the cards of units have, in place of finished runs."""

    def __init__(self, units: Iterable[Unit]) -> None:
        super().__init__()
        records = [record for unit in units for record in unit.card().get("runs", [])]
        self.records = {record["run"]: record for record in records}

    def _read(self, run: Run) -> float | None:
        record = self.records.get(place(run))
        return None if record is None else float(record["accuracy"])

    def _read_predictions(self, run: Run) -> dict[str, bool] | None:
        right = right_in(self.records[place(run)])
        return None if right is None else {str(i): one for i, one in enumerate(right.tolist())}


class CardOutcomes(Outcomes):
    """What the cards of units say of each test image, in place of finished runs."""

    def __init__(self, units: Iterable[Unit]) -> None:
        super().__init__()
        self._records = CardScores(units).records

    def of(self, run: Run) -> Outcome | None:
        """Return the outcome of a run, None where no card has it."""
        record = self._records.get(place(run))
        right = None if record is None else right_in(record)
        if record is None or right is None:
            return None
        images = [(record["split"], str(i)) for i in range(len(right))]
        return Outcome(run, images, right, {})
