"""The file predictions.npz: what a run predicted for each image of its final evaluation.

Format 1 holds these arrays, none of them pickled; n images, K classes:

- ``format``: 1
- ``paths`` (n,): of the images, relative to DATASET.ROOT with slashes; one outside of it is the
  path as it is
- ``labels`` (n,): 0..K-1
- ``class_names`` (K,)
- up to 200 classes, ``logits`` (n, K) in half precision
- above that, the 20 classes with the highest logits: ``top_indices`` (n, 20), ``top_logits``
  (n, 20) in half precision, the highest first; ``log_sum_exp`` (n,) of all logits in single
  precision; ``label_logits`` (n,), of the image's own class, in half precision

Rounding keeps which classes come first to fifth: where half precision would make one of these
equal to a lower one, the lower is moved below it, by the smallest step there is. So predictions and
top-5 are exactly those of the run. Values beyond +-65504 become +-65504.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dassl.errors import UserError

PREDICTIONS_FILE = "predictions.npz"
FORMAT = 1
MAX_CLASSES = 200  # of which all logits are kept
TOP = 20
ORDERED = 5  # first places that rounding keeps
_MAX_HALF = 0x7BFF  # the bits of 65504


class Predictions(NamedTuple):
    """What ``read_predictions`` gives; n images, K classes, t = min(20, K).

    The probability of class ``top_indices[i, j]`` is exp(top_logits[i, j] - log_sum_exp[i]), the
    NLL of image i is log_sum_exp[i] - label_logits[i], and the prediction is top_indices[i, 0].

    Attributes:
        paths: of the images (n,), text.
        labels: (n,), int64.
        class_names: (K,), text.
        top_indices: the classes with the highest logits, the highest first (n, t), int64. Up to
            200 classes, those after the fifth are in the order of the rounded logits.
        top_logits: theirs (n, t), float32.
        log_sum_exp: of all logits (n,), float32.
        label_logits: logits of the images' own classes (n,), float32.
        logits: (n, K), float32; None where there are more than 200 classes.
    """

    paths: np.ndarray
    labels: np.ndarray
    class_names: np.ndarray
    top_indices: np.ndarray
    top_logits: np.ndarray
    log_sum_exp: np.ndarray
    label_logits: np.ndarray
    logits: np.ndarray | None


def pack_logits(logits: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Make the arrays of the file that depend on the logits of a batch.

    Args:
        logits: (n, K), finite, on any device.
        labels: (n,), on the same device.
    """
    if logits.dtype != torch.float64:
        logits = logits.float()
    values, indices = logits.sort(dim=1, descending=True, stable=True)
    halves = _ordered_half(values)
    if logits.shape[1] <= MAX_CLASSES:
        packed = {"logits": torch.empty_like(halves).scatter_(1, indices, halves)}
    else:
        packed = {
            "top_indices": indices[:, :TOP].to(torch.int32),
            "top_logits": halves[:, :TOP],
            "log_sum_exp": logits.double().logsumexp(dim=1).float(),
            "label_logits": _half(logits.gather(1, labels.view(-1, 1)).squeeze(1)),
        }
    return {name: tensor.cpu().numpy() for name, tensor in packed.items()}


def _half(values: Tensor) -> Tensor:
    return values.clamp(-65504.0, 65504.0).half()


def _ordered_half(values: Tensor) -> Tensor:
    """Round rows (n, K) in descending order, keeping each decrease of the first places."""
    bits = _half(values).view(torch.int16).int()
    # whole numbers in the order of the halves: their distance counts the halves in between
    levels = torch.where(bits < 0, -(bits & 0x7FFF), bits)
    last = values[:, min(ORDERED, values.shape[1]) - 1].unsqueeze(1)
    falls = torch.zeros_like(levels)
    falls[:, 1:] = ((values[:, 1:] < values[:, :-1]) & (values[:, :-1] >= last)).cumsum(dim=1)
    levels = (levels + falls).cummin(dim=1).values - falls
    levels = levels.clamp(min=-_MAX_HALF)
    return torch.where(levels < 0, -0x8000 - levels, levels).to(torch.int16).view(torch.float16)


def write_predictions(
    file: IO[bytes],
    paths: Sequence[str],
    root: str,
    labels: np.ndarray,
    class_names: Sequence[str],
    packed: Mapping[str, np.ndarray],
) -> None:
    """Write the file.

    Args:
        file: to write to.
        paths: of the images.
        root: folder of the datasets.
        labels: (n,).
        class_names: by label.
        packed: the arrays of ``pack_logits`` for all images.
    """
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "paths": np.array(relative_paths(paths, root)),
        "labels": labels.astype(np.int32),
        "class_names": np.array(class_names),
        **packed,
    }
    np.savez_compressed(file, **arrays)


def relative_paths(paths: Sequence[str], root: str) -> list[str]:
    """Return the paths relative to a folder, with slashes; those not below it as they are."""
    folder = Path(os.path.abspath(os.path.expanduser(root)))
    places = [Path(os.path.abspath(path)) for path in paths]
    return [
        place.relative_to(folder).as_posix() if place.is_relative_to(folder) else path
        for path, place in zip(paths, places, strict=True)
    ]


def read_predictions(path: str) -> Predictions:
    """Read the predictions.npz of a run.

    Raises:
        UserError: the file is missing, damaged, or of a newer format.
    """
    if not Path(path).is_file():
        raise UserError(f"predictions '{path}' do not exist; evaluate the run to write them")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        version = int(arrays["format"])
        if version <= FORMAT:
            return _checked(arrays)
    except Exception as error:  # a damaged file raises errors of many kinds
        raise UserError(
            f"predictions '{path}' are damaged: {reason_of(error)}; evaluate the run again"
        ) from error
    raise UserError(f"predictions '{path}' have format {version}; expected {FORMAT} or less")


def reason_of(error: Exception) -> str:
    """Say why NumPy cannot read a file, without its advice to let the file run any code."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "max_header_size" in reason:
        return "the description of an array is too long"
    if "allow_pickle" in reason:
        return "it holds pickled objects, which are refused"
    return reason[:200]


def _checked(arrays: Mapping[str, np.ndarray]) -> Predictions:
    """Return the contents of a file of format 1; raise any error that says what is wrong."""

    def array(name: str, kinds: str, *shape: int) -> Any:
        found = arrays[name]
        if found.dtype.kind not in kinds or found.shape != shape:
            raise ValueError(f"{name} has type {found.dtype} and shape {found.shape}")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise ValueError(f"{name} holds numbers that are not finite")
        return found

    def classes(name: str, *shape: int) -> np.ndarray:
        found = array(name, "iu", *shape).astype(np.int64)
        if found.min() < 0 or found.max() >= len(class_names):
            raise ValueError(f"{name} are not all in 0..{len(class_names) - 1}")
        return found

    n, n_classes = len(arrays["paths"]), len(arrays["class_names"])
    paths = array("paths", "U", n)
    class_names = array("class_names", "U", n_classes)
    labels = classes("labels", n)
    if n_classes > MAX_CLASSES:
        return Predictions(
            paths,
            labels,
            class_names,
            classes("top_indices", n, TOP),
            array("top_logits", "f", n, TOP).astype(np.float32),
            array("log_sum_exp", "f", n).astype(np.float32),
            array("label_logits", "f", n).astype(np.float32),
            None,
        )
    logits = array("logits", "f", n, n_classes).astype(np.float32)
    top = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    top_logits = np.take_along_axis(logits, top, axis=1)
    log_sum_exp = torch.from_numpy(logits).double().logsumexp(dim=1).float().numpy()
    label_logits = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return Predictions(
        paths, labels, class_names, top, top_logits, log_sum_exp, label_logits, logits
    )
