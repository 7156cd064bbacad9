"""How much memory is free, and how much a computation takes."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

M_MMAP_THRESHOLD = -3  # glibc's name of what mallopt sets
OWN_PAGES = 2**20  # bytes


class PeakMemory(TorchDispatchMode):
    """Follows the tensors that are made within it, and counts those alive at the same time.

    Counts are exact and the same in every run.  What a kernel takes for itself while it computes,
    and what an allocator holds back, is not seen.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves(args):  # what was there before is not counted
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage())
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, n_bytes: int) -> None:
        self.now -= n_bytes


def peak_memory_mb() -> int | None:
    """Return the most memory that this process has had, in MB; None where nobody says.

    On a GPU it is that of tensors there, otherwise all that the process held.
    """
    if torch.cuda.is_available() and (on_gpu := torch.cuda.max_memory_allocated()):
        return round(on_gpu / 1e6)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def free_bytes(device: torch.device) -> float:
    """Return how much memory this process can still get; infinity where nobody says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min(available_bytes(), *left_in_groups(), math.inf)


def available_bytes(meminfo: str = "/proc/meminfo") -> float:
    """Return what the system has for programs; where it is not Linux, half of its memory."""
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB", Path(meminfo).read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return math.inf


def left_in_groups(
    groups: str = "/proc/self/cgroup", mounted: str = "/sys/fs/cgroup"
) -> Iterator[float]:
    """Yield what each control group that limits this process has left (containers, Slurm)."""
    try:
        lines = Path(groups).read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = Path(mounted), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path(mounted, "memory")
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root):
                yield _left(folder, *names)


def _left(folder: Path, limit: str, usage: str, cache: str) -> float:
    """Return what a control group has left; files that are only cached can be dropped."""
    try:
        most, used = (int((folder / name).read_text()) for name in (limit, usage))
        statistics = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # not there, or "max": no limit
        return math.inf
    cached = dict(line.split(" ", 1) for line in statistics).get(cache, 0)
    return max(0, most - used + int(cached))


@cache
def compact_heap() -> None:
    """Have large tensors on a CPU take pages of their own, which go back once they are freed.

    Otherwise glibc has those of up to 32 MiB in one heap, where what is kept between what is freed
    leaves holes, several times as large as all that is alive.  New pages take time, so this is for
    where memory is short.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, OWN_PAGES)
            libc.malloc_trim(0)
