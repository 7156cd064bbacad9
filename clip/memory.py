"""What the gradients of a pass through a tower need kept, and computing it again instead.

Without recomputation each block keeps some ten tensors of its tokens until its gradients are
computed; with it, its input alone, and the rest is computed a second time.  Values and gradients
are the same, bit by bit.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .layer import Layer

RECOMPUTE = ("auto", "never", "always")

# Tensors of all tokens that a frozen block keeps: the inputs of both norms, queries, keys, values,
# what attention returns, and the input of the MLP's nonlinearity, which is four times as wide.
KEPT_OF_BLOCK = 10
# A pass may keep this part of the free memory: others follow it, and gradients take some, too.
SHARE = 1 / 3
NEGLIGIBLE = 2**26  # bytes that may be kept without asking how much is free


class Kept(NamedTuple):
    """What one pass through a tower keeps for its gradients.

    ``n_bytes`` is the estimate, ``whole`` what it would be without recomputation.
    """

    n_bytes: int
    whole: int


def kept_bytes(n_values: int, n_blocks: int, itemsize: int, recomputed: bool = False) -> int:
    """Estimate the memory that the gradients of a pass take, those of adapters not counted.

    Args:
        n_values: tokens times width.
        n_blocks: blocks with gradients.
        itemsize: bytes of a value.
        recomputed: each block keeps its input alone.  What one block keeps otherwise is counted
            once, as it is needed while its own gradients are computed.
    """
    n_tensors = n_blocks + KEPT_OF_BLOCK if recomputed else n_blocks * KEPT_OF_BLOCK
    return n_tensors * n_values * itemsize


class Pass:
    """One pass through the blocks of a tower, whose ``run`` calls one after another.

    Whether they are computed again is decided once, at the first block that has gradients.

    Args:
        n_blocks: number of blocks of the tower.
        recompute: one of RECOMPUTE.
        observe: is told what the pass keeps.
    """

    def __init__(self, n_blocks: int, recompute: str, observe: Callable[[Kept], Any] | None = None):
        self.n_left, self.recompute, self.observe = n_blocks, recompute, observe
        self.again: bool | None = None

    def run(
        self, block: Callable[..., Tensor], x: Tensor, attend: Any, layer: Layer, *rest: Any
    ) -> Tensor:
        """Return ``block(x, attend, layer, *rest)``."""
        has_gradients = x.requires_grad or not layer.is_untouched
        if has_gradients and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if self.again is None:
                self.again = self.decide(x)
            if self.again:
                block = partial(checkpoint, block, use_reentrant=False, determinism_check="none")
        self.n_left -= 1
        return block(x, attend, layer, *rest)

    def decide(self, x: Tensor) -> bool:
        """Return whether the blocks that are left, whose tokens are ``x``, are computed again."""
        shape = (x.numel(), self.n_left, x.element_size())
        whole = kept_bytes(*shape)
        again = self.recompute == "always"
        if self.recompute == "auto" and whole > NEGLIGIBLE:
            again = whole > SHARE * free_bytes(x.device)
        if self.observe is not None:
            self.observe(Kept(kept_bytes(*shape, recomputed=again), whole))
        return again


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
