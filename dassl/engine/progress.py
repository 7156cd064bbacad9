"""What is shown of an epoch: log lines, TensorBoard points, a progress bar, and bad losses.

Loss values stay on the device between two log lines, so that no step waits for it.
"""

from __future__ import annotations

import datetime
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dassl.errors import LossError
from dassl.utils.logger import log, log_only
from dassl.utils.meters import AverageMeter, MetricMeter

NAMED_IMAGES = 3  # of a batch with a bad loss


def shows_bar() -> bool:
    """Return whether to show a progress bar: on a terminal, unless this process is silent."""
    return sys.stderr.isatty() and log.isEnabledFor(logging.INFO)


def batches_in_epoch(epoch: int, per_epoch: int, max_iter: int | None) -> int:
    """Return how many batches an epoch (counted from 0) has where training ends at ``max_iter``."""
    if max_iter is None:
        return per_epoch
    return max(0, min(per_epoch, max_iter - epoch * per_epoch))


def loss_error(
    name: str, value: float, epoch: int, batch: int, num_batches: int, images: Sequence[str]
) -> LossError:
    """Make the error that names epoch and batch (counted from 0) and the first images."""
    return LossError(
        f"{name} is {value} at epoch {epoch + 1}, batch {batch + 1}/{num_batches} "
        f"(first images: {', '.join(images) or 'unknown'}); nothing of this epoch was saved, "
        "earlier checkpoints are unchanged"
    )


def read_numbers(tensors: Sequence[Tensor]) -> list[float]:
    """Read tensors of shape () together: one transfer for each device and type among them."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    numbers = [0.0] * len(tensors)
    for indices in groups.values():
        values = torch.stack([tensors[index] for index in indices]).cpu().tolist()
        for index, value in zip(indices, values, strict=True):
            numbers[index] = float(value)
    return numbers


@dataclass
class _Step:
    """A batch that is done and not yet shown."""

    batch: int
    images: list[str]
    losses: list[Any]  # those given to ``watch``
    summary: dict[str, Any]  # floats, or tensors until they are read
    lr: float
    data_time: tuple[float, float]  # seconds: of this batch, average
    time: tuple[float, float] = (0.0, 0.0)
    eta: datetime.timedelta = datetime.timedelta()


class EpochProgress:
    """Takes in the numbers of each batch and shows them every so many batches.

    Args:
        epoch: counted from 0.
        max_epoch: number of epochs.
        per_epoch: batches of a whole epoch.
        max_iter: batches of the whole training, where they and not epochs end it.
        frequency: show after so many batches; the end of the epoch shows what is left.
        write_scalar: called with tag, value and step for each TensorBoard point.
    """

    def __init__(
        self,
        epoch: int,
        max_epoch: int,
        per_epoch: int,
        max_iter: int | None,
        frequency: int,
        write_scalar: Callable[[str, float, int], None],
    ) -> None:
        self.epoch = epoch
        self.max_epoch = max_epoch
        self.num_batches = batches_in_epoch(epoch, per_epoch, max_iter)
        self.images: list[str] = []  # first paths of the current batch
        self._per_epoch = per_epoch
        total = max_epoch * per_epoch
        self._total = total if max_iter is None else min(total, max_iter)
        self._frequency = frequency
        self._write_scalar = write_scalar
        self._meters = MetricMeter()
        self._batch_time = AverageMeter()
        self._data_time = AverageMeter()
        self._batch = 0
        self._losses: list[Tensor] = []
        self._steps: list[_Step] = []

    def batches(self, loader: Any) -> Iterator[Any]:
        """Yield the batches of the epoch, with a bar if stderr is a terminal."""
        is_whole = self.num_batches == self._per_epoch
        self._bar = tqdm(
            loader if is_whole else islice(loader, self.num_batches),
            total=self.num_batches,
            desc=f"epoch [{self.epoch + 1}/{self.max_epoch}]",
            disable=not shows_bar(),
        )
        # next to a bar on the terminal, the lines go only to the log file
        has_bar = not self._bar.disable and sys.stdout.isatty()
        self._show: Callable[[str], None] = log_only if has_bar else log.info
        self._begin = time.time()
        for batch in self._bar:
            self._data_time.update(time.time() - self._begin)
            paths = batch.get("impath", []) if isinstance(batch, Mapping) else []
            self.images = list(paths)[:NAMED_IMAGES]
            yield batch

    def watch(self, loss: Tensor) -> None:
        """Check this loss of the current batch, too, when values are read."""
        self._losses.append(_kept(loss))

    def step(self, summary: Mapping[str, Any] | None, lr: float) -> None:
        """Take in what the current batch gave: named plain numbers, or tensors of one number.

        Raises:
            LossError: a plain number is not finite, or one of those that are read now.
        """
        numbers = {
            name: _kept(value) if isinstance(value, Tensor) else float(value)
            for name, value in (summary or {}).items()
        }
        data_time = (self._data_time.val, self._data_time.avg)
        step = _Step(self._batch, self.images, self._losses, numbers, lr, data_time)
        self._steps.append(step)
        self._losses = []
        self._batch += 1
        is_bad = any(isinstance(v, float) and not math.isfinite(v) for v in numbers.values())
        is_due = self._batch % self._frequency == 0 or self._batch == self.num_batches or is_bad
        if is_due:  # before the time is taken, as it waits until the device is done
            self._read()
        self._batch_time.update(time.time() - self._begin)
        step.time = (self._batch_time.val, self._batch_time.avg)
        remaining = self._total - self.epoch * self._per_epoch - self._batch
        step.eta = datetime.timedelta(seconds=int(self._batch_time.avg * remaining))
        if is_due:
            self._write()
        self._set_postfix(step)
        self._begin = time.time()

    def flush(self) -> None:
        """Check and show what is left. Nothing of the epoch may be saved before.

        Raises:
            LossError: a number is not finite.
        """
        self._read()
        self._write()

    def _read(self) -> None:
        """Replace the tensors of all steps by their values."""
        places: list[tuple[Any, Any]] = []
        for step in self._steps:
            places += [(step.losses, index) for index in range(len(step.losses))]
            places += [(step.summary, name) for name in step.summary]
        places = [(owner, key) for owner, key in places if isinstance(owner[key], Tensor)]
        values = read_numbers([owner[key] for owner, key in places])
        for (owner, key), value in zip(places, values, strict=True):
            owner[key] = value

    def _write(self) -> None:
        """Check and show all steps, whose values have been read."""
        steps, self._steps = self._steps, []
        for step in steps:
            for name, value in [*(("loss", x) for x in step.losses), *step.summary.items()]:
                if not math.isfinite(value):
                    raise loss_error(
                        name, value, self.epoch, step.batch, self.num_batches, step.images
                    )
            self._meters.update(step.summary)
            # an epoch that is shorter than the interval shows all of its batches, as in Dassl
            is_shown = (step.batch + 1) % self._frequency == 0
            if is_shown or self.num_batches < self._frequency:
                self._show(self._line(step))
            number = self.epoch * self._per_epoch + step.batch
            for name, meter in self._meters.meters.items():
                self._write_scalar(f"train/{name}", meter.avg, number)
            self._write_scalar("train/lr", step.lr, number)

    def _line(self, step: _Step) -> str:
        return (
            f"epoch [{self.epoch + 1}/{self.max_epoch}] "
            f"batch [{step.batch + 1}/{self.num_batches}] "
            f"time {step.time[0]:.3f} ({step.time[1]:.3f}) "
            f"data {step.data_time[0]:.3f} ({step.data_time[1]:.3f}) "
            f"{self._meters} lr {step.lr:.4e} eta {step.eta}"
        )

    def _set_postfix(self, step: _Step) -> None:
        """Show on the bar the averages as they were last read."""
        shown: dict[str, str] = {
            name: f"{self._meters.meters[name].avg:.4f}"
            for name in ("loss", "acc")
            if name in self._meters.meters
        }
        shown |= {"lr": f"{step.lr:.4e}", "eta": str(step.eta)}
        self._bar.set_postfix(shown, refresh=False)


def _kept(value: Tensor) -> Tensor:
    """Copy a tensor of one number, of any shape, as its owner may write to it again."""
    return value.detach().reshape(()).clone()
