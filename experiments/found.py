"""The finished runs below output folders: each by its folder and its results.json.

The folder says what a run is, in the scheme of the protocols, and the results must agree. What says
neither, or is damaged, of another program or of a newer version, is named and counted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.choice import CONFIGS, EMBEDDED_SOURCE, UNTRAINED, is_embedded
from configs.protocols import TEST_NEW, TEST_TARGET, TRAIN_ALL, TRAIN_BASE
from dassl.errors import UserError, shown
from experiments.runs import RESULTS_FILE, UNTRAINED_FOLDER, Run
from experiments.views import VALIDATE  # of no protocol's tables, but no foreign run

# Settings that say which run of a method it is; in ``Run`` they have fields of their own.
OF_THE_RUN = ("SEED", "DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES")
SUBSETS = {"": TRAIN_ALL, "base": TRAIN_BASE, "new": TEST_NEW}  # of runs that are not trained


def _pattern(template: str, trainer: str) -> re.Pattern[str]:
    """Return what matches the path of a folder of a step, for its fields."""
    parts = {
        "variant": r"(?:/(?P<variant>[^/]+))?",
        "subset": r"(?:_(?P<subset>base|new))?",
        "trainer": rf"(?P<trainer>{trainer})",
        "shots": r"(?P<shots>\d{1,9})",
        "seed": r"(?P<seed>\d{1,9})(?:_epoch(?P<epoch>\d{1,9}))?",
    }
    texts = re.split(r"\{(\w+)\}", template)
    names = [parts.get(name, rf"(?P<{name}>[^/]+?)") for name in texts[1::2]]
    return re.compile(
        "(?:.*/)?" + "".join(map("".join, zip(texts[::2], [*names, ""], strict=True)))
    )


# The folder of a target would fit the scheme of ``TRAIN_ALL``, too.
STEPS = (TRAIN_BASE, TEST_NEW, TEST_TARGET, TRAIN_ALL, VALIDATE)
PLACES = [(step, _pattern(step.folder, r"[^/]+")) for step in STEPS]
UNTRAINED_PLACE = _pattern(UNTRAINED_FOLDER, "|".join(UNTRAINED))


@dataclass(frozen=True)
class Found(Run):
    """A finished run in the folder where it was found.

    Args:
        at: its folder.
        accuracy: in percent.
        counts: how many test images it is right about, and how many there are, where known.
        settings: of its config, by dotted key, that are not the defaults of its method.
        about: backbone, precision, split, version of torch and text other than the class names.
    """

    at: Path = Path()
    accuracy: float = 0.0
    counts: tuple[int, int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    about: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.at

    @property
    def place(self) -> Path:
        """The same."""
        return self.at

    @property
    def variant(self) -> str:
        """The overrides and the backbone, as its folder names them."""
        return ",".join(self.overrides)


def run_in(folder: Path) -> Found | None:
    """Return what the path of a folder says of its run; None if it is none of the scheme."""
    path = folder.as_posix()
    matches = ((step, pattern.fullmatch(path)) for step, pattern in PLACES)
    found = [(step, m) for step, m in matches if m and m["trainer"] not in UNTRAINED]
    if m := UNTRAINED_PLACE.fullmatch(path):
        found.append((SUBSETS[m["subset"] or ""], m))
    if not found:
        return None
    step, match = found[0]
    fields = match.groupdict()
    target = fields.get("transfer") or fields.get("target") or fields["dataset"]
    source = fields.get("dataset") or target
    if step.transfers:
        source, _, other = target.rpartition("_to_")
        source = source or (EMBEDDED_SOURCE if is_embedded(target) else "imagenet")
        target = other
    return Found(
        *(step, fields["trainer"], source, target),
        seed=int(fields.get("seed") or 1),
        shots=int(fields.get("shots") or 0),
        config=fields["config"],
        overrides=(fields["variant"],) if fields["variant"] else (),
        load_epoch=fields.get("epoch") or "",
        at=folder,
    )


def read_found(folder: Path) -> Found:
    """Read a finished run.

    Raises:
        UserError: its results are damaged, of another program or a newer version, or not those of
            the run that its folder names.
    """
    from dassl.config import merge

    path = folder / RESULTS_FILE
    run = run_in(folder)
    if run is None:
        raise UserError(
            f"{path}: expected a folder of a protocol's run, as docs/experiments.md says"
        )
    results = run.results()
    config = results.get("config")
    if not isinstance(config, dict) or not isinstance(results.get("trainer"), str):
        raise UserError(f"{path}: expected the results of a run with its trainer and config")
    newest, version = _defaults(run.trainer)[0]["VERSION"], config.get("VERSION")
    if not isinstance(version, int) or version > newest:
        raise UserError(f"{path}: expected config VERSION {newest} or less, got {shown(version)}")
    flat = merge.flat(config)
    _check_place(run, results["trainer"], flat, path)
    correct, total = results.get("correct"), results.get("total")
    versions = results.get("versions")
    torch = versions.get("torch") if isinstance(versions, dict) else None
    about = {
        "backbone": run.backbone_in(results) or "unknown backbone",
        "precision": results.get("precision") or "unknown precision",
        "split": f"split {results.get('split')}",
        "torch": f"torch {torch}",
        "text": _external_text(flat, run.trainer),
    }
    return replace(
        run,
        accuracy=float(results["accuracy"]),
        counts=(correct, total) if isinstance(correct, int) and isinstance(total, int) else None,
        settings=settings_of(flat, run.trainer),
        about={name: str(value) for name, value in about.items()},
    )


def _check_place(run: Found, trainer: str, flat: Mapping[str, Any], path: Path) -> None:
    tested = flat.get("TEST.SUBSAMPLE_CLASSES") or flat.get("DATASET.SUBSAMPLE_CLASSES")
    pairs: list[tuple[str, Any, Any]] = [
        ("trainer", run.trainer, trainer),
        ("classes tested", run.step.test, tested),
    ]
    if name := dataset_names().get(run.target):
        pairs.append(("DATASET.NAME", name, flat.get("DATASET.NAME")))
    if run.is_trained:
        pairs.append(("SEED", run.seed, flat.get("SEED")))
        if not run.step.transfers:
            pairs.append(("DATASET.NUM_SHOTS", run.shots, flat.get("DATASET.NUM_SHOTS")))
    for what, expected, got in pairs:
        if expected != got:
            raise UserError(
                f"{path}: expected {what} {expected}, as its folder says, got {shown(got)}"
            )


@functools.cache
def dataset_names() -> dict[str, str]:
    """Return {name of a dataset's config file: name of its class}."""
    from dassl.config import read_yaml

    files = sorted(CONFIGS.glob("datasets/[!_]*.yaml"))
    configs = {path.stem: read_yaml(str(path)) for path in files}
    return {stem: config["DATASET"]["NAME"] for stem, config in configs.items()}


@functools.cache
def _defaults(trainer: str) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the defaults of a method's keys and the keys that do not count, or only for others."""
    import trainers  # noqa: F401  declares the keys
    from dassl.config.defaults import declared, trainers_with_keys
    from dassl.engine.same_run import FREE_KEYS

    own = {key: domain.default for key, domain in declared(trainer).items()}
    others = {key for other in trainers_with_keys() for key in declared(other)} - own.keys()
    # as JSON has them
    return json.loads(json.dumps(own)), frozenset({*FREE_KEYS, *OF_THE_RUN, *others})


def settings_of(flat: Mapping[str, Any], trainer: str) -> dict[str, Any]:
    """Return the settings in which a run differs from the defaults of its method.

    Keys that are absent, as in results of an earlier version, have their defaults; what only says
    where things are, and the settings of other methods, does not count.

    Args:
        flat: the run's config by dotted key.
        trainer: the method.
    """
    defaults, ignored = _defaults(trainer)
    found = {
        key: value
        for key, value in flat.items()
        if (key not in defaults or defaults[key] != value)
        and key not in ignored
        and not key.startswith("TEST.SAVE_")
    }
    if "MODEL.INIT_WEIGHTS" in found:
        found["MODEL.INIT_WEIGHTS"] = "set"  # the seeds of a method have one each
    return dict(sorted(found.items()))


def _external_text(flat: Mapping[str, Any], trainer: str) -> str:
    """Name the text that a method uses besides class names and templates; "" for none."""
    for key in _defaults(trainer)[0]:
        if key.endswith(".DESCRIPTIONS") and flat.get(key):
            # HiCroPL reads them only for some of its frozen texts
            frozen = flat.get(key.replace("DESCRIPTIONS", "FROZEN_TEXT"), "descriptions")
            return "descriptions" if frozen in ("descriptions", "random") else ""
    return ""


def digest(value: Any) -> str:
    """Return a hash of something that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def of_same_images(runs: Sequence[Found]) -> tuple[list[Found], list[str]]:
    """Return the runs, and a line for each that was not tested on as many images as most others."""
    sizes: dict[tuple[str, ...], Counter[int]] = {}
    for run in runs:
        if run.counts is not None:
            sizes.setdefault(_images_of(run), Counter())[run.counts[1]] += 1
    kept, odd = [], []
    for run in runs:
        usual = sizes.get(_images_of(run), Counter()).most_common(1)
        if run.counts is None or run.counts[1] == usual[0][0]:
            kept.append(run)
        else:
            odd.append(
                f"{run.at / RESULTS_FILE}: expected {usual[0][0]} test images as in other runs, "
                f"got {run.counts[1]}"
            )
    return kept, odd


def _images_of(run: Found) -> tuple[str, ...]:
    """Name the images that a run was tested on: dataset, classes and split."""
    return run.target, run.step.test, run.about.get("split", "")


def find(outputs: Sequence[str]) -> tuple[list[Found], list[str], int]:
    """Read the finished runs below output folders.

    Returns:
        The runs; a line for each results.json that was skipped; the number of unfinished runs.

    Raises:
        UserError: an output is no folder.
    """
    runs: list[Found] = []
    skipped: list[str] = []
    unfinished = 0
    kept: dict[str, Mapping[str, Any]] = {}  # one of equal settings: thousands of runs share them
    for output in outputs:
        if not os.path.isdir(output):
            raise UserError(f"OUTPUT: expected a folder of runs, got '{output}'")
        unread: list[OSError] = []
        for place, folders, files in os.walk(os.path.abspath(output), onerror=unread.append):
            folders.sort()
            if RESULTS_FILE in files:
                try:
                    run = read_found(Path(place))
                except UserError as error:
                    skipped.append(str(error))
                    continue
                same = kept.setdefault(digest(run.settings), run.settings)
                if run.step is not VALIDATE:
                    runs.append(replace(run, settings=same))
            elif "config.yaml" in files:
                unfinished += 1
        skipped += [f"{error.filename}: {error.strerror}" for error in unread]
    runs, odd = of_same_images(runs)
    return runs, [*skipped, *odd], unfinished
