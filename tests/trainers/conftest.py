"""Fixtures of the methods' tests.

``pytestmark = pytest.mark.tiny(layers=3, images=4)`` changes the default sizes for a module.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import train
from clip import CLIP
from tests.trainers import toy
from tests.trainers.tiny import tiny_clip


def size_of(request: pytest.FixtureRequest, name: str, usual: int) -> int:
    """Read a size from the marker ``tiny`` of the test or its module."""
    marker = request.node.get_closest_marker("tiny")
    return usual if marker is None else marker.kwargs.get(name, usual)


@pytest.fixture(scope="module")
def clip_model(request: pytest.FixtureRequest) -> CLIP:
    """Make a random frozen CLIP of 4 layers, or as many as the module's marker says."""
    return tiny_clip(size_of(request, "layers", 4))


@pytest.fixture
def batch(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Draw 3 images, or as many as the module's marker says, and their labels."""
    torch.manual_seed(5)
    count = size_of(request, "images", 3)
    return torch.randn(count, 3, 16, 16), torch.tensor([0, 2, 1, 1][:count])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the tiny CLIP to a weights file."""
    return toy.write_backbone(tmp_path_factory.mktemp("clip") / "tiny.pt")


@pytest.fixture
def run(backbone, tmp_path, capsys) -> Any:
    """Run train.py: run(trainer, output folder, KEY, VALUE, ..., flags) -> (exit code, output)."""

    def call(trainer: str, output: str, *pairs: str, flags=(), epochs: int = 2) -> tuple[int, str]:
        whose = (trainer, tmp_path, backbone, tmp_path / output)
        code = train.main([*flags, *toy.command_line(*whose, *pairs, epochs=epochs)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call
