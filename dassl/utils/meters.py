"""Running averages of what a training loop measures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch


class AverageMeter:
    """The newest value (``val``) of a number and its average (``avg``) since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.val = 0.0
        self.avg = 0.0
        self.sum = 0.0
        self.count = 0

    def update(self, val: float | torch.Tensor, n: int = 1) -> None:
        """Add a value that stands for ``n`` samples."""
        self.val = val.item() if isinstance(val, torch.Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = self.sum / self.count


class MetricMeter:
    """An ``AverageMeter`` for each of several named numbers.

    Args:
        delimiter: separates the numbers in ``str(meter)``.
    """

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | torch.Tensor] | None) -> None:
        """Add a value under each name of the mapping; None adds nothing."""
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError("MetricMeter.update takes a mapping of names to numbers")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(
            f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items()
        )
