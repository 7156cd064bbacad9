"""The dataset of docs/add-a-dataset.md takes three changes and works as documented."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from dassl.data.datasets import DATASET_REGISTRY
from tests.datasets.miniatures import build, config, put

PAGE = Path(__file__).parents[2] / "docs" / "add-a-dataset.md"


def test_the_documented_dataset(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (settings,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "mushrooms"})
    assert yaml.safe_load(settings) == {"DATASET": {"NAME": "Mushrooms"}}
    for name in ("bolete", "chanterelle", "morel"):
        for number in range(8):
            put(tmp_path / "mushrooms" / "photos" / name / f"{number}.jpg")
    dataset = build("Mushrooms", tmp_path)
    assert dataset.classnames == ["bolete", "chanterelle", "morel"] and dataset.val_is_disjoint
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [6, 6, 12]
    cfg = config("Mushrooms", tmp_path, shots=1, subset="base")
    cfg.TEST.SUBSAMPLE_CLASSES = "all"
    dataset = DATASET_REGISTRY.get("Mushrooms")(cfg)
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [2, 2, 12]
    assert len(dataset.classnames) == 2 and len(dataset.test_classnames) == 3
    assert (tmp_path / "mushrooms" / "split_fewshot" / "shot_1-seed_1.json").exists()
