"""Checkpoints of one model: find, save, load, and check that their tensors fit.

A file holds state_dict, epoch (number of epochs done), val_result (percent, or None) and, where a
dataset was trained on, class_names in the order of their labels.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from reprlib import repr  # short, however long or deep a damaged value is
from typing import Any

import torch
from torch import Tensor

from dassl.distributed import by_first
from dassl.engine.run_folder import BEST_CHECKPOINT, epoch_checkpoint
from dassl.errors import UserError, check_regular, shown
from dassl.utils.logger import log
from dassl.utils.tools import atomic_write
from dassl.utils.torchtools import flaw_of, load_checkpoint, save_checkpoint, state_of

NEWEST = "checkpoint"  # the file that names the newest checkpoint


def find_checkpoint(folder: str, epoch: int | None = None) -> str:
    """Return the path of the checkpoint of an epoch in a model's folder.

    Without an epoch it is model-best.pth.tar or, as runs without validation have none, the one
    that the file ``checkpoint`` names or, as some folders lack that, the highest
    model.pth.tar-<epoch>.

    Raises:
        UserError: there is no such file.
    """
    if not os.path.isdir(folder):
        raise UserError(f"no checkpoint: the folder '{folder}' does not exist")
    found = (re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in os.listdir(folder))
    epochs = sorted(int(match.group(1)) for match in found if match)
    saved = "epochs saved there: " + (", ".join(map(str, epochs)) or "none")
    if epoch is not None:
        path = os.path.join(folder, epoch_checkpoint(epoch))
        if not os.path.isfile(path):
            raise UserError(f"checkpoint '{path}' does not exist; {saved}")
        return path
    best = os.path.join(folder, BEST_CHECKPOINT)
    if os.path.isfile(best):
        return best
    newest = _newest(folder)
    if newest is None and not epochs:
        raise UserError(f"no checkpoint in '{folder}'")
    log.info(f"There is no {BEST_CHECKPOINT} in {folder}: loading the newest checkpoint ({saved})")
    return newest or os.path.join(folder, epoch_checkpoint(epochs[-1]))


def _newest(folder: str) -> str | None:
    """Return the path of the checkpoint that the file ``checkpoint`` names, None without it."""
    place = os.path.join(folder, NEWEST)
    check_regular(place)
    try:
        with open(place, encoding="utf-8") as file:
            name = file.readline().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"cannot read '{place}': {reason}") from error
    path = os.path.join(folder, name)
    if os.path.basename(name) != name or not os.path.isfile(path):
        got = shown(name)
        raise UserError(f"'{place}': expected the name of a checkpoint beside it, got {got}")
    return path


@by_first
def save_model(
    state_dict: Mapping[str, Tensor],
    folder: str,
    epoch: int,
    val_result: float | None = None,
    is_best: bool = False,
    file_name: str = "",
    class_names: Sequence[str] = (),
) -> None:
    """Save tensors after so many epochs, as model.pth.tar-<epoch> or as ``file_name``.

    Raises:
        UserError: a tensor is not finite; nothing is written.
    """
    check_finite(state_dict, epoch)
    state = {
        "state_dict": state_dict,
        "epoch": epoch,
        "val_result": None if val_result is None else float(val_result),
    }
    if class_names:
        state["class_names"] = list(class_names)
    save_checkpoint(state, folder, is_best=is_best, model_name=file_name)


def check_finite(tensors: Mapping[str, Tensor], epoch: int) -> None:
    """Check that what was learned after so many epochs is worth keeping.

    Raises:
        UserError: a tensor is not finite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"tensor '{name}' is infinite or not a number after epoch {epoch}; it was not "
                "saved, earlier checkpoints are unchanged"
            )


def load_model(path: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: state_dict, epoch, val_result and class_names ([]: unknown).

    Raises:
        UserError: the file is missing or corrupt, holds something else, or a value of another type.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        raise UserError(f"checkpoint '{path}' holds no state_dict")
    epoch = checkpoint.get("epoch", 0)
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        raise UserError(
            f"checkpoint '{path}': expected a number of epochs, got epoch {repr(epoch)}"
        )
    result = checkpoint.get("val_result")
    if not (result is None or (isinstance(result, Real) and math.isfinite(result))):
        raise UserError(f"checkpoint '{path}': expected a number, got val_result {repr(result)}")
    return {
        "state_dict": state_of(checkpoint, path),
        "epoch": epoch,
        "val_result": None if result is None else float(result),
        "class_names": class_names_of(checkpoint, path),
    }


def class_names_of(checkpoint: Mapping[str, Any], path: str) -> list[str]:
    """Return the names of the classes that a checkpoint was trained on; [] where it has none.

    Raises:
        UserError: it has something else in their place.
    """
    names = checkpoint.get("class_names", [])
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(
            f"checkpoint '{path}': expected a list of text, got class_names {repr(names)}"
        )
    return names


def describe(checkpoint: Mapping[str, Any]) -> str:
    """Describe what ``load_model`` gave: "epoch=5, val_result=71.2"."""
    result = checkpoint["val_result"]
    return f"epoch={checkpoint['epoch']}" + ("" if result is None else f", val_result={result:.1f}")


def check_classes(trained: Sequence[str], present: Sequence[str], place: str) -> None:
    """Check that what is bound to its classes meets those that it was trained on, in their order.

    Args:
        trained: names by label; empty where a checkpoint does not say.
        present: names by label.
        place: file of ``trained``, for the error message.

    Raises:
        UserError: a class differs.
    """
    if not trained or list(trained) == list(present):
        return
    if len(trained) != len(present):
        # one that is not among the others; the same name several times may hide it
        lost = [f" without '{name}'" for name in trained if name not in present]
        added = [f" with '{name}'" for name in present if name not in trained]
        which = "".join([*lost[:1], *added[:1]])
        difference = f"expected {len(trained)} classes, got {len(present)}{which}"
    else:
        pairs = enumerate(zip(trained, present, strict=True))
        label, (old, new) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
        difference = f"expected '{old}' as class {label}, got '{new}'"
    raise UserError(f"'{place}' was trained on other classes: {difference}")


def check_fit(state_dict: Mapping[str, Any], expected: Mapping[str, Tensor], path: str) -> None:
    """Check that a checkpoint has exactly the expected tensors, all of them finite.

    Args:
        state_dict: of the checkpoint.
        expected: the model's own tensors.
        path: of the checkpoint, for error messages.

    Raises:
        UserError: a tensor is missing, unexpected, or no such tensor.
    """
    for key, tensor in expected.items():
        if key not in state_dict:
            raise UserError(f"checkpoint '{path}' does not fit: it has no tensor '{key}'")
        if flaw := flaw_of(state_dict[key], tensor):
            raise UserError(f"checkpoint '{path}' does not fit: tensor '{key}' {flaw}")
    for key in state_dict:
        if key not in expected:
            raise UserError(f"checkpoint '{path}' does not fit: this model has no tensor '{key}'")


@by_first
def copy_best(old_folder: str, new_folder: str, models: Iterable[str]) -> None:
    """Copy the best checkpoints so far from one run's folder to another's.

    They may remain the best ones of the run that is resumed there.
    """
    for name in models:
        old, new = (
            os.path.join(folder, name, BEST_CHECKPOINT) for folder in (old_folder, new_folder)
        )
        if os.path.isfile(old) and os.path.abspath(old) != os.path.abspath(new):
            with open(old, "rb") as source, atomic_write(new, "wb") as target:
                shutil.copyfileobj(source, target)
