"""Files, images, seeds and the description of the machine."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import random
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from dassl.errors import UserError, writing

# Names of the files that ``atomic_write`` renames when they are complete. A killed process leaves
# them.
TEMPORARY_NAME = re.compile(r"\..+\.tmp-[a-z0-9_]{8}", re.DOTALL)


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


class _Target(io.FileIO):
    """A file that keeps the error of its first failed write, and then takes everything.

    What ``torch.save`` and ``zipfile`` raise after a failed write does not tell its reason.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


@contextmanager
def atomic_write(path: str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that takes the name ``path`` when it is complete, never before.

    An error inside the block leaves an older file at ``path`` unchanged. After the block the file
    is on the disk, even if the power fails.

    Args:
        path: of the file; missing folders are made.
        mode: "w" for text in UTF-8, "wb" for bytes.

    Raises:
        UserError: the file cannot be written; what the block itself raises is raised as it is.
    """
    folder, name = os.path.split(os.path.abspath(path))
    mkdir_if_missing(folder)
    place = f"'{path}'"
    with writing(place):
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.tmp-")
    try:
        target = _Target(handle, "wb")
        file: IO[Any] = io.BufferedWriter(target)
        if "b" not in mode:
            # half a character, as in a file name that is not UTF-8, is written as JSON has it
            file = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace")
        with file:
            yield file
            with writing(place):
                file.flush()
                if target.error is not None:
                    raise target.error
                os.fsync(target.fileno())
        # mkstemp makes files that only the owner can read; give this one the usual permissions
        umask = os.umask(0)
        os.umask(umask)
        with writing(place):
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Have the names in a folder survive a power failure, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(path: str) -> Any:
    """Return the contents of a JSON file; a byte-order mark, as Windows writes it, is skipped.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON: {error}") from error


def write_json(obj: Any, path: str) -> None:
    """Write a JSON file, whole or not at all; missing folders are made."""
    with atomic_write(path) as file:
        json.dump(obj, file, indent=4, ensure_ascii=False)
        file.write("\n")


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
