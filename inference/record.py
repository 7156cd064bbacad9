"""The files of a classifier on its own: config.json, model.safetensors and a model card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dassl.engine.classes_file import Classes, classes_in, content_of
from dassl.engine.run_folder import RESULTS_FILE
from dassl.errors import UserError, check_regular, shown
from dassl.utils.tools import atomic_write, read_json, write_json
from inference.build import load_learned, part_of
from inference.calibration import Calibration, calibration_in
from trainers.base import Method, Towers

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# Figures of a run's results.json that a classifier keeps.
FIGURES = ("accuracy", "macro_f1", "nll", "ece", "total", "correct", "split", "seed", "epoch")


@dataclass(frozen=True)
class Record:
    """What a classifier knows besides its tensors; config.json holds it.

    Attributes:
        config: what ``part_of`` takes of the run's config.
        classes: of the run.
        labels: class names that are told apart.
        calibration: of the run, for the class names of its training.
        results: figures of the run's final evaluation, as in results.json.
    """

    config: dict[str, Any]
    classes: Classes
    labels: list[str]
    calibration: Calibration = Calibration()
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax."""
        return self.calibration.temperature

    @property
    def has_own_classes(self) -> bool:
        """Whether the class names are those of the training, in any order."""
        return sorted(self.labels) == sorted(self.classes.class_names)

    def threshold(self, coverage: float | None) -> float | None:
        """Return the probability from which on a class is in a set of a coverage; None for None.

        Raises:
            UserError: the run was not calibrated for it, or for other class names.
        """
        if coverage is None:
            return None
        if not self.has_own_classes:
            raise UserError(
                "coverage: expected the classes of the training, as sets of others are not "
                "calibrated, got others"
            )
        thresholds = self.calibration.thresholds
        if not isinstance(coverage, (int, float)) or coverage not in thresholds:
            known = ", ".join(f"{each:g}" for each in sorted(thresholds)) or "none"
            raise UserError(
                f"coverage: expected one that the run was calibrated for ({known}), got "
                f"{shown(coverage)}; python -m inference.calibrate does so"
            )
        return thresholds[coverage]


def results_of(folder: str) -> dict[str, Any]:
    """Return the figures of a run's final evaluation that a classifier keeps."""
    content = read_json(os.path.join(folder, RESULTS_FILE))
    return {name: content[name] for name in FIGURES if name in content}


def write_record(record: Record, path: str) -> None:
    """Write config.json."""
    content = {
        "format": FORMAT,
        "config": record.config,
        "classes": content_of(record.classes),
        "labels": record.labels,
        "calibration": asdict(record.calibration),
        "results": record.results,
    }
    write_json(content, path)


def read_record(path: str) -> Record:
    """Read config.json.

    Raises:
        UserError: it is missing, damaged or of a newer format.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"'{path}': expected an object, got {shown(content)}")
    version = content.get("format")
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise UserError(f"'{path}': expected format {FORMAT} or less, got {shown(version)}")
    config, labels, results = (content.get(name) for name in ("config", "labels", "results"))
    if not isinstance(config, dict) or not isinstance(results, dict):
        raise UserError(f"'{path}': expected sections config and results, got none")
    return Record(
        part_of(config, path),
        classes_in(content.get("classes"), path),
        checked_names(labels, f"'{path}': labels"),
        calibration_in(content.get("calibration"), path),
        results,
    )


def checked_names(names: Any, place: str) -> list[str]:
    """Return class names as a list.

    Raises:
        UserError: there are none, one is not text or blank, or two are the same.
    """
    if isinstance(names, (str, bytes)) or not hasattr(names, "__iter__"):
        raise UserError(f"{place}: expected a list of class names, got {shown(names)}")
    names = list(names)
    if not names:
        raise UserError(f"{place}: expected at least one class name, got none")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{place}: expected text that is not blank, got {shown(name)}")
        if names.count(name) > 1:
            raise UserError(f"{place}: expected different class names, got {shown(name)} twice")
    return names


def tensors_of(method: Method) -> dict[str, Tensor]:
    """Return what a method needs that CLIP has not: layers or what makes them, class features."""
    tensors: dict[str, Tensor] = {}
    if method.layers_suffice:
        for tower, entries in method.fixed_or_new()[0]._asdict().items():
            named = {f"layers.{tower}.{i}": entry for i, entry in enumerate(entries)}
            tensors |= {name: entry for name, entry in named.items() if entry is not None}
    else:
        tensors |= {f"learned.{name}": tensor for name, tensor in method.saved().items()}
    if method.kept is not None:
        tensors |= {f"classes.{name}": tensor for name, tensor in method.kept[1].items()}
    # each in memory of its own, as the format demands
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def write_tensors(tensors: dict[str, Tensor], path: str) -> None:
    """Write model.safetensors, whole or not at all."""
    with atomic_write(path, "wb") as file:
        file.write(save(tensors))


def load_tensors(method: Method, path: str) -> None:
    """Give a method what ``tensors_of`` took of it.

    Raises:
        UserError: the file is damaged, or is one of another method.
    """
    check_regular(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read '{path}': {reason}") from error
    groups = grouped(tensors, path)
    give_learned(method, groups, path)
    with torch.no_grad(), method.autocast():
        if method.conditional or not method.fixable:
            return
        towers, computed = method.fixed_or_new()
    for name, tensor in computed.items():
        kept = groups["classes"].get(name)
        if kept is None or kept.shape != tensor.shape:
            raise UserError(f"'{path}': expected the class features '{name}' of all classes")
    method.kept = (
        towers,
        {name: groups["classes"][name].to(method.device) for name in computed},
    )


def grouped(tensors: Mapping[str, Tensor], path: str) -> dict[str, dict[str, Tensor]]:
    """Return layers, what was learned, and class features of ``tensors_of``, by these three names.

    Raises:
        UserError: another tensor, or one that is not finite.
    """
    groups: dict[str, dict[str, Tensor]] = {"layers": {}, "learned": {}, "classes": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if group not in groups or not torch.isfinite(tensor).all():
            raise UserError(f"'{path}': expected finite tensors of a classifier, got '{name}'")
        groups[group][rest] = tensor
    return groups


def give_learned(method: Method, groups: Mapping[str, dict[str, Tensor]], path: str) -> None:
    """Give a method the layers or what was learned, of ``grouped``.

    Raises:
        UserError: they are those of another method.
    """
    if method.layers_suffice:
        method.finished = _towers(groups["layers"], method.device, path)
    else:
        load_learned(method, groups["learned"], path)


def _towers(tensors: dict[str, Tensor], device: torch.device, path: str) -> Towers:
    """Put the prompts of layers, named as text.0, in their places."""
    found: dict[str, list[Any]] = {"text": [], "vision": []}
    for name, tensor in sorted(tensors.items(), key=lambda item: len(item[0])):
        tower, _, place = name.partition(".")
        if tower not in found or not place.isdigit() or int(place) > 1000:
            raise UserError(f"'{path}': expected prompts of a layer, got '{name}'")
        entries = found[tower]
        entries += [None] * (int(place) + 1 - len(entries))
        entries[int(place)] = tensor.to(device)
    return Towers(found["text"], found["vision"])
