"""What version 0.1.0 left in a run's folder, and what reads it, as CHANGELOG.md says.

results_0_1_0.json is what commit 1b78645 wrote for CoOp on one shot of Digits, 2 epochs, with its
folders made relative.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import predict
import train
from experiments import report, table
from tests.embedded import draw_small

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results_0_1_0.json")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Leave a folder with the files of such a run that are read, and other learned numbers."""
    folder = tmp_path / "output/digits/CoOp/vit_mini_1shots/seed1"
    (folder / "prompt_learner").mkdir(parents=True)
    results = RESULTS.read_text(encoding="utf-8")
    (folder / "results.json").write_text(results, encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(results)["config"]))
    checkpoint = {"state_dict": {"ctx": torch.zeros(4, 64)}, "epoch": 2, "val_result": None}
    torch.save(checkpoint, folder / "prompt_learner/model.pth.tar-2")
    (folder / "prompt_learner/checkpoint").write_text("model.pth.tar-2\n")
    return folder


def test_tables_and_the_report_read_its_results(old, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert table.main([str(tmp_path / "output")]) == 0
    out, errors = capsys.readouterr()
    assert "ViT-Mini, unknown precision, split test" in out and errors == ""
    assert "| digits  | CoOp   | 80.0 (1) [76.6, 83.3] |" in out
    pytest.importorskip("jinja2", reason="the extra [report] is not installed")
    page = tmp_path / "report.html"
    assert report.main([str(tmp_path / "output"), "--html", str(page)]) == 0
    assert "80.0" in page.read_text(encoding="utf-8")


def test_its_checkpoint_is_evaluated(old, tmp_path):
    draw_small(tmp_path / "data", "Digits", test=2)
    arguments = ["--trainer", "CoOp", "--backbone", "ViT-Mini", "--root", str(tmp_path / "data")]
    for option, place in (
        ("dataset-config", "datasets/digits"),
        ("config", "trainers/CoOp/vit_mini"),
    ):
        arguments += [f"--{option}-file", f"{REPOSITORY}/configs/{place}.yaml"]
    arguments += ["--eval-only", "--model-dir", str(old), "--output-dir", str(tmp_path / "new")]
    assert train.main(arguments) == 0
    results = json.loads((tmp_path / "new/results.json").read_text())
    assert results["epoch"] == 2 and results["total"] == 20


def test_it_is_no_classifier_without_classes(old, capsys):
    assert predict.main([str(old), "photo.jpg"]) == 2
    assert "has no classes.json: the run is not finished, or is one of an older" in (
        capsys.readouterr().err
    )
