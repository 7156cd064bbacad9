from pathlib import Path

import pytest

from tests.embedded import draw_small


@pytest.fixture(scope="session")
def few() -> dict[str, dict[str, int]]:
    """Numbers of pictures of each class, by split, in the embedded datasets of ``root``."""
    return {
        "Shapes": {"train": 4, "val": 4, "test": 12},
        "ShapesV2": {"test": 4},
        "ShapesSketch": {"test": 4},
        "ShapesNoise": {"test": 4},
        "ShapesRendition": {"test": 4},
        "Glyphs": {"train": 4, "val": 4, "test": 12},
        "Digits": {"train": 6, "val": 4, "test": 12},
    }


@pytest.fixture(scope="session")
def root(few: dict[str, dict[str, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root of the embedded datasets, with few pictures, for all tests that only read."""
    root = tmp_path_factory.mktemp("datasets")
    for name, numbers in few.items():
        draw_small(root, name, **numbers)
    return root
