"""predict.py: its formats, its threshold, its exit codes, and the sorting of pictures."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
from inference.sorting import Sorter, safe_name

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write three pictures and a broken one."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "more/a.png")):
        pixels = np.random.RandomState(i).randint(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.jpg").write_text("x")
    return folder


@pytest.fixture
def call(runs, photos, capsys):
    """Call predict.py on the photos: call(argument, ...) -> (exit code, stdout, stderr)."""

    def run(*argv: str, images: tuple[str, ...] = ()) -> tuple[int, str, str]:
        images = images or (str(photos),)
        capsys.readouterr()
        code = predict.main([str(runs.trained("VPT")), *images, *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_all_formats_say_what_the_classifier_says(call, classifier, photos):
    expected = classifier.predict(photos)
    assert [bool(each.error) for each in expected] == [False, False, True, False]
    whole = json.loads(call("--format", "json")[1])
    code, lines, errors = call("--format", "jsonl")
    assert (code, errors) == (1, "1 of 4 pictures could not be classified\n")
    assert [json.loads(line) for line in lines.splitlines()] == whole
    for found, each in zip(whole, expected, strict=True):
        top = [(entry["label"], entry["probability"]) for entry in found["top"]]
        assert top == list(zip(each.labels, each.probabilities, strict=True))
        assert (found["image"], found["label"]) == (each.image, each.label)
        assert (found["probability"], found["error"] or "") == (each.probability, each.error)
    rows = list(csv.DictReader(call("--format", "csv")[1].splitlines()))
    assert [row["label"] or None for row in rows] == [each.label for each in expected]
    assert [row["error"] for row in rows] == [each.error for each in expected]
    assert float(rows[0]["probability_2"]) == expected[0].probabilities[1]
    table = call("--format", "table")[1].splitlines()
    first = expected[0]
    shares = [f"{n} {100 * p:.1f}%" for n, p in zip(first.labels, first.probabilities, strict=True)]
    assert table[0] == f"{first.image}  {first.label}  {', '.join(shares)}"
    assert table[2] == f"{expected[2].image}  error: {expected[2].error}"


def test_classes_top_and_threshold(call, photos):
    images = (str(photos / "a.png"), str(photos / "b.png"))
    names = ("--classnames", "cat", "polar bear", "dog")
    code, text, _ = call(*names, "--top", "2", "--format", "json", images=images)
    found = json.loads(text)
    assert code == 0 and {len(each["top"]) for each in found} == {2}
    assert {each["label"] for each in found} <= {"cat", "polar bear", "dog"}
    low, high = sorted(each["probability"] for each in found)
    between = str((low + high) / 2)
    found = json.loads(call(*names, "--format", "json", "--threshold", between, images=images)[1])
    assert sorted(each["label"] == "none of these" for each in found) == [False, True]
    for each in found:
        assert (each["label"] == "none of these") == (each["probability"] == low)


def test_a_saved_classifier_serves_as_well(classifier, call, photos, tmp_path, capsys):
    classifier.save_pretrained(tmp_path / "saved")
    expected = call("--format", "json")[1]
    capsys.readouterr()
    assert predict.main([str(tmp_path / "saved"), str(photos), "--format", "json"]) == 1
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("link", [False, True])
def test_pictures_are_sorted_and_nothing_is_replaced(call, photos, tmp_path, link):
    target = tmp_path / "sorted"
    argv = ["--classnames", "a/b", "--sort-into", str(target), *(["--link"] if link else [])]
    for _ in range(2):  # the second time everything is there already
        assert call(*argv)[0] == 1
        found = {path.relative_to(target).as_posix(): path for path in target.rglob("*.*")}
        assert sorted(found) == ["a_b/a (2).png", "a_b/a.png", "a_b/b.png"]
        sources = {"a_b/a.png": "a.png", "a_b/b.png": "b.png", "a_b/a (2).png": "more/a.png"}
        for name, source in sources.items():
            assert found[name].read_bytes() == (photos / source).read_bytes()
            assert found[name].is_symlink() == link
    (target / "a_b" / "b.png").unlink()
    (target / "a_b" / "b.png").write_text("mine")
    call(*argv)
    assert (target / "a_b" / "b.png").read_text() == "mine"
    assert (target / "a_b" / "b (2).png").read_bytes() == (photos / "b.png").read_bytes()


@pytest.mark.parametrize(
    "label, name",
    [
        ("cat", "cat"),
        ("../up", "_up"),
        ("..", "_"),
        ("a/b\\c:d", "a_b_c_d"),
        ("line\nbreak", "line_break"),
        ("CON", "_CON"),
        ("dots. ", "dots"),
        ("gâteau", "gâteau"),
        ("é" * 90, "é" * 50),
    ],
)
def test_folders_have_names_that_every_system_takes(label, name):
    assert safe_name(label) == name


def test_classes_never_share_a_folder(tmp_path):
    sorter = Sorter(str(tmp_path), ["a/b", "a_b", "A:B"], link=False)
    places = [Path(sorter.place_of(label)).name for label in ("a/b", "a_b", "A:B", "none of these")]
    assert places == ["a_b", "a_b (2)", "A_B (3)", "none of these"]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--top", "0"], "argument --top: expected a whole number above 0, got '0'"),
        (
            ["--threshold", "60"],
            "argument --threshold: expected a probability from 0 to 1, got '60'",
        ),
        (["--threshold", "nan"], "expected a probability from 0 to 1, got 'nan'"),
        (["--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["--classnames", "a", "a"], "class names: expected different class names, got 'a' twice"),
        (["--classnames", ""], "class names: expected text that is not blank, got ''"),
        (["--descriptions", "no.json"], "cannot read 'no.json'"),
        (["--device", "tpu9"], "device: expected one of this machine, got 'tpu9'"),
        (
            ["--precision", "fp8"],
            "precision: expected one of fp32, bf16, fp16, amp, auto, got 'fp8'",
        ),
        (["--link"], "--link: expected nothing without --sort-into, got --link"),
        (["--sort-into", "setup.py"], "--sort-into: expected a folder, got the file 'setup.py'"),
        (["--nonsense"], "unrecognized arguments: --nonsense; see"),
    ],
)
def test_bad_arguments_are_one_line(call, argv, message):
    code, text, errors = call(*argv)
    assert (code, text) == (2, "")
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1


def test_folders_that_cannot_be_used_are_one_line(call, photos, tmp_path, capsys):
    code, _, errors = call("--sort-into", str(photos / "sorted"))
    assert code == 2 and "expected a folder outside of those to read" in errors
    (tmp_path / "empty").mkdir()
    code, _, errors = call(images=(str(tmp_path / "empty"),))
    assert code == 2 and errors == f"error: there are no pictures in '{tmp_path / 'empty'}'\n"
    assert predict.main([str(tmp_path / "none"), str(photos)]) == 2
    expected = f"error: RUN: expected an existing folder, got '{tmp_path / 'none'}'\n"
    assert capsys.readouterr().err == expected


def test_help_and_typing_errors_do_not_wait_for_torch():
    code = "import sys, predict; print(predict.main(sys.argv[1:]), 'torch' in sys.modules)"
    for argv, expected in ((["--help"], "0 False"), (["--tpo", "1"], "2 False")):
        command = [sys.executable, "-c", code, *argv]
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert found.stdout.splitlines()[-1] == expected
