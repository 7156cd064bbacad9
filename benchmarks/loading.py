"""Cost of loading an epoch's images: from memory, decoded, against reading the files each time.

    python -m benchmarks.loading

JPEG files of noise, the augmentation of the methods' configs for ViT-B/16, no worker processes.
Both ways are measured in one run: seconds of the first and of a later epoch, and the ratio of the
later ones.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dassl.command import Parser
from dassl.config import get_cfg_default
from dassl.data import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform


def draw(folder: Path, count: int, size: tuple[int, int]) -> list[Datum]:
    """Write JPEG images of (width, height) with file sizes like those of photographs."""
    generator = np.random.default_rng(0)
    items = []
    for number in range(count):
        # noise in blocks of 8 pixels; white noise would give larger files than any photograph
        coarse = generator.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
        items.append(Datum(str(path)))
    return items


def epochs(items: Sequence[Datum], megabytes: int, count: int) -> list[float]:
    """Return the seconds of each of ``count`` epochs with this much memory for decoded images."""
    cfg = get_cfg_default()
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.CACHE_MB = 0, megabytes
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    with contextlib.redirect_stdout(io.StringIO()):
        transform = build_transform(cfg)
    loader = build_data_loader(cfg, "RandomSampler", items, batch_size=32, tfm=transform)
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        for _ in loader:
            pass
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=768)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        items = draw(Path(folder), args.images, (args.width, args.height))
        files = epochs(items, 0, args.epochs)
        memory = epochs(items, get_cfg_default().DATALOADER.CACHE_MB, args.epochs)
    later = [statistics.median(seconds[1:]) for seconds in (files, memory)]
    print(f"{args.images} images of {args.width} x {args.height}")
    print(f"from files: first epoch {files[0]:.2f} s, later {later[0]:.2f} s")
    print(f"in memory: first epoch {memory[0]:.2f} s, later {later[1]:.2f} s")
    print(f"times faster after the first epoch: {later[0] / later[1]:.1f}")


if __name__ == "__main__":
    main()
