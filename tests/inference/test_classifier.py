"""A run as a classifier: the run's own logits, with its names and with others, saved and shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import train
import trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.errors import UserError
from inference import Classifier
from tests.trainers import toy
from trainers.trainer import MethodTrainer

assert trainers  # registers the methods
FAST = ("HiCroPL", "CoCoOp", "CLIPLoRA", "LinearProbe")


def of_the_library(name: str) -> bool:
    trainer = TRAINER_REGISTRY.get(name)
    return issubclass(trainer, MethodTrainer) and trainer.method.__module__.startswith("trainers.")


METHODS = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in sorted(filter(of_the_library, TRAINER_REGISTRY.registered_names()))
]


class Runs:
    """Trains each method once, on the first two colors, and evaluates it on the others."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "data").mkdir()
        self.backbone = toy.write_backbone(folder / "tiny.pt")

    def start(self, trainer: str, name: str, *pairs: str) -> Path:
        output = self.folder / name
        if not output.exists():
            whose = (trainer, self.folder / "data", self.backbone, output)
            argv = toy.command_line(*whose, "TEST.RECORD", "['logits']", *pairs, epochs=1)
            assert train.main(argv) == 0
        return output

    def trained(self, trainer: str) -> Path:
        return self.start(trainer, trainer, "DATASET.SUBSAMPLE_CLASSES", "base")

    def evaluated(self, trainer: str) -> Path:
        """Return the folder of the evaluation on other classes."""
        output = self.folder / f"{trainer}-new"
        if not output.exists():
            folder = self.trained(trainer)
            whose = (trainer, self.folder / "data", self.backbone, output)
            pairs = ("DATASET.SUBSAMPLE_CLASSES", "new", "TEST.RECORD", "['logits']")
            flags = ["--eval-only", "--model-dir", str(folder)]
            assert train.main([*flags, *toy.command_line(*whose, *pairs, epochs=1)]) == 0
        return output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def recorded(folder: Path, classifier: Classifier) -> tuple[Tensor, Tensor]:
    """Return the classifier's logits and those that an evaluation recorded."""
    with np.load(folder / "logits.npz") as file:
        expected, paths = torch.from_numpy(file["logits"]), file["impaths"].tolist()
    return classifier.logits(torch.stack([classifier.preprocess(path) for path in paths])), expected


def random_pictures(classifier: Classifier, count: int = 3) -> Tensor:
    pixels = np.random.RandomState(7).randint(0, 256, (count, 20, 16, 3)).astype(np.uint8)
    return torch.stack([classifier.preprocess(each) for each in pixels])


@pytest.mark.parametrize("trainer", METHODS)
def test_a_run_gives_the_logits_of_its_evaluation(runs, trainer):
    folder = runs.trained(trainer)
    classifier = Classifier.from_run(folder)
    found, expected = recorded(folder, classifier)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert classifier.labels == ["red", "green"]


@pytest.mark.parametrize("trainer", METHODS)
def test_other_names_give_the_logits_of_an_evaluation_on_them(runs, trainer):
    classifier = Classifier.from_run(runs.trained(trainer))
    if not classifier.sets_classes:
        before = classifier.logits(random_pictures(classifier))
        with pytest.raises(UserError, match=f"class names: expected the 2 that {trainer} was"):
            classifier.set_classes(["blue", "grey"])
        assert torch.equal(classifier.logits(random_pictures(classifier)), before)
        return
    classifier.set_classes(["blue", "grey"])
    found, expected = recorded(runs.evaluated(trainer), classifier)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trainer", METHODS)
def test_a_saved_classifier_is_the_same_to_the_last_bit(runs, trainer, tmp_path):
    classifier = Classifier.from_run(runs.trained(trainer))
    pictures = random_pictures(classifier)
    classifier.save_pretrained(tmp_path)
    loaded = Classifier.from_pretrained(tmp_path)
    assert torch.equal(loaded.logits(pictures), classifier.logits(pictures))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "model.safetensors", "README.md")
    }
    # CLIP's weights are 6 MB
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 200_000
    if classifier.sets_classes:
        for each in (classifier, loaded):
            each.set_classes(["a", "b c", "d"])
        assert torch.equal(loaded.logits(pictures), classifier.logits(pictures))
