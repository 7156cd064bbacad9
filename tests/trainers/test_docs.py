"""The method of docs/add-a-method.md is one short file that trains as documented."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import torch

from dassl.engine import TRAINER_REGISTRY
from tests.trainers import toy

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


def test_the_documented_method_trains_and_reloads(run, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) < 80
    path = tmp_path / "paired.py"
    path.write_text(code)
    if "PairedPrompts" not in TRAINER_REGISTRY.registered_names():
        spec = importlib.util.spec_from_file_location("paired", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "paired", module)
        spec.loader.exec_module(module)
    monkeypatch.setitem(toy.NODES, "PairedPrompts", "PAIRED")
    code, out = run("PairedPrompts", "base", "DATASET.SUBSAMPLE_CLASSES", "base")
    assert code == 0, out
    saved = tmp_path / "base/VLPromptLearner/model.pth.tar-2"
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert state["prompt_learner.tokens"].shape == (3, 4, 32)
    code, out = run(
        "PairedPrompts",
        "new",
        "DATASET.SUBSAMPLE_CLASSES",
        "new",
        flags=["--eval-only", "--model-dir", f"{tmp_path}/base"],
    )
    assert code == 0, out
    assert "loss_anchor" in (tmp_path / "base/log.txt").read_text()
