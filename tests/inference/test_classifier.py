"""A run as a classifier: the run's own logits, with its names and with others, saved and shared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from torch import Tensor

import train
from dassl.engine.optimize import precision
from dassl.errors import UserError
from inference import Classifier
from inference.card import base_model
from tests.inference.runs import methods
from tests.trainers import toy

METHODS = methods("HiCroPL", "CoCoOp", "CLIPLoRA", "LinearProbe")


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


@pytest.mark.parametrize("trainer", METHODS)
def test_another_precision_leaves_the_classifier_as_it_is(runs, trainer):
    classifier = Classifier.from_run(runs.trained(trainer), device="cpu")
    pictures = random_pictures(classifier)
    before = classifier.logits(pictures)
    with classifier.on("cpu", "fp32") as same:
        assert torch.equal(same.logits(pictures), before) and same.labels == classifier.labels
    with classifier.on(precision="bf16") as other:
        found = other.logits(pictures)
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, before, rtol=0.05, atol=0.05 * before.abs().max().item())
    assert torch.equal(classifier.logits(pictures), before)
    with pytest.raises(UserError, match="^device: expected one of this machine, got"):
        with classifier.on("nowhere"):
            pass


def test_what_makes_the_prompts_stays_behind(runs, tmp_path):
    classifier = Classifier.from_run(runs.trained("HiCroPL"))
    classifier.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    prompts = {f"layers.text.{i}": (2, 32) for i in range(4)}
    prompts |= {f"layers.vision.{i}": (2, 48) for i in range(4)}
    texts = ("text", "prompted_text", "frozen_text")
    assert shapes == {**prompts, **{f"classes.{name}": (2, 24) for name in texts}}


def test_sentences_stay_with_the_run(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("red", "green", "blue", "grey")
    Path("texts.json").write_text(
        json.dumps({name: [f"It is {name}.", "A hue."] for name in names})
    )
    settings = ("TRAINER.HICROPL.FROZEN_TEXT", "descriptions")
    settings += ("TRAINER.HICROPL.DESCRIPTIONS", "texts.json")
    argv = toy.command_line("HiCroPL", runs.data, runs.backbone, Path("out"), *settings, epochs=1)
    assert train.main(argv) == 0
    Path("texts.json").unlink()
    classifier = Classifier.from_run("out")
    pictures = random_pictures(classifier)
    before = classifier.logits(pictures)
    with pytest.raises(UserError, match="^descriptions has no sentences for 'cat'; give it"):
        classifier.set_classes(["red", "cat"])
    assert torch.equal(classifier.logits(pictures), before)
    classifier.set_classes(["red", "cat"], {"cat": ["A cat."]})
    classifier.save_pretrained("saved")
    loaded = Classifier.from_pretrained("saved")
    assert torch.equal(loaded.logits(pictures), classifier.logits(pictures))
    loaded.set_classes(["cat", "red"])
    torch.testing.assert_close(loaded.logits(pictures), classifier.logits(pictures).flip(1))


def test_a_method_without_sentences_refuses_some(classifier):
    with pytest.raises(UserError, match="^descriptions: expected none, as VPT does not use any"):
        classifier.set_classes(["a"], {"a": ["An a."]})
    assert classifier.labels == ["red", "green"]


@pytest.mark.parametrize(
    "names, message",
    [
        ("cat", "expected a list of class names, got 'cat'"),
        ([], "expected at least one class name, got none"),
        (["cat", " "], "expected text that is not blank, got ' '"),
        (["cat", 3], "expected text that is not blank, got 3"),
        (["cat", "dog", "cat"], "expected different class names, got 'cat' twice"),
        (["cat", "very " * 80], "expected a context that leaves room for"),
    ],
)
def test_names_that_cannot_be_classes_change_nothing(classifier, names, message):
    with pytest.raises(UserError, match=message) as caught:
        classifier.set_classes(names)
    assert "\n" not in str(caught.value)
    assert classifier.labels == ["red", "green"] == classifier.method.class_names


def test_a_copy_with_other_classes_leaves_the_first_as_it_is(classifier):
    pictures = random_pictures(classifier)
    before = classifier.logits(pictures)
    other = classifier.with_classes(["blue", "red", "grey"])
    assert type(other) is Classifier and other.labels == ["blue", "red", "grey"]
    assert classifier.labels == ["red", "green"]
    assert torch.equal(classifier.logits(pictures), before)
    torch.testing.assert_close(other.logits(pictures)[:, 1], before[:, 0])
    shared = zip(classifier.method.parameters(), other.method.parameters(), strict=True)
    assert all(mine is its for mine, its in shared)
    other.set_classes(["x"])
    classifier.set_classes(["y", "z"])
    assert other.labels == ["x"] and classifier.labels == ["y", "z"]
    with pytest.raises(UserError, match="expected different class names, got 'x' twice"):
        classifier.with_classes(["x", "x"])


def test_a_call_keeps_the_names_that_it_began_with(classifier, runs):
    stream = classifier.stream([*sorted((runs.data / "test" / "red").iterdir())], batch_size=1)
    first = next(stream)
    classifier.set_classes(["x", "y", "z"])
    assert {first.labels, *(each.labels for each in stream)} <= {("red", "green"), ("green", "red")}
    assert set(classifier.predict(runs.data / "test" / "red")[0].labels) == {"x", "y", "z"}


def test_threads_get_what_one_alone_gets(classifier):
    pictures = random_pictures(classifier, 4)
    names = [["a", "b"], ["c", "d", "e"]]
    expected = {}
    for each in names:
        classifier.set_classes(each)
        expected[len(each)] = classifier.logits(pictures)

    def serve(number: int) -> bool:
        if number % 5 == 0:
            classifier.set_classes(names[number % 2])
        found = classifier.logits(pictures)
        return torch.allclose(found, expected[found.shape[1]], atol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(serve, range(40)))


def test_features_are_those_of_the_images_tower(classifier):
    pictures = np.random.RandomState(3).randint(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    found = classifier.features([*pictures, "missing.png"])
    batch = torch.stack([classifier.preprocess(each) for each in pictures])
    with torch.no_grad():
        batch = batch.to(classifier.method.device)
        expected = classifier.method.image_features(batch, classifier.method.layers())["image"]
    torch.testing.assert_close(found[:2], expected.cpu())
    assert found[2].isnan().all() and found.shape == (3, 24)


def test_a_temperature_divides_the_logits(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs.trained("VPT"), folder)
    (folder / "calibration.json").write_text('{"temperature": 2.5}')
    classifier = Classifier.from_run(folder)
    picture = np.full((16, 16, 3), 90, np.uint8)
    (found,) = classifier.predict(picture, top=9)
    logits = classifier.logits(classifier.preprocess(picture)[None])[0].double()
    expected = torch.softmax(logits / 2.5, dim=0)
    assert found.probabilities == tuple(expected.sort(descending=True).values.tolist())
    classifier.save_pretrained(tmp_path / "saved")
    assert Classifier.from_pretrained(tmp_path / "saved").predict(picture, top=9) == [found]
    assert "temperature 2.5" in (tmp_path / "saved" / "README.md").read_text()


def test_precision_and_device_are_chosen(runs):
    folder = runs.trained("VPT")
    exact, rough = (Classifier.from_run(folder, "cpu", prec) for prec in ("fp32", "bf16"))
    assert rough.method.clip.dtype == torch.bfloat16
    auto = Classifier.from_run(folder, "cpu", "auto")
    assert auto.method.clip.dtype == precision("auto", torch.device("cpu")).dtype
    pictures = random_pictures(exact)
    difference = (exact.logits(pictures) - rough.logits(pictures)).abs().max()
    assert 0 < difference < 0.5
    with pytest.raises(
        UserError, match="^precision: expected one of fp32, bf16, fp16, amp, auto, got"
    ):
        Classifier.from_run(folder, precision="int8")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(
            UserError, match=f"^device: expected one of this machine, got '{device}'"
        ):
            Classifier.from_run(folder, device=device)


def test_a_model_card_says_what_the_hub_and_people_want_to_know(runs, tmp_path):
    Classifier.from_run(runs.trained("VPT")).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit" and card.data.datasets == ["ColourPatches"]
    results = json.loads((runs.trained("VPT") / "results.json").read_text())
    figures = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert figures == {name: results[name] for name in ("accuracy", "ece")}
    interval = {0: (0.0, 39.0), 3: (18.8, 81.2), 6: (61.0, 100.0)}  # Wilson's of so many of 6
    low, high = interval.get(results["correct"], (None, None))
    if low is not None:
        assert f"(95% interval {low:.1f}% to {high:.1f}%)" in card.text


@pytest.mark.parametrize(
    "backbone, expected",
    [
        ("ViT-B/16", "openai/clip-vit-base-patch16"),
        ("open_clip:ViT-B-16/laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
        ("open_clip:RN50/yfcc15m", "timm/resnet50_clip.yfcc15m"),
        ("ViT-Mini-2", None),
        ("weights.pt", None),
    ],
)
def test_the_base_model_is_the_hubs_name_of_the_backbone(backbone, expected):
    assert base_model(backbone) == expected


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def changed(name: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return change


@pytest.mark.parametrize(
    "damage, message",
    [
        (without("classes.json"), "has no classes.json: the run is not finished, or is one of an"),
        (written("classes.json", "{"), "classes.json' is not valid JSON"),
        (changed("classes.json", format=2), "classes.json': expected format 1 or less, got 2"),
        (changed("classes.json", templates="a"), "templates: expected a list of texts, got 'a'"),
        (changed("classes.json", class_names=["red"]), "was trained on other classes"),
        (
            changed("classes.json", class_names=["a", "a"]),
            "expected different class names, got 'a'",
        ),
        (written("config.yaml", "TRAINER: {"), "config.yaml' cannot be read"),
        (written("config.yaml", "a: 1"), "expected the whole config of a run, got less"),
        (without("results.json"), "cannot read '.*results.json'"),
        (
            lambda folder: shutil.rmtree(folder / "prompt_learner"),
            "name the folder of the training",
        ),
        (written("calibration.json", '{"temperature": 0}'), "temperature: expected a number above"),
        (written("calibration.json", "[]"), "temperature: expected a number above 0, got"),
    ],
)
def test_a_damaged_run_is_one_line(runs, tmp_path, damage, message):
    folder = tmp_path / "run"
    shutil.copytree(runs.trained("VPT"), folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        Classifier.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage, message",
    [
        (without("config.json"), "cannot read '.*config.json'"),
        (written("config.json", "[]"), "config.json': expected an object, got"),
        (changed("config.json", format=None), "expected format 1 or less, got None"),
        (changed("config.json", config={}), "TRAINER.NAME in .* expected a method, got None"),
        (changed("config.json", labels="cat"), "labels: expected a list of class names, got 'cat'"),
        (changed("config.json", labels=["a"]), "expected the class features 'text'"),
        (
            changed("config.json", calibration={"temperature": "1"}),
            "temperature: expected a number above 0, got '1'",
        ),
        (written("model.safetensors", "x"), "cannot read '.*model.safetensors'"),
    ],
)
def test_a_damaged_classifier_is_one_line(classifier, tmp_path, damage, message):
    classifier.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        Classifier.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_runs_are_one_line(tmp_path):
    with pytest.raises(UserError, match="expected an existing folder"):
        Classifier.from_run(tmp_path / "missing")
    with pytest.raises(UserError, match="expected a folder with config.yaml, got another"):
        Classifier.from_run(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(classifier, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^cannot write '.*file'"):
        classifier.save_pretrained(tmp_path / "file")
