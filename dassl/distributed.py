"""One run in several processes, which ``torchrun`` starts; in a single process it is nothing.

Each process computes the features of its share of a batch. These are gathered, and every process
then works on the whole batch, so losses, gradients and weights are those of a single process,
whatever a method does with the batch. Only the first process writes and logs.

No module is wrapped, as DistributedDataParallel would: names in a state dict stay, a training step
may have several backward passes, and what is learned is small enough for one message.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dassl.errors import UserError

# How long to wait for a process that lives and does not answer. One that died is noticed at once.
TIMEOUT = timedelta(minutes=30)
HEAD_START_S = 1.0  # of the first process, where all may have found the same error

Value = TypeVar("Value")
Arguments = ParamSpec("Arguments")

_store: Any = None  # what the processes share; None in a single process
_batch: int | None = None  # images of the batch that the processes share at the moment


def start() -> None:
    """Join the other processes, if ``torchrun`` started this one as one of several.

    Raises:
        UserError: they cannot be reached.
    """
    global _store
    if os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ:
        return
    both = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # each device's tensors have a backend of their own; that of GPUs starts when first used
        backend = "cpu:gloo,cuda:nccl" if both else "gloo"
        options = {"store": store, "rank": number, "world_size": size, "timeout": TIMEOUT}
        dist.init_process_group(backend, **options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the processes of this run do not find each other: {reason}") from error
    _store = store


def end() -> None:
    """Leave the other processes, when all is done."""
    global _store
    if _store is not None:
        _store = None
        dist.destroy_process_group()


def count() -> int:
    """Return the number of processes."""
    return 1 if _store is None else dist.get_world_size()


def rank() -> int:
    """Return the number of this process, counted from 0 over all machines."""
    return 0 if _store is None else dist.get_rank()


def is_first() -> bool:
    """Return whether this process is the one that writes and speaks."""
    return rank() == 0


def prepare(cfg: Any, trains: bool) -> None:
    """Check the config against the number of processes, and give each its own GPU.

    Raises:
        UserError: a batch cannot be divided, or would be once more by OPTIM.ACCUMULATE, or a
            machine has fewer GPUs than processes.
    """
    size, n_processes = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, count()
    if trains and size % n_processes:
        raise UserError(
            f"DATALOADER.TRAIN_X.BATCH_SIZE: expected a multiple of {n_processes}, the number of "
            f"processes, got {size}"
        )
    if n_processes > 1 and cfg.OPTIM.ACCUMULATE > 1:
        raise UserError(
            "OPTIM.ACCUMULATE: expected 1 in several processes, which share every batch already, "
            f"got {cfg.OPTIM.ACCUMULATE}"
        )
    if n_processes > 1 and cfg.USE_CUDA and torch.cuda.is_available():
        n_here, n_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if n_here > n_gpus:
            raise UserError(
                f"--nproc_per_node: expected at most {n_gpus}, the number of GPUs, got {n_here}; "
                "USE_CUDA False computes on the CPU"
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


# Talking -----------------------------------------------------------------------------------------


@contextmanager
def _talking() -> Iterator[None]:
    """Raise ``UserError`` where another process has ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        lost = r"[Cc]onnection|[Tt]imed out|[Bb]roken pipe|peer|NCCL|store"
        if not re.search(lost, str(error)):
            raise
        raise UserError(
            "another process of this run has ended or does not answer; the same command resumes"
        ) from error


def wait_for_all() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        with _talking():
            dist.all_reduce(torch.zeros(1))


@contextmanager
def one_first() -> Iterator[None]:
    """Let one process of each machine do the block first: what it makes, the others find."""
    is_one = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_one:
        wait_for_all()
    yield
    if is_one:
        wait_for_all()


def by_first(function: Callable[Arguments, Any]) -> Callable[Arguments, Any]:
    """Decorate a function that writes: the first process calls it, for the others it is None."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
        return function(*args, **kwargs) if is_first() else None

    return call


def from_first(make: Callable[[], Value]) -> Value:
    """Return in all processes what the first one makes."""
    if count() == 1:
        return make()
    values: list[Any] = [make() if is_first() else None]
    with _talking():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def in_turn(own: Sequence[Value]) -> list[Value]:
    """Return in the first process what all have: one of each, again and again; [] in the others.

    No process has more than the first, and none has fewer than one less.
    """
    if count() == 1:
        return list(own)
    parts: list[Any] | None = [None] * count() if is_first() else None
    with _talking():
        dist.gather_object(list(own), parts)
    longest = len(parts[0]) if parts else 0
    return [part[i] for i in range(longest) for part in parts or () if i < len(part)]


def check_same(value: Any, message: str) -> None:
    """Check that a plain value is the first process's.

    Raises:
        UserError: with the message.
    """
    digest = hashlib.blake2b(repr(value).encode()).digest()
    if from_first(lambda: digest) != digest:
        raise UserError(message)


def speaks() -> bool:
    """Return whether this process is to say why the run stops: the first one to ask is."""
    if _store is None:
        return True
    with suppress(KeyboardInterrupt):
        time.sleep(0 if is_first() else HEAD_START_S)
    try:
        return bool(_store.add("stopped", 1) == 1)
    except RuntimeError:  # what keeps the store has died
        return True


# The whole batch ---------------------------------------------------------------------------------


@contextmanager
def shared_batch(n_images: int) -> Iterator[None]:
    """Let the block compute one batch of so many images, of which each process has its share.

    Shares are of the same size: see ``own``.
    """
    global _batch
    _batch = n_images
    try:
        yield
    finally:
        _batch = None


def whole(n_images: int) -> int:
    """Return how many images the batch has of which this process has so many."""
    return n_images if _batch is None else _batch


def shares(rows: Sequence[Value]) -> list[Value]:
    """Return this process's share of the rows of a batch.

    Where the processes do not divide their number, the last one fills up the last shares.
    """
    size = -(-len(rows) // count())
    places = range(rank() * size, (rank() + 1) * size)
    return [rows[min(place, len(rows) - 1)] for place in places]


def own(rows: Tensor) -> Tensor:
    """Return the rows (b, ...) of this process's images, from those of the whole batch (B, ...).

    What is drawn at random for each image is drawn for all of them, and then this is taken.
    """
    return rows if _batch is None else rows[shares(range(len(rows)))]


def gather(rows: Tensor) -> Tensor:
    """Return the rows (B, ...) of the images of all processes, from those of this one (b, ...).

    Gradients of the mean over the processes are exact: every process differentiates the whole loss,
    with respect to its own images alone and to all that does not depend on images. The mean counts
    the latter right, and the former as often as there are processes too little.
    """
    if _batch is None:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered[:_batch]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.size = len(rows)
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(count())]
        with _talking():
            dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        begin = rank() * ctx.size
        return count() * gradient[begin : begin + ctx.size]


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, such as gradients, by their means over the processes."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    with _talking():
        dist.all_reduce(flat)
    _spread(flat / count(), tensors)


def copy_first(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    with _talking():
        dist.broadcast(flat, 0)
    _spread(flat, tensors)


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the values of all tensors, one behind the other, into them."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.view_as(tensor))
