"""Files, images, seeds and the description of the machine."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import json
import math
import os
import platform
import random
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from dassl.errors import UserError, escaped, writing
from dassl.json_file import read_json as read_json  # as in the public toolbox, also from here

# Names of the files that ``atomic_write`` renames when they are complete. A killed process leaves
# them.
TEMPORARY_NAME = re.compile(r"\..+\.tmp-[a-z0-9_]{8}", re.DOTALL)
# Of the files that a search for images takes.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Of pictures that strangers send. Others of Pillow's formats start a program (EPS) or unpack any
# amount of data before its size is known (FITS).
SAFE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# What turns the image of an EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
        warnings.warn(f'No file found at "{escaped(path)}"', stacklevel=2)
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


def write_json(obj: Any, path: str) -> None:
    """Write a JSON file, whole or not at all; missing folders are made.

    JSON has no numbers that are infinite or not a number: they become null.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_write(path) as file:
        json.dump(_null_for_not_finite(obj), file, indent=4, ensure_ascii=False)
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


@contextmanager
def keep_random() -> Iterator[None]:
    """Restore the state of Python's generator afterward: a package may draw when it is imported."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


class ImageError(UserError):
    """An image that cannot be read, or that is not to be read."""


def read_image(path: str, upright: bool = False, max_pixels: int | None = None) -> Image.Image:
    """Read an image as RGB with 8 bits per channel.

    Transparency becomes white; the public toolbox shows the colors that it hides. Gray values of 16
    bits are divided by 257. Those of 32 bits and real numbers have no usual range: they are
    stretched, so that the smallest in the image becomes black and the largest white.

    Args:
        path: of the file.
        upright: turn the image as its EXIF data say, unless they are damaged. The public toolbox
            does not.
        max_pixels: an image with more is refused unread; None means Pillow's own limit.

    Raises:
        ImageError: the file is missing, no regular file, truncated, not an image or too large; or
            it has gray values to be stretched that are all the same, or not all finite.
        UserError: the process has too many files open, which no image is to blame for.
    """
    name = f"image '{path}'"
    if os.path.exists(path) and not os.path.isfile(path):  # to open a named pipe would hang
        raise ImageError(f"{name} is not a file")
    return decode_image(path, name, upright, max_pixels)


def decode_image(
    source: str | BinaryIO | Image.Image,
    name: str,
    upright: bool = False,
    max_pixels: int | None = None,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """Do what ``read_image`` does for a path, an open file or an image of PIL.

    Args:
        source: what to read.
        name: of the image, for error messages.
        upright, max_pixels: as for ``read_image``.
        formats: Pillow's names of those that are read; all by default.

    Raises:
        ImageError, UserError: as ``read_image``.
    """
    try:
        if max_pixels and Image.MAX_IMAGE_PIXELS and max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = max_pixels  # or Pillow refuses what is allowed here
        with _opened(source, formats) as file:
            limit = max_pixels or Image.MAX_IMAGE_PIXELS
            if limit and file.width * file.height > limit:
                raise _too_large(name, f"{file.width} x {file.height}", limit)
            image = _turned(file) if upright else file
            if image.mode == "F" or image.mode == "I" and file.format not in ("PNG", "PPM"):
                image = _stretched(image, name)
            elif image.mode.startswith("I"):  # 16 bits, which convert would cut off at 255
                pixels = np.asarray(image).astype(np.float64) / 257
                image = Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return image.convert("RGB")
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist") from error
    except Image.DecompressionBombError as error:  # far above Pillow's limit
        raise _too_large(name, "too many", max_pixels or Image.MAX_IMAGE_PIXELS) from error
    except UnidentifiedImageError as error:  # its text names an object where bytes are read
        known = f"none of {', '.join(formats)}" if formats else "not known"
        raise ImageError(f"{name} is unreadable or truncated: its format is {known}") from error
    # PIL raises SyntaxError for some broken PNGs, ValueError and struct.error for other formats
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise UserError(
                f"cannot read {name}: {error.strerror}; raise the limit (ulimit -n), or set "
                "DATALOADER.NUM_WORKERS lower"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # whose text has an address in memory
            reason = f"its format is none of {', '.join(formats or ['those that are known'])}"
        raise ImageError(f"{name} is unreadable or truncated: {reason}") from error


def _opened(
    source: str | BinaryIO | Image.Image, formats: tuple[str, ...] | None
) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)
    return Image.open(source, formats=formats)


def _too_large(name: str, pixels: str, limit: int | None) -> ImageError:
    return ImageError(f"{name} has {pixels} pixels: more than INPUT.MAX_PIXELS {limit}")


def _turned(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data say; data that cannot be read say nothing."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of several families, and from some formats alone
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _stretched(image: Image.Image, name: str) -> Image.Image:
    pixels = np.asarray(image).astype(np.float64)
    low, high = pixels.min(), pixels.max()
    if not np.isfinite(high - low) or low == high:
        what = "all the same" if low == high else "not all finite"
        raise ImageError(
            f"{name} has gray values without a range, as they are {what}; save it with 8 or 16 bits"
        )
    return Image.fromarray(np.round((pixels - low) * (255 / (high - low))).astype(np.uint8))


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
