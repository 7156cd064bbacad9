"""The embedded benchmark in tests: its backbone, and its datasets with fewer pictures."""

from __future__ import annotations

from pathlib import Path

import clip
import datasets  # noqa: F401  (registers the datasets)
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY

BACKBONE, SIZE = "ViT-Mini-2", 32  # its name, and the side of its images in pixels
WEIGHTS = Path(clip.__file__).parent / "weights" / f"{BACKBONE}.pt"


def draw_small(root: Path, name: str, **numbers: int) -> None:
    """Draw a dataset with other numbers of pictures of each class than its own, by split.

    After ``draw_small(root, "Shapes", test=8)``, all that reads Shapes below this root, in
    whichever process, finds 8 test pictures of each class and draws none.
    """
    whole = DATASET_REGISTRY.get(name)
    small = type(name, (whole,), {"numbers": whole.numbers | numbers})
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.NAME", name, "DATASET.ROOT", str(root)])
    small(cfg)
