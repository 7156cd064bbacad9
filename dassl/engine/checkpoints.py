"""Checkpoints of one model: find, save, load, and check that their tensors fit.

A file holds state_dict, epoch (number of epochs done) and val_result (percent, or None).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from dassl.engine.run_folder import BEST_CHECKPOINT, epoch_checkpoint
from dassl.errors import UserError
from dassl.utils.logger import log
from dassl.utils.tools import atomic_write
from dassl.utils.torchtools import load_checkpoint, save_checkpoint


def find_checkpoint(folder: str, epoch: int | None = None) -> str:
    """Return the path of the checkpoint of an epoch in a model's folder.

    Without an epoch it is model-best.pth.tar or, as runs without validation have none, the
    newest model.pth.tar-<epoch>.

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
    if not epochs:
        raise UserError(f"no checkpoint in '{folder}'")
    log.info(f"There is no {BEST_CHECKPOINT} in {folder}: loading the newest checkpoint ({saved})")
    return os.path.join(folder, epoch_checkpoint(epochs[-1]))


def save_model(
    state_dict: Mapping[str, Tensor],
    folder: str,
    epoch: int,
    val_result: float | None = None,
    is_best: bool = False,
    file_name: str = "",
) -> None:
    """Save tensors after so many epochs, as model.pth.tar-<epoch> or as ``file_name``."""
    state = {
        "state_dict": state_dict,
        "epoch": epoch,
        "val_result": None if val_result is None else float(val_result),
    }
    save_checkpoint(state, folder, is_best=is_best, model_name=file_name)


def load_model(path: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; it has a state_dict.

    Raises:
        UserError: the file is missing, corrupt, or holds something else.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"checkpoint '{path}' holds no state_dict")
    state = checkpoint["state_dict"]
    if isinstance(state, Mapping):  # DataParallel puts "module." before the names
        state = {str(key).removeprefix("module."): value for key, value in state.items()}
    return {**checkpoint, "state_dict": state}


def describe(checkpoint: Mapping[str, Any]) -> str:
    """Describe a checkpoint: "epoch=5, val_result=71.2"."""
    epoch, val_result = int(checkpoint.get("epoch", 0)), checkpoint.get("val_result")
    return f"epoch={epoch}" + (
        "" if val_result is None else f", val_result={float(val_result):.1f}"
    )


def check_fit(state_dict: Any, expected: Mapping[str, Tensor], path: str) -> None:
    """Check that a checkpoint has exactly the expected tensors, by name and shape.

    Args:
        state_dict: of the checkpoint.
        expected: the model's own tensors.
        path: of the checkpoint, for error messages.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    if not isinstance(state_dict, Mapping):
        raise UserError(f"checkpoint '{path}' holds no state_dict")
    for key, tensor in expected.items():
        if key not in state_dict:
            raise UserError(f"checkpoint '{path}' does not fit: it has no tensor '{key}'")
        shape = tuple(state_dict[key].shape)
        if shape != tuple(tensor.shape):
            raise UserError(
                f"checkpoint '{path}' does not fit: tensor '{key}' has shape {shape}, "
                f"this model's has {tuple(tensor.shape)}"
            )
    for key in state_dict:
        if key not in expected:
            raise UserError(f"checkpoint '{path}' does not fit: this model has no tensor '{key}'")


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
