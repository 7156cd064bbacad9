"""Decoded images that are kept in memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from itertools import accumulate
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
        self._paths = paths
        self._read = read
        sizes: list[int] = []
        for path in paths:
            sizes.append(_pixel_bytes(path))
            budget -= sizes[-1]
            if budget < 0:
                sizes.pop()
                break
        self._offsets = [0, *accumulate(sizes)]
        self._pixels = _shared(self._offsets[-1], np.uint8)
        # (height, width) of those that are there, 0 of the others
        self._shapes = _shared(2 * len(sizes), np.int32).reshape(-1, 2)

    def __getitem__(self, index: int) -> Image.Image:
        """The image ``index`` of the paths.

        Raises:
            whatever ``read`` raises.
        """
        if index >= len(self._shapes):
            return self._read(self._paths[index])
        pixels = self._pixels[self._offsets[index] : self._offsets[index + 1]]
        height, width = self._shapes[index]
        if height > 0:
            return Image.fromarray(pixels.reshape(height, width, 3))
        image = self._read(self._paths[index])
        if 3 * image.height * image.width == len(pixels):
            pixels[:] = np.asarray(image).reshape(-1)
            self._shapes[index] = image.height, image.width
        return image

    def __getstate__(self) -> dict[str, Any]:
        """A process that is started anew, not forked, shares no memory: it reads the files."""
        nothing = {
            "_offsets": [0],
            "_pixels": np.empty(0, np.uint8),
            "_shapes": np.empty((0, 2), np.int32),
        }
        return {**self.__dict__, **nothing}


def _pixel_bytes(path: str) -> int:
    """What the image takes as RGB; 0 for one that cannot be read, which is reported later."""
    try:
        with Image.open(path) as image:
            return 3 * image.width * image.height
    except Exception:  # PIL raises errors of many types
        return 0


def _shared(count: int, dtype: Any) -> np.ndarray:
    """Zeros in memory that forked processes share."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, size)), dtype, count)
