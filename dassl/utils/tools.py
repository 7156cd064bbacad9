"""Files, images, seeds and the description of the machine."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from dassl.errors import UserError
from dassl.json_file import read_json as read_json  # as in the public toolbox, also from here


def mkdir_if_missing(dirname: str) -> None:
    """Make the folder and those above it where they are missing; "" is the current folder.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        os.makedirs(dirname or ".", exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder '{dirname}': {error.strerror}") from error


def check_isfile(path: str) -> bool:
    """Return whether ``path`` is a file; warn where it is not."""
    found = os.path.isfile(path)
    if not found:
        warnings.warn(f'No file found at "{path}"', stacklevel=2)
    return found


@contextmanager
def atomic_write(path: str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that takes the name ``path`` when it is complete, never before.

    An error inside the block leaves an older file at ``path`` unchanged.
    """
    folder = os.path.dirname(os.path.abspath(path))
    mkdir_if_missing(folder)
    encoding = None if "b" in mode else "utf-8"
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}") from error
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner can read; give this one the usual permissions
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(obj: Any, path: str) -> None:
    """Write a JSON file, whole or not at all; missing folders are made.

    JSON has no numbers that are infinite or not a number: they become null.

    Raises:
        UserError: it cannot be written, or a text in it is not Unicode.
    """
    with atomic_write(path) as file:
        try:
            json.dump(_null_for_not_finite(obj), file, indent=4, ensure_ascii=False)
        except UnicodeEncodeError as error:
            text = error.object[error.start : error.end]
            raise UserError(f"cannot write '{path}': {text!r} is not Unicode text") from error
        file.write("\n")


def _null_for_not_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _null_for_not_finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_null_for_not_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and all GPUs)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def read_image(path: str, upright: bool = False) -> Image.Image:
    """Read an image as RGB with 8 bits per channel.

    Transparency becomes white; the public toolbox shows the colors that it hides.

    Args:
        path: of the file.
        upright: turn the image as its EXIF data say. The public toolbox does not.

    Raises:
        UserError: the file is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file) if upright else file
            if image.mode.startswith("I"):  # 16 bits, which convert would cut off at 255
                pixels = np.asarray(image).astype(np.float64) / 257
                image = Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"image '{path}' does not exist") from error
    # PIL raises SyntaxError for some broken PNGs, ValueError and struct.error for other formats
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"image '{path}' is unreadable or truncated: {reason}") from error


# (first bytes, last bytes) of complete files
_IMAGE_MARKS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"))


def check_image_file(path: str) -> None:
    """Check that an image exists and is complete, mostly without decoding it.

    A JPEG or PNG that begins and ends as it should is accepted; any other file is decoded.

    Raises:
        UserError: as ``read_image``.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            file.seek(-8, os.SEEK_END)
            tail = file.read(8)
    except OSError:
        head = tail = b""
    if not any(head.startswith(first) and tail.endswith(last) for first, last in _IMAGE_MARKS):
        read_image(path)


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """Return the names in a folder without those that begin with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def tolist_if_not(value: Any) -> list[Any]:
    """Return ``value`` if it is a list, else a list of it alone."""
    return value if isinstance(value, list) else [value]


def package_versions() -> dict[str, str | None]:
    """Return versions of Python and the packages that results depend on; None: not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "open_clip_torch", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def collect_env_info() -> str:
    """Return lines about the machine and the versions of what runs on it."""
    lines = [f"{name}: {version}" for name, version in package_versions().items()]
    lines.append(f"system: {platform.platform()}")
    lines.append(f"CPU threads of torch: {torch.get_num_threads()}")
    if torch.cuda.is_available():
        lines.append(f"CUDA: {torch.version.cuda}")
        lines += [
            f"GPU {number}: {torch.cuda.get_device_name(number)}"
            for number in range(torch.cuda.device_count())
        ]
    else:
        lines.append("GPU: none")
    return "\n".join(lines)
