"""Pictures in all the forms in which they come, one at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dassl.errors import UserError
from dassl.utils.tools import IMAGE_SUFFIXES, SAFE_FORMATS, ImageError, decode_image, read_image

KINDS = "a path, bytes of a file, a PIL image, an array or a tensor"


def pictures_in(images: Any) -> Iterator[tuple[str, Any]]:
    """Name single pictures, in the order in which they come; nothing is decoded.

    Args:
        images: the path of a file or a folder, bytes of a file, a PIL image, an array (H, W),
            (H, W, C) or (N, H, W, C), a tensor (C, H, W) or (N, C, H, W), or an iterable of these.

    Yields:
        The path of a picture, or "#0", "#1", ... by its place among all, and the picture.

    Raises:
        UserError: it is nothing of these, or a folder cannot be read.
    """
    is_one = isinstance(images, (str, os.PathLike, bytes, Image.Image, np.ndarray, Tensor))
    if not (is_one or isinstance(images, Iterable)):
        raise UserError(f"images: expected {KINDS}, or several, got {type(images).__name__}")
    place = 0
    for entry in [images] if is_one else images:
        for picture in _singles(entry):
            yield picture if isinstance(picture, str) else f"#{place}", picture
            place += 1


def _singles(entry: Any) -> Iterator[Any]:
    if isinstance(entry, (str, os.PathLike)):
        path = os.fsdecode(entry)
        if os.path.isdir(path):
            yield from _files(path)
        else:
            yield path
    elif isinstance(entry, (np.ndarray, Tensor)) and entry.ndim == 4:
        yield from entry
    else:
        yield entry


def _files(folder: str) -> Iterator[str]:
    """Yield the image files in a folder and those below it, in the order of their names."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder '{error.filename}': {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.join(place, name)


def decoded(picture: Any, name: str, cfg: Any) -> Image.Image:
    """Decode a single picture into RGB, as the images of a run are.

    Args:
        picture: as ``pictures_in`` yields them. Arrays and tensors hold whole numbers of 8 bits
            or fractions from 0 to 1, in one channel, or in three or four, of RGB or RGBA.
        name: of the picture, for error messages.
        cfg: the config of the run.

    Raises:
        ImageError: it cannot be read, or would be too large.
    """
    limits = (cfg.INPUT.UPRIGHT, cfg.INPUT.MAX_PIXELS)
    if isinstance(picture, str):
        image = read_image(picture, *limits)
    else:
        what = f"image '{name}'"
        image = decode_image(_source(picture, what), what, *limits, formats=SAFE_FORMATS)
    short, long = sorted(image.size)
    if long * max(cfg.INPUT.SIZE) ** 2 > short * cfg.INPUT.MAX_PIXELS:  # once its side is resized
        raise ImageError(f"image '{name}' is too narrow: {image.width} x {image.height} pixels")
    return image


def _source(picture: Any, name: str) -> Any:
    """Return what PIL can read of a picture that is not a path."""
    if isinstance(picture, bytes):
        return io.BytesIO(picture)
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, Tensor):
        tensor = picture.detach().cpu()
        tensor = tensor.movedim(0, -1) if tensor.dim() == 3 else tensor
        picture = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if not isinstance(picture, np.ndarray):
        raise ImageError(f"{name}: expected {KINDS}, got {type(picture).__name__}")
    pixels = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
    if not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[-1] in (3, 4)) or not pixels.size:
        raise ImageError(f"{name}: expected one, three or four channels, got {picture.shape}")
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # not a number is neither
            raise ImageError(f"{name}: expected fractions from 0 to 1, got others")
        pixels = np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError(f"{name}: expected 8 bits or fractions, got {pixels.dtype}")
    return Image.fromarray(np.ascontiguousarray(pixels))
