"""Classes that changed after training: what is bound to its classes refuses others."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import train
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
        + ["--backbone", "ViT-Mini", *options[:first], "DATASET.NAME", "ImageFolder"]
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
