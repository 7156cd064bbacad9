"""The methods of docs/add-a-method.md take three changes each and train as documented."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY
from tests.trainers import toy

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CONFIGS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(
    ("number", "method", "node", "tensor", "shape"),
    [
        (0, "PairedPrompts", "PAIRED", "tokens_of_layers", (3, 4, 32)),
        (1, "ScaledAdapters", "SCALED", "text.3.down.0.weight", (8, 32)),
    ],
)
def test_a_documented_method_trains_and_reloads(
    run, tmp_path, monkeypatch, number, method, node, tensor, shape
):
    code, config = FILES[number], tmp_path / "vit_mini.yaml"
    assert len(FILES) == len(CONFIGS) == 2
    assert len(code.splitlines()) < 60
    config.write_text(CONFIGS[number])
    path = tmp_path / f"{method.lower()}.py"
    path.write_text(code)
    if method not in TRAINER_REGISTRY.registered_names():  # what trainers/__init__.py does
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
    monkeypatch.setitem(toy.NODES, method, node)
    with_config = ["--config-file", str(config)]
    code, out = run(method, "base", "DATASET.SUBSAMPLE_CLASSES", "base", flags=with_config)
    assert code == 0, out
    saved = tmp_path / "base/VLPromptLearner/model.pth.tar-2"
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert state[tensor].shape == shape
    assert not any("resblocks" in name for name in state)  # nothing of CLIP
    flags = [*with_config, "--eval-only", "--model-dir", f"{tmp_path}/base"]
    code, out = run(method, "new", "DATASET.SUBSAMPLE_CLASSES", "new", flags=flags)
    assert code == 0, out
    assert ("loss_anchor" in (tmp_path / "base/log.txt").read_text()) == (number == 0)
