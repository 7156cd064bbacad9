"""Damaged files of every kind, through the command line: one line that names the file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import datasets
import train
import trainers
from dassl.engine import resume
from dassl.utils import convert_checkpoint
from tests.dassl import toys
from tests.embedded import WEIGHTS

assert datasets and trainers  # they register themselves
pytestmark = pytest.mark.slow

CONFIGS = Path(train.__file__).parent / "configs"
TEXTS = {
    "empty": b"",
    "blank": b" \n\t\n",
    "null": b"null",
    "number": b"3",
    "list": b"[1, [2]]",
    "text": b'"a"',
    "open": b'{"a": [',
    "bytes": bytes(range(256)),
    "zeros": bytes(99),
    "latin": b'{"\xe9": "\xe9"}',
    "deep": b"[" * 200_000,
    "twice": b'{"red": "x", "red": "y"}',
    "number without end": b'{"red": 1e400}',
    "half a character": b'{"red": "\\ud800"}',
}
BINARIES: dict[str, Any] = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "signature": lambda data: data[:4],
    "quarter": lambda data: data[: len(data) // 4],
    "half": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-1],
    "first byte": lambda data: data[1:],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"version https://git-lfs.github.com/spec/v1\n",
    "middle": lambda data: data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :],
    "lines": lambda data: data.replace(b"\n", b"\r\n").replace(b"\0\0", b"\0", 1),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    generator = np.random.default_rng(0)
    for name in ("blue", "red"):
        for number in range(10):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    (root / "classnames.json").write_text('{"red": "dark red"}')
    (root / "templates.txt").write_text("a photo of a {}.\nthe {}.\n")
    (root.parent / "texts.json").write_text('{"dark red": ["It is red."], "blue": ["As the sky."]}')
    return root


def toy(photos: Path, output: Path, *options: str) -> list[str]:
    """Return the command line of a toy run on the photos."""
    own = {"DATASET.NAME": "ImageFolder", "DATASET.NUM_SHOTS": "2", "TRAIN.CHECKPOINT_FREQ": "1"}
    own |= {"DATALOADER.TRAIN_X.BATCH_SIZE": "2", "OPTIM.MAX_EPOCH": "3"}
    return toys.cli(photos, output, *options, *(word for pair in own.items() for word in pair))


def method(photos: Path, output: Path, name: str, *options: str) -> list[str]:
    """Return the command line of a short run of a method on the photos."""
    files = ("--config-file", f"{CONFIGS}/trainers/{name}/vit_mini.yaml")
    files = ("--dataset-config-file", f"{CONFIGS}/datasets/image_folder.yaml", *files)
    return [
        *("--trainer", name, "--root", str(photos), "--output-dir", str(output), "--seed", "1"),
        *(*files, *options, "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1"),
        *("DATALOADER.NUM_WORKERS", "0"),
    ]


@pytest.fixture(scope="module")
def world(photos, tmp_path_factory):
    """Make a finished and an interrupted run, and weights files."""
    folder = tmp_path_factory.mktemp("runs")
    assert train.main(toy(photos, folder / "finished")) == 0
    assert train.main(method(photos, folder / "coop", "CoOp")) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "SAVE_INTERVAL", 0.0)
        patch.setattr(toys.ToyTrainer, "stop_at", (3, 1))
        assert train.main(toy(photos, folder / "interrupted")) == 130
    state = torch.load(WEIGHTS, weights_only=True)
    shutil.copy(WEIGHTS, folder / "weights.pt")
    save_file(
        {name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors"
    )
    (folder / "toy.yaml").write_text("OPTIM:\n  LR: 0.02\n")
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("log.txt", ".checked_images"))
    }


def refused(arguments: list[str], damaged: Path, capsys, places: list[Path]) -> None:
    """Run a command that is to end with one line that names the file, and to change nothing."""
    capsys.readouterr()
    before = [snapshot(place) for place in places]
    code = train.main(arguments)
    printed, errors = capsys.readouterr()
    assert code == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith("error: ") and str(damaged) in line and line.isprintable(), line
    assert len(line) < 1000 and "Traceback" not in printed and "weights_only" not in line
    assert [snapshot(place) for place in places] == before


def files_of(photos: Path, world: Path, output: Path) -> dict[str, tuple[Path, list[str]]]:
    """Return for each kind of file one that is there and a command that reads it."""
    finished, interrupted = world / "finished", world / "interrupted"
    start = world / "coop" / "prompt_learner" / "model.pth.tar-1"
    evaluate = toy(photos, output, "--eval-only", "--model-dir", str(finished))
    hicropl = ("TRAINER.HICROPL.FROZEN_TEXT", "descriptions")
    texts = photos.parent / "texts.json"
    return {
        "checkpoint": (finished / "toy_net" / "model.pth.tar-3", evaluate),
        "file checkpoint": (finished / "toy_net" / "checkpoint", evaluate),
        "config.yaml of a run": (interrupted / "config.yaml", toy(photos, interrupted)),
        "resume file": (interrupted / "resume.pth.tar", toy(photos, interrupted)),
        "config file": (
            world / "toy.yaml",
            toy(photos, output, "--config-file", str(world / "toy.yaml")),
        ),
        "dataset config file": (
            world / "toy.yaml",
            toy(photos, output, "--dataset-config-file", str(world / "toy.yaml")),
        ),
        "split file": (photos / "split_image_folder.json", toy(photos, output)),
        "few-shot file": (
            next(photos.glob("split_fewshot/*.json")),
            toy(photos, output),
        ),
        "class names": (photos / "classnames.json", toy(photos, output)),
        "templates": (photos / "templates.txt", toy(photos, output)),
        "picture": (photos / "red" / "3.png", toy(photos, output)),
        "weights": (
            world / "weights.pt",
            method(photos, output, "CoOp", "--backbone", str(world / "weights.pt")),
        ),
        "safetensors": (
            world / "weights.safetensors",
            method(photos, output, "CoOp", "--backbone", str(world / "weights.safetensors")),
        ),
        "teacher": (
            world / "weights.pt",
            method(
                photos, output, "HiCroPL", "TRAINER.HICROPL.TEACHER_NAME", f"{world}/weights.pt"
            ),
        ),
        "start": (
            start,
            method(photos, output, "CoOp", "MODEL.INIT_WEIGHTS", str(start)),
        ),
        "descriptions": (
            texts,
            method(photos, output, "HiCroPL", *hicropl, "TRAINER.HICROPL.DESCRIPTIONS", str(texts)),
        ),
    }


def without(damages: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: damage for name, damage in damages.items() if name not in names}


KINDS = {
    **dict.fromkeys(("checkpoint", "resume file", "weights", "teacher", "start"), BINARIES),
    "safetensors": without(BINARIES, "middle"),  # the format has no checksums
    "picture": without(BINARIES, "last byte"),  # all of the picture is there
    **dict.fromkeys(("config file", "dataset config file"), without(TEXTS, "empty", "null")),
    **dict.fromkeys(("class names", "split file", "few-shot file", "descriptions"), TEXTS),
    **dict.fromkeys(("file checkpoint", "config.yaml of a run", "templates"), TEXTS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_one_line_that_names_it(photos, world, tmp_path, capsys, kind):
    path, command = files_of(photos, world, tmp_path / "out")[kind]
    good = path.read_bytes()
    try:
        for damage in KINDS[kind].values():
            path.write_bytes(damage if isinstance(damage, bytes) else damage(good))
            refused(command, path, capsys, [photos, world])
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("kind", without(KINDS, "picture", "few-shot file"))
def test_a_folder_in_the_place_of_a_file_is_one_line_that_names_it(
    photos, world, tmp_path, capsys, kind
):
    path, command = files_of(photos, world, tmp_path / "out")[kind]
    aside = path.with_name("aside")
    path.rename(aside)
    path.mkdir()
    try:
        # a checkpoint is missed where the file checkpoint names it
        refused(command, path.parent if kind == "checkpoint" else path, capsys, [photos, world])
    finally:
        path.rmdir()
        aside.rename(path)


@pytest.mark.parametrize("kind", without(KINDS, "resume file", "config.yaml of a run"))
def test_the_whole_file_is_read(photos, world, tmp_path, kind):
    _, command = files_of(photos, world, tmp_path / "out")[kind]
    assert train.main(command) == 0


@pytest.mark.parametrize("damage", BINARIES)
def test_a_damaged_file_is_not_converted(world, tmp_path, capsys, damage):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(BINARIES[damage]((world / "finished/toy_net/model.pth.tar-3").read_bytes()))
    assert convert_checkpoint.main([str(old), str(new)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(old) in line and "weights_only" not in line
    assert not new.exists()


def test_every_cut_of_a_run_s_config_is_noticed(photos, world, capsys):
    path = world / "interrupted" / "config.yaml"
    good = path.read_bytes()
    try:
        lines = good.splitlines(keepends=True)
        for count in range(len(lines)):
            path.write_bytes(b"".join(lines[:count]))
            capsys.readouterr()
            assert train.main(toy(photos, world / "interrupted")) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: ") and str(path) in line
    finally:
        path.write_bytes(good)
