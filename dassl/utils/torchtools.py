"""Checkpoints and weights."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dassl.compat import __getattr__  # noqa: F401
from dassl.errors import UserError, shown
from dassl.utils.checksums import check_size, check_sums, is_torchscript
from dassl.utils.data_parallel import PREFIX, strip_module
from dassl.utils.logger import log
from dassl.utils.tools import atomic_write, mkdir_if_missing


def save_torch_file(obj: Any, path: str) -> None:
    """Save as ``torch.save`` does, but leave either a whole file or the old one."""
    with atomic_write(path, "wb") as file:
        torch.save(obj, file)


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Save a checkpoint as ``save_dir``/model.pth.tar-<epoch>.

    Args:
        state: holds "state_dict" and "epoch" (number of epochs done), and whatever else.
        save_dir: a folder; made where it is missing. Its file ``checkpoint`` names the newest.
        is_best: also copy the file to model-best.pth.tar.
        remove_module_from_keys: strip the "module." that DataParallel puts before names.
        model_name: a file name instead of model.pth.tar-<epoch>.
    """
    mkdir_if_missing(save_dir)
    if remove_module_from_keys:
        state = {**state, "state_dict": strip_module(state["state_dict"])}
    name = model_name or f"model.pth.tar-{state['epoch']}"
    path = os.path.join(save_dir, name)
    save_torch_file(state, path)
    log.info(f"Checkpoint saved to {path}")
    with atomic_write(os.path.join(save_dir, "checkpoint")) as file:
        file.write(name + "\n")
    if is_best:
        best = os.path.join(save_dir, "model-best.pth.tar")
        with open(path, "rb") as source, atomic_write(best, "wb") as target:
            shutil.copyfileobj(source, target)
        log.info(f'Best checkpoint saved to "{best}"')


class NotRead:
    """A stand-in for an optimizer or a schedule that a checkpoint holds as a whole object.

    The public toolbox pickles the schedule after a warm-up that way, and its optimizer with it.
    Nothing of them is kept and none of their code runs.
    """

    def __new__(cls, *args: Any) -> NotRead:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _plain_dict(*args: Any) -> dict[Any, Any]:
    return {}


def checkpoint_types() -> list[Any]:
    """Return what a pickle may name besides tensors: (stand-in, name).

    These are NumPy numbers, as which published checkpoints hold ``val_result``, and the
    optimizers and schedules that the public toolbox builds.
    """
    core = getattr(np, "_core", None) or np.core
    scalar = core.multiarray.scalar
    optimizers = ("sgd.SGD", "adam.Adam", "adamw.AdamW", "rmsprop.RMSprop")
    schedules = ("CosineAnnealingLR", "StepLR", "MultiStepLR")
    skipped = (
        *(f"torch.optim.{name}" for name in optimizers),
        *(f"torch.optim.lr_scheduler.{name}" for name in schedules),
        *(f"dassl.optim.radam.{name}" for name in ("RAdam", "PlainRAdam", "AdamW")),
    )
    return [
        np.dtype,
        # NumPy 2 moved the function; files name either place
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32")),
        *((NotRead, name) for name in skipped),
        (_plain_dict, "collections.defaultdict"),  # an optimizer's state, made of
        (_plain_dict, "builtins.dict"),
    ]


def refused_type(error: Exception) -> str:
    """Name the class or function for which torch refused a file; "" for other errors."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    name = found.group(1) if found else ""
    return f"builtins.{name}" if name and "." not in name else name  # torch leaves that out


def plain_reason(error: Exception) -> str:
    """Return the first sentence of an error, without torch's advice to read files unsafely."""
    text = str(error).split("WeightsUnpickler error: ")[-1].strip()
    text = text.split("\n")[0].split(". ")[0]
    # an opcode, an index or a key: how far the bytes of something else made sense
    # or one of torch's ways to read other formats unsafely
    other = "^Unsupported operand|index out of range|weights_only|safe_globals|allowed global"
    if " " not in text or re.search(other, text):
        return "it is not what torch.save writes with its usual pickle protocol, 2"
    return text[:200]


def load_data(path: str, types: list[Any], device: str = "cpu") -> Any:
    """Read a file as ``torch.load`` does; nothing but tensors, plain values and ``types`` is made.

    On the device "meta" tensors have shapes and types, and no values are read or checked.

    Raises:
        UserError: the file is damaged, or a TorchScript program.
        Exception: of many kinds; the file holds something else.
    """
    (check_size if device == "meta" else check_sums)(path)
    if is_torchscript(path):
        raise UserError(
            f"checkpoint '{path}' is a TorchScript program, which is not run; expected what "
            "torch.save writes of a state_dict"
        )
    with torch.serialization.safe_globals(types), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of, it refuses, or it is read here
        return torch.load(path, map_location=device, weights_only=True)


def load_checkpoint(path: str, device: str = "cpu") -> Any:
    """Read a checkpoint onto the CPU; nothing but tensors and plain values is unpickled.

    On the device "meta" tensors have shapes and types, and no values are read or checked.

    Raises:
        UserError: the file is missing, corrupt, or holds something else.
    """
    if not path:
        raise UserError("no checkpoint file was named")
    if not os.path.isfile(path):
        raise UserError(f"checkpoint '{path}' does not exist")
    try:
        return load_data(path, checkpoint_types(), device)
    except UserError:
        raise
    except Exception as error:  # a damaged file raises errors of many kinds
        if name := refused_type(error):
            raise UserError(
                f"checkpoint '{path}' holds a pickled object ({name}), and unpickling objects can "
                "run any code, so it is refused; to keep its tensors without running anything: "
                f"python -m dassl.utils.convert_checkpoint {shlex.quote(path)} NEW_FILE"
            ) from error
        reason = plain_reason(error)
        raise UserError(f"checkpoint '{path}' is corrupt or not a checkpoint: {reason}") from error


def state_in(content: Any) -> Mapping[Any, Any] | None:
    """Return the state_dict in what a file holds, or that itself; None where it has another form.

    It is below "state_dict" or, as some packages name it, "model".
    """
    if isinstance(content, Mapping):
        if "state_dict" in content:
            content = content["state_dict"]
        elif isinstance(content.get("model"), Mapping):
            content = content["model"]
    return content if isinstance(content, Mapping) else None


def state_of(checkpoint: Any, path: str) -> dict[str, Any]:
    """Return the state_dict of a checkpoint, or a state_dict itself, without DataParallel's names.

    Raises:
        UserError: there is none.
    """
    state = state_in(checkpoint)
    if state is None:
        raise UserError(f"checkpoint '{path}' holds no state_dict")
    return strip_module({str(key): value for key, value in state.items()})


def flaw_of(value: Any, own: Tensor) -> str:
    """Say why a checkpoint's value cannot take the place of a model's own tensor; "" if it can.

    It must be dense, in memory, finite, of the same shape and kind: a number of any precision for
    a number, and otherwise of the same type.
    """
    if not isinstance(value, Tensor):
        return f"is no tensor but a {type(value).__name__}"
    if tuple(value.shape) != tuple(own.shape):
        return f"has shape {shown(tuple(value.shape))}, this model's has {tuple(own.shape)}"
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        return "is not dense, or has no values"
    is_number = own.is_floating_point() and value.is_floating_point()
    if not is_number and value.dtype != own.dtype:
        return f"has type {value.dtype}, this model's has {own.dtype}".replace("torch.", "")
    if is_number and not torch.isfinite(value.float()).all():
        return "is infinite or not a number"
    return ""


def load_pretrained_weights(model: nn.Module, weight_path: str) -> Any:
    """Load those weights of a file that fit the model by name and shape; log which do not.

    Returns:
        What the file holds.

    Raises:
        UserError: the file cannot be read, nothing in it fits, or what fits is no finite tensor.
    """
    checkpoint = load_checkpoint(weight_path)
    own = model.state_dict()
    fitting, discarded = {}, []
    for key, value in state_of(checkpoint, weight_path).items():
        key = key if key in own else key.removeprefix(PREFIX)
        if key in own and own[key].shape == getattr(value, "shape", None):
            if flaw := flaw_of(value, own[key]):
                raise UserError(f"weights '{weight_path}': tensor '{key}' {flaw}")
            fitting[key] = value
        else:
            discarded.append(key)
    if not fitting:
        raise UserError(f"weights '{weight_path}': nothing in it fits the model by name and shape")
    model.load_state_dict(fitting, strict=False)
    log.info(f'Successfully loaded pretrained weights from "{weight_path}"')
    if discarded:
        log.info(f"Layers discarded, as their names or sizes do not match: {discarded}")
    return checkpoint
