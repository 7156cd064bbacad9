from pathlib import Path

import pytest

from tests.embedded import draw_small


@pytest.fixture(scope="session")
def few() -> dict[str, dict[str, int]]:
    """Numbers of pictures of each class, by split, in the embedded datasets of ``root``."""
    return {
        "Emoji": {"train": 1, "val": 1, "test": 1},
        "EmojiV2": {"test": 1},
        "EmojiSketch": {"test": 1},
        "EmojiNoise": {"test": 1},
        "EmojiRendition": {"test": 1},
        "Animals": {"train": 1, "val": 1, "test": 1},
        "Food": {"train": 1, "val": 1, "test": 1},
        "Faces": {"train": 1, "val": 1, "test": 1},
        "Shapes": {"train": 4, "val": 4, "test": 4},
        "Glyphs": {"train": 4, "val": 4, "test": 4},
        "Digits": {"train": 6, "val": 4, "test": 12},
    }


@pytest.fixture(scope="session")
def root(few: dict[str, dict[str, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root of the embedded datasets, with few pictures, for all tests that only read."""
    root = tmp_path_factory.mktemp("datasets")
    for name, numbers in few.items():
        draw_small(root, name, **numbers)
    return root
