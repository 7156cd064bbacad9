"""Calibration: the temperature, sets with a coverage, what keeps them, and the command."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor

import predict
import train
from dassl.data.datasets import DatasetBase, Datum
from dassl.engine import run_folder
from dassl.errors import UserError
from dassl.metrics import ece, nll
from inference import Classifier
from inference.calibrate import Scored, calibrate, check_validation, main
from inference.calibration import (
    Calibration,
    check_coverages,
    fit_temperature,
    rank,
    read_calibration,
    set_sizes,
    threshold,
    write_calibration,
)
from tests.trainers import toy

COLORS = {"green": (100, 160, 100), "red": (160, 100, 100)}
NUMBERS = {"train": 8, "val": 30, "test": 20}  # of each


def drawn(count: int, scale: float = 1.0, classes: int = 6) -> Scored:
    """Return logits that are scaled from ones whose softmax the labels follow."""
    logits = 2 * torch.randn(count, classes, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1).squeeze(1)
    return Scored(scale * logits, labels)


def test_a_temperature_undoes_a_scale():
    logits, labels = drawn(4000)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(1, abs=0.06)
    for scale in (3.0, 0.2):
        assert fit_temperature(scale * logits, labels) == pytest.approx(scale * found, rel=1e-4)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_no_temperature_of_a_fine_grid_is_better(scale):
    logits, labels = drawn(60, scale)
    found = fit_temperature(logits, labels)
    grid = torch.linspace(math.log(0.01), math.log(100), 2001).exp().tolist()
    losses = [nll(logits / each, labels) for each in grid]
    assert nll(logits / found, labels) <= min(losses) + 1e-12
    best = grid[losses.index(min(losses))]
    assert math.log(found) == pytest.approx(math.log(best), abs=math.log(grid[1] / grid[0]))


def test_where_no_temperature_is_best_there_is_none():
    logits, _ = drawn(30)
    assert fit_temperature(logits, logits.argmax(dim=1)) is None
    assert fit_temperature(logits, logits.argmin(dim=1)) is None
    assert fit_temperature(torch.zeros(3, 4), torch.tensor([0, 1, 2])) is None


@pytest.mark.parametrize(
    "coverage, count, expected", [(0.9, 9, 9), (0.9, 10, 10), (0.07, 99, 7), (0.95, 39, 38)]
)
def test_ranks_are_exact(coverage, count, expected):
    assert rank(coverage, count) == expected


def test_a_threshold_is_the_probability_of_the_rank():
    own = torch.tensor([0.5, 0.9, 0.3, 0.7])
    probabilities = torch.stack([own, 1 - own], dim=1)
    labels = torch.zeros(4, dtype=torch.long)
    found = [threshold(probabilities, labels, each) for each in (0.2, 0.4, 0.5, 0.8)]
    assert found == pytest.approx([0.9, 0.7, 0.5, 0.3])
    others = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [0.4, 0.35, 0.25]])
    assert set_sizes(others, 0.3).tolist() == [2, 2, 2]
    assert set_sizes(others, 0.55).tolist() == [1, 1, 1]  # where none reaches it, the first


def test_too_few_images_for_a_coverage_are_one_line():
    check_coverages([0.9, 0.5], 9)
    message = "^--coverage: expected at most 0.888, as there are 8 validation images, got 0.9$"
    with pytest.raises(UserError, match=message):
        check_coverages([0.5, 0.9], 8)


@pytest.mark.parametrize("count, coverage", [(19, 0.9), (60, 0.7)])
def test_sets_have_the_true_class_as_often_as_stated(count, coverage):
    pool = drawn(3000, scale=3.0)
    shares = []
    for _ in range(100):
        order = torch.randperm(len(pool.labels))
        mine, others = (
            Scored(*(part[i] for part in pool)) for i in order.split([count, 3000 - count])
        )
        found = calibrate(mine, [coverage])
        p = (others.logits / found.temperature).softmax(dim=1)
        own = p.gather(1, others.labels.view(-1, 1))
        in_set = (p > own).sum(dim=1) < set_sizes(p, found.thresholds[coverage])
        shares.append(float(in_set.double().mean()))
    # a threshold is the share's own rank, so its excess is 1 / (count + 1) at most
    assert coverage - 0.015 < np.mean(shares) < coverage + 1 / (count + 1) + 0.015


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    assert read_calibration(str(tmp_path)) == Calibration()
    written = Calibration(1.25, {0.9: 0.125, 0.95: 0.0625}, 40, {"nll": 0.5, "ece": 0.25})
    write_calibration(written, str(tmp_path))
    assert read_calibration(str(tmp_path)) == written


@pytest.mark.parametrize(
    "content, message",
    [
        ({"temperature": -1}, "temperature: expected a number above 0, got -1"),
        ({"temperature": True}, "temperature: expected a number above 0, got True"),
        ({"format": 2, "temperature": 1}, "expected format 1 or less, got 2"),
        ({"temperature": 1, "images": "x"}, "images: expected a number of images, got 'x'"),
        ({"temperature": 1, "test": {"ece": None}}, "test: expected {figure: number}, got"),
        ({"temperature": 1, "thresholds": [1]}, "thresholds: expected {coverage: probability}"),
        ({"temperature": 1, "thresholds": {"a": 0.5}}, "thresholds: expected {coverage: prob"),
        ({"temperature": 1, "thresholds": {"2": 0.5}}, "thresholds: expected {coverage: prob"),
        ({"temperature": 1, "thresholds": {"0.9": 7}}, "thresholds: expected {coverage: prob"),
    ],
)
def test_a_damaged_calibration_is_one_line(tmp_path, content, message):
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_calibration(str(tmp_path))
    assert message in str(caught.value) and "calibration.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_training_removes_the_calibration(tmp_path):
    write_calibration(Calibration(2.0), str(tmp_path))
    run_folder.begin(str(tmp_path), {}, [])
    assert not (tmp_path / "calibration.json").exists()


# A classifier with a calibration -----------------------------------------------------------------


@pytest.fixture
def calibrated(runs, tmp_path) -> Path:
    """Copy a run and give it sets of which some have both classes."""
    folder = tmp_path / "calibrated"
    shutil.copytree(runs.trained("VPT"), folder)
    classifier = Classifier.from_run(folder)
    second = [each.probabilities[1] for each in classifier.predict(pictures())]
    write_calibration(Calibration(1.0, {0.9: sorted(second)[2]}, 40), str(folder))
    return folder


def pictures() -> np.ndarray:
    return np.random.RandomState(5).randint(0, 256, (5, 16, 16, 3)).astype(np.uint8)


def test_sets_are_the_probable_classes(calibrated):
    classifier = Classifier.from_run(calibrated)
    least = classifier.record.calibration.thresholds[0.9]
    found = classifier.predict(pictures(), coverage=0.9)
    for each, whole in zip(found, classifier.predict(pictures()), strict=True):
        count = sum(p >= least for p in whole.probabilities)
        assert each.labels == whole.labels[:count]
        assert each.probabilities == whole.probabilities[:count]
    assert sorted(len(each.labels) for each in found) == [1, 1, 2, 2, 2]


def test_sets_and_temperature_are_saved_and_stated(calibrated, tmp_path):
    calibration = replace(read_calibration(str(calibrated)), temperature=2.0, test={"ece": 0.125})
    write_calibration(calibration, str(calibrated))
    classifier = Classifier.from_run(calibrated)
    classifier.save_pretrained(tmp_path / "saved")
    loaded = Classifier.from_pretrained(tmp_path / "saved")
    assert loaded.record.calibration == calibration and loaded.record.temperature == 2
    expected = classifier.predict(pictures(), coverage=0.9)
    assert loaded.predict(pictures(), coverage=0.9) == expected
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert "calibrated for the classes of the training" in card.text
    assert "for this share of pictures: 0.9." in card.text
    assert "- ece: 0.125\n" in card.text and "- nll before calibration: " in card.text
    assert 0.125 in [each.metric_value for each in card.data.eval_results]
    loaded.set_classes(["cat", "dog"])
    assert "share of pictures" not in str(loaded.generate_model_card())


def test_sets_are_of_the_own_classes_and_of_known_coverages(calibrated):
    classifier = Classifier.from_run(calibrated)
    before = classifier.predict(pictures(), coverage=0.9)
    for coverage in (0.8, "0.9", [0.9]):
        with pytest.raises(UserError, match=r"^coverage: expected one .* for \(0.9\), got "):
            classifier.stream(pictures(), coverage=coverage)
    classifier.set_classes(["blue", "red"])
    with pytest.raises(UserError, match="^coverage: expected the classes of the training"):
        classifier.stream(pictures(), coverage=0.9)
    classifier.set_classes(["green", "red"])
    found = classifier.predict(pictures(), coverage=0.9)
    assert [set(each.labels) for each in found] == [set(each.labels) for each in before]


@pytest.mark.slow
def test_other_sentences_for_the_own_classes_end_the_sets(runs, tmp_path):
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({name: [f"It is {name}."] for name in toy.COLORS}))
    node = "TRAINER.HICROPL"
    pairs = (f"{node}.FROZEN_TEXT", "descriptions", f"{node}.DESCRIPTIONS", str(texts))
    output = tmp_path / "run"
    argv = toy.command_line("HiCroPL", runs.data, runs.backbone, output, *pairs, epochs=1)
    assert train.main(argv) == 0
    write_calibration(Calibration(1.0, {0.9: 0.2}, 40), str(output))
    classifier = Classifier.from_run(output)
    names = classifier.labels
    classifier.set_classes([*names, "cat"], {"cat": ["A cat."]})
    classifier.set_classes(names)
    classifier.predict(pictures(), coverage=0.9)
    classifier.set_classes(names, {"red": ["A warm hue."]})
    with pytest.raises(UserError, match=r"calibrated for \(none\), got 0.9"):
        classifier.predict(pictures(), coverage=0.9)


def test_predict_names_the_sets(calibrated, tmp_path, capsys):
    paths = []
    for i, pixels in enumerate(pictures()):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    expected = Classifier.from_run(calibrated).predict(paths, coverage=0.9)

    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = predict.main([str(calibrated), *paths, *argv])
        return code, *capsys.readouterr()

    code, text, _ = call("--coverage", "0.9", "--format", "json")
    found = [[entry["label"] for entry in each["top"]] for each in json.loads(text)]
    assert code == 0 and found == [list(each.labels) for each in expected]
    rows = list(csv.DictReader(call("--coverage", "0.9", "--format", "csv")[1].splitlines()))
    named = [[row[f"top_{i}"] for i in (1, 2) if row[f"top_{i}"]] for row in rows]
    assert named == found
    for argv, message in (
        (["--coverage", "0.8"], "error: coverage: expected one that the run was calibrated for"),
        (["--coverage", "2"], "argument --coverage: expected a probability from 0 to 1, got '2'"),
        (["--coverage", "0.9", "--top", "3"], "not allowed with argument"),
        (["--coverage", "0.9", "--classnames", "a"], "error: coverage: expected the classes of"),
    ):
        code, text, errors = call(*argv)
        assert (code, text) == (2, "") and message in errors and errors.count("\n") == 1


# The command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory) -> tuple[Path, Path]:
    """Train a linear probe on pictures whose colors overlap; return its folder and theirs."""
    folder = tmp_path_factory.mktemp("calibrate")
    random = np.random.RandomState(0)
    for part, count in NUMBERS.items():
        for name, color in COLORS.items():
            place = folder / "pictures" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                shift = random.normal(0, 60, 3) + random.normal(0, 10, (16, 16, 3))
                pixels = np.clip(np.array(color) + shift, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    places = (folder / "pictures", runs.backbone, folder / "run")
    pairs = ("DATASET.NAME", "ImageFolder", "TEST.RECORD", "['logits']")
    assert train.main(toy.command_line("LinearProbe", *places, *pairs)) == 0
    return folder / "run", folder / "pictures"


def logits_of(classifier: Classifier, folder: Path) -> tuple[Tensor, Tensor]:
    """Compute those of the pictures in a folder with one folder for each class."""
    paths = [(path, classifier.labels.index(path.parent.name)) for path in folder.glob("*/*.png")]
    batch = torch.stack([classifier.preprocess(path) for path, _ in paths])
    return classifier.logits(batch).double(), torch.tensor([label for _, label in paths])


def test_the_command_fits_to_validation_images_and_measures_on_test_images(
    trained, tmp_path, capsys
):
    run, data = trained
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    for source in (run, tmp_path / "run"):  # the second without predictions, and other images
        if source != run:
            shutil.copytree(run, source)
            (source / "predictions.npz").unlink()
        root = [] if source == run else ["--root", str(moved)]
        capsys.readouterr()
        assert main([str(source), "--coverage", "0.9", "0.6", *root]) == 0
        text = capsys.readouterr().out
        found = read_calibration(str(source))
        classifier = Classifier.from_run(source)
        assert classifier.record.temperature == found.temperature != 1
        logits, labels = logits_of(classifier, data / "val")
        expected = fit_temperature(logits, labels)
        assert found.temperature == pytest.approx(expected, rel=1e-3) and found.images == 60
        p = (logits / expected).softmax(dim=1)
        for coverage in (0.9, 0.6):
            assert found.thresholds[coverage] == pytest.approx(
                threshold(p, labels, coverage), rel=1e-3
            )
        logits, labels = logits_of(classifier, data / "test")
        assert found.test["nll"] == pytest.approx(nll(logits / expected, labels), abs=2e-3)
        before = json.loads((run / "results.json").read_text())
        rows = [line.split() for line in text.splitlines()]
        assert [row[0] for row in rows[2:6]] == ["validation"] * 2 + ["test"] * 2
        assert float(rows[4][5]) == pytest.approx(before["ece"], abs=2e-3)
        assert float(rows[5][5]) == pytest.approx(found.test["ece"], abs=1e-4)
        assert ece(logits, labels) == pytest.approx(before["ece"], abs=2e-3)
        p = (logits / found.temperature).softmax(dim=1)
        sizes = set_sizes(p, found.thresholds[0.9])
        own = p.gather(1, labels.view(-1, 1))
        covered = 100 * ((p > own).sum(dim=1) < sizes).double().mean()
        assert rows[10][0] == "0.9"
        assert float(rows[10][2].rstrip("%")) == pytest.approx(float(covered), abs=0.06)
        assert float(rows[10][3]) == pytest.approx(float(sizes.double().mean()), abs=0.006)
        assert "The run chose its model by the validation images" in text  # a linear probe's C


def test_bad_input_is_one_line_and_writes_nothing(runs, trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    (run / "calibration.json").unlink(missing_ok=True)
    toy_run = runs.trained("VPT")
    capsys.readouterr()  # of the training, where this test is the first that asks for it
    for argv, message in (
        ([str(tmp_path / "none")], "none': expected an existing folder"),
        ([str(tmp_path)], "expected a folder with config.yaml, got another"),
        ([str(run), "--coverage", "1"], "expected a number between 0 and 1, got '1'"),
        ([str(run), "--coverage", "90%"], "expected a number between 0 and 1, got '90%'"),
        ([str(run), "--coverage", "0.9", "0.99"], "at most 0.983, as there are 60 validation"),
        ([str(run), "--root", str(tmp_path / "no")], str(tmp_path / "no")),
        ([str(run), "--root", str(runs.data / "test")], "was trained on other classes"),
        ([str(toy_run)], "expected a dataset with validation images, got 'ColourPatches'"),
    ):
        code = main(argv)
        text, errors = capsys.readouterr()
        assert code == 2 and text == "" and message in errors and errors.count("\n") == 1, errors
        assert errors.startswith("error: ")
    assert not (run / "calibration.json").exists()
    assert not (toy_run / "calibration.json").exists()


def test_validation_images_that_are_test_images_are_refused(trained):
    items = [Datum(str(path), 0, classname="red") for path in trained[1].glob("*/red/*.png")]
    check_validation(DatasetBase(train_x=items, val=items[:3], test=items[3:]), "D")
    with pytest.raises(UserError, match="whose validation images are not test images, got 'D'$"):
        check_validation(DatasetBase(train_x=items, val=items[:3], test=items[2:]), "D")
    with pytest.raises(UserError, match="expected a dataset with validation images, got 'D'$"):
        check_validation(SimpleNamespace(val=None), "D")
