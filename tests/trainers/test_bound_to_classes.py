"""Classes that changed after training: what is bound to its classes refuses others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from dassl.engine.checkpoints import check_classes
from dassl.errors import UserError
from tests.embedded import BACKBONE
from trainers.trainer import MethodTrainer


@pytest.fixture
def photos(tmp_path):
    """Draw a folder of own photos with the classes apple, leaf, sky and sun."""
    for number, name in enumerate(("apple", "leaf", "sky", "sun")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for image in range(4):
            color = (60 * number + image, 200 - 50 * number, 30 * image)
            Image.new("RGB", (32, 32), color).save(folder / f"{image}.png")
    return tmp_path / "photos"


def on_photos(photos: Path, output: Path, trainer: str, *options: str) -> int:
    first = next((i for i, option in enumerate(options) if option.isupper()), len(options))
    return train.main(
        ["--root", str(photos), "--output-dir", str(output), "--seed", "1", "--trainer", trainer]
        + ["--backbone", BACKBONE, *options[:first], "DATASET.NAME", "ImageFolder"]
        + ["DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "1", *options[first:]]
    )


@pytest.mark.parametrize(
    ("trainer", "options"), [("LinearProbe", ()), ("CoOp", ("TRAINER.COOP.CSC", "True"))]
)
def test_what_is_bound_to_its_classes_refuses_a_renamed_one(
    photos, tmp_path, capsys, trainer, options
):
    assert on_photos(photos, tmp_path / "run", trainer, *options) == 0
    load = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert on_photos(photos, tmp_path / "same", trainer, *load, *options) == 0
    (photos / "apple").rename(photos / "red apple")
    (photos / "split_image_folder.json").unlink()
    capsys.readouterr()
    assert on_photos(photos, tmp_path / "other", trainer, *load, *options) == 2
    place = next((tmp_path / "run").glob("*/model.pth.tar-*"))
    line = f"error: '{place}' was trained on other classes: expected 'apple' as class 0, got 'leaf'"
    assert capsys.readouterr().err.strip() == line
    weights = ("MODEL.INIT_WEIGHTS", str(place))
    if trainer == "CoOp":  # fits by shape
        assert on_photos(photos, tmp_path / "further", trainer, *options, *weights) == 2
        assert capsys.readouterr().err.strip() == line


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda names: [*names, "tree"], "expected 3 classes, got 4 with 'tree'"),
        (lambda names: names[:2], "expected 3 classes, got 2 without 'sky'"),
        (lambda names: ["apple", "sea"], "expected 3 classes, got 2 without 'leaf' with 'sea'"),
        (lambda names: names[::-1], "expected 'apple' as class 0, got 'sky'"),
        (lambda names: ["Apple", *names[1:]], "expected 'apple' as class 0, got 'Apple'"),
    ],
)
def test_the_class_that_differs_is_named(change, difference):
    trained = ["apple", "leaf", "sky"]
    check_classes(trained, trained, "model.pth")
    check_classes([], change(trained), "model.pth")  # a checkpoint that does not say
    with pytest.raises(UserError) as error:
        check_classes(trained, change(trained), "model.pth")
    assert str(error.value) == f"'model.pth' was trained on other classes: {difference}"


@pytest.mark.parametrize("names", [5, "apple", ["apple", 3], None, {"apple": 0}])
def test_weights_with_something_else_for_class_names_are_refused(photos, tmp_path, capsys, names):
    assert on_photos(photos, tmp_path / "run", "CoOp") == 0
    checkpoint = torch.load(tmp_path / "run" / "prompt_learner" / "model.pth.tar-1")
    weights = tmp_path / "weights.pth"
    torch.save({**checkpoint, "class_names": names}, weights)
    capsys.readouterr()
    assert on_photos(photos, tmp_path / "new", "CoOp", "MODEL.INIT_WEIGHTS", str(weights)) == 2
    assert capsys.readouterr().err.startswith(
        f"error: checkpoint '{weights}': expected a list of text, got class_names "
    )


@pytest.mark.parametrize("name", ["ViT-Mini-2", "ViT-Mini"])
def test_photographs_for_a_model_of_drawings_are_warned_of(photos, tmp_path, capsys, name):
    backbone = ("MODEL.BACKBONE.NAME", name)
    assert on_photos(photos, tmp_path / "run", "ZeroshotCLIP", *backbone) == 0
    (warning,) = json.loads((tmp_path / "run" / "results.json").read_text())["warnings"]
    assert warning.startswith(f"MODEL.BACKBONE.NAME: {name} has learned from drawings")
    assert "ImageFolder" in warning and warning in capsys.readouterr().out


def test_what_is_not_bound_serves_other_classes(photos, tmp_path):
    assert on_photos(photos, tmp_path / "run", "CoOp") == 0
    (photos / "apple").rename(photos / "red apple")
    (photos / "split_image_folder.json").unlink()
    load = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert on_photos(photos, tmp_path / "other", "CoOp", *load) == 0


def test_a_run_is_not_resumed_on_other_classes(photos, tmp_path, capsys, monkeypatch):
    def stop(self):
        if self.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(MethodTrainer, "before_epoch", stop)
    two = ("OPTIM.MAX_EPOCH", "2")
    assert on_photos(photos, tmp_path / "run", "CoOp", *two) == 130
    monkeypatch.undo()
    (photos / "apple").rename(photos / "red apple")
    (photos / "split_image_folder.json").unlink()
    capsys.readouterr()
    assert on_photos(photos, tmp_path / "run", "CoOp", *two) == 2
    assert "was trained on other classes: expected 'apple'" in capsys.readouterr().err
