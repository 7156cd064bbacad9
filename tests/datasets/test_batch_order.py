"""Training batches come in the order in which the public Dassl.pytorch draws them.

``batch_order.json`` was recorded from it; the file says how.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import datasets
from dassl.data import DataManager
from dassl.utils import set_random_seed
from tests.datasets.miniatures import config, put

assert datasets  # they register themselves
RECORD = json.loads(Path(__file__).with_name("batch_order.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the recorded tree below a folder for datasets."""
    root = tmp_path_factory.mktemp("data")
    split = {}
    for part, first, growth in (("train", 20, 1), ("val", 3, 1), ("test", 5, 0)):
        split[part] = [
            (f"{name}_{part}_{number}.jpg", label, name)
            for label, name in enumerate(RECORD["classes"])
            for number in range(first + growth * label)
        ]
        for path, _, _ in split[part]:
            put(root / "oxford_pets" / "images" / path)
    put(root / "oxford_pets" / "split_zhou_OxfordPets.json", json.dumps(split))
    return root


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("passes", ["train", "train_val"])
def test_batches_come_in_the_public_order(pets: Path, workers: int, passes: str) -> None:
    for seed, expected in RECORD[passes].items():
        cfg = config("OxfordPets", pets, seed=int(seed))
        for key, value in RECORD["settings"].items():
            if key != "sequence":
                cfg.merge_from_list([key, value])
        cfg.DATALOADER.NUM_WORKERS = workers
        set_random_seed(cfg.SEED)
        manager = DataManager(cfg)
        found = []
        for _ in expected:
            batches = [batch["impath"] for batch in manager.train_loader_x]
            found.append([[Path(path).name for path in paths] for paths in batches])
            if passes == "train_val":
                assert sum(len(batch["impath"]) for batch in manager.val_loader) >= 21
        assert found == expected, seed
