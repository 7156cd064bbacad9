"""Counting how often a tensor's values are read; on a GPU each read waits for the device."""

from __future__ import annotations

import pytest
import torch

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__array__")


def count_reads(monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> None:
    """Count in counts[-1] every read of a tensor's values from Python."""
    for name in READS:
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _original=original, **kwargs):
            counts[-1] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
