"""Decoded images that are kept in memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image


class ImageCache:
    """Images as uint8 RGB in memory, which this process shares with those forked from it.

    The first of the images whose pixels fit into the budget are kept, each from its first reading
    on; the others are read each time. Memory is taken as images come in, not beforehand.

    Args:
        paths: of the images.
        budget: bytes of memory for pixels.
        read: from a path to a PIL image in RGB, as wide and high as its file says, or turned.
    """

    def __init__(
        self, paths: Sequence[str], budget: int, read: Callable[[str], Image.Image]
    ) -> None:
        self._read = read
        self._places: dict[str, int] = {}
        offsets = [0]
        for path in dict.fromkeys(paths):
            end = offsets[-1] + _pixel_bytes(path)
            if end > budget:
                break
            self._places[path] = len(self._places)
            offsets.append(end)
        self._offsets = offsets
        self._pixels = _shared(offsets[-1], np.uint8)
        # (height, width) of those already read, 0 for the others
        self._shapes = _shared(2 * len(self._places), np.int32).reshape(-1, 2)

    def __getitem__(self, path: str) -> Image.Image:
        """Return the image of that path, which need not be one of ``paths``.

        Raises:
            Whatever ``read`` raises.
        """
        place = self._places.get(path)
        if place is None:
            return self._read(path)
        pixels = self._pixels[self._offsets[place] : self._offsets[place + 1]]
        height, width = self._shapes[place]
        if height > 0:
            return Image.fromarray(pixels.reshape(height, width, 3))
        image = self._read(path)
        if 3 * image.height * image.width == len(pixels):
            pixels[:] = np.asarray(image).reshape(-1)
            self._shapes[place] = image.height, image.width
        return image

    def __getstate__(self) -> dict[str, Any]:
        """Leave the images out: a process that is spawned, not forked, reads the files itself."""
        nothing = np.empty(0, np.uint8)
        return {**self.__dict__, "_places": {}, "_pixels": nothing, "_shapes": nothing}


def _pixel_bytes(path: str) -> int:
    """Return the bytes of an image in RGB; 0 for one that cannot be read, reported later."""
    if not os.path.isfile(path):  # to open a named pipe would hang
        return 0
    try:
        with Image.open(path) as image:
            return 3 * image.width * image.height
    except Exception:  # PIL raises errors of many types
        return 0


def _shared(count: int, dtype: Any) -> np.ndarray:
    """Return zeros in memory that forked processes share."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, size)), dtype, count)
