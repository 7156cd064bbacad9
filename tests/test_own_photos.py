"""The user's own photos, from a folder to a trained and evaluated HiCroPL."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import train

COMMAND = ["--trainer", "HiCroPL", "--dataset-config-file", "configs/datasets/image_folder.yaml"]
METHOD = "configs/trainers/HiCroPL/vit_mini.yaml"
CLASSES = {
    "red circle": "red",
    "Blue_Square": "blue",
    "green triangle": "green",
    "gelber Stern": "yellow",
    "黒い四角": "black",
}
NAMES = {"gelber Stern": "yellow star", "黒い四角": "black square"}
SIDES = {"green triangle": 3, "gelber Stern": 5}


def draw(folder: str, number: int) -> Image.Image:
    """Draw a shape somewhere on a light background, 60 by 40 pixels."""
    random = np.random.default_rng([number, *folder.encode()])
    image = Image.new("RGB", (60, 40), tuple(random.integers(180, 240, 3).tolist()))
    x, y, radius = random.integers(22, 38), random.integers(17, 23), random.integers(11, 16)
    pen, fill = ImageDraw.Draw(image), CLASSES[folder]
    if folder == "red circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
    else:
        pen.regular_polygon((int(x), int(y), int(radius)), SIDES.get(folder, 4), fill=fill)
    return image


def save(image: Image.Image, path: Path, kind: int) -> None:
    """Save the image in one of ten ways; ``path`` has no suffix yet."""
    turned = Image.Exif()
    turned[0x0112] = 6  # to be rotated clockwise by 90 degrees
    glass = image.convert("RGBA")
    glass.paste((0, 0, 0, 0), (0, 0, 60, 4))
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    for number, (suffix, picture, options) in enumerate(
        (
            ("jpg", image, {}),
            ("JPG", image.convert("CMYK"), {}),
            ("JPEG", image.rotate(90, expand=True), {"exif": turned}),
            ("png", image.convert("P", palette=Image.Palette.ADAPTIVE), {}),
            ("PNG", glass, {}),
            ("deep.png", deep, {}),
            ("webp", glass, {}),
            ("bmp", image, {}),
            ("tif", image.convert("CMYK"), {}),
            ("TIFF", image, {}),
        )
    ):
        if number == kind:
            picture.save(f"{path}.{suffix}", **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """5 classes, 20 pictures each, names with blanks and accents, folders within folders."""
    root = tmp_path / "my photos"
    for folder in CLASSES:
        for number in range(20):
            place = root / folder / "2. día" / "früh" if number >= 15 else root / folder
            place.mkdir(parents=True, exist_ok=True)
            save(draw(folder, number), place / f"Photo n° {number:02d}", number % 10)
    (root / "classnames.json").write_text(json.dumps(NAMES), encoding="utf-8")
    return root


@pytest.fixture
def broken(photos: Path) -> list[Path]:
    """Three of the pictures: an empty one, one cut off, and one that is a text."""
    folder = photos / "red circle"
    paths = [folder / f"Photo n° {name}" for name in ("00.jpg", "10.jpg", "04.PNG")]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    paths[2].write_text("no picture")
    return paths


def run(photos: Path, output: Path, *options: str) -> int:
    command = [*COMMAND, "--config-file", METHOD, "--seed", "1", "--output-dir", str(output)]
    few = ["DATASET.ROOT", str(photos), "DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "3"]
    few += ["DATALOADER.TRAIN_X.BATCH_SIZE", "10"]
    return train.main([*command, *few, *options])


def test_one_command_trains_and_evaluates(
    photos: Path, broken: list[Path], tmp_path: Path, capsys
) -> None:
    assert run(photos, tmp_path / "run", "DATALOADER.ON_ERROR", "skip") == 0
    printed, errors = capsys.readouterr()
    assert not errors
    assert "Left out 3 of 100 images" in printed
    assert all(f"'{path}'" in printed for path in broken)
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["trainer"] == "HiCroPL" and results["total"] == 19  # a fifth of each class
    names = ["Blue_Square", "yellow star", "green triangle", "red circle", "black square"]
    assert list(results["per_class_accuracy"]) == names
    assert results["accuracy"] > 50  # by chance: 20
    split = json.loads((photos / "split_image_folder.json").read_text(encoding="utf-8"))
    named = {photos / path for part in split.values() for path, _, _ in part}
    assert len(named) == 97 and all(path.is_file() for path in named)
    assert not named & set(broken)


def test_broken_photos_stop_the_run_in_one_line(
    photos: Path, broken: list[Path], tmp_path: Path, capsys
) -> None:
    before = sorted(photos.rglob("*"))
    assert run(photos, tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 3 of 100 images cannot be read: ")
    assert all(f"'{path}'" in line for path in broken)
    assert line.endswith("DATALOADER.ON_ERROR skip to leave them out")
    assert sorted(photos.rglob("*")) == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.txt"]


def test_settings_without_a_file_of_the_method_are_those_for_few_shots() -> None:
    def settings(*options: str) -> dict[str, object]:
        cfg = train.setup_cfg(train.build_parser().parse_args([*COMMAND, *options]))
        return {
            f"{node}.{key}": value
            for node in ("INPUT", "OPTIM", "MODEL", "DATALOADER")
            for key, value in cfg[node].items()
        } | {f"HICROPL.{key}": value for key, value in cfg.TRAINER.HICROPL.items()}

    file = "configs/trainers/HiCroPL/vit_b16_c2_ep50_batch32_16ctx_few_shot.yaml"
    alone, with_file = settings(), settings("--config-file", file)
    assert alone.pop("DATALOADER.TEST") != with_file.pop("DATALOADER.TEST")  # for small memories
    assert alone == with_file
    assert alone["HICROPL.FROZEN_TEXT"] == "dataset_templates" and alone["INPUT.UPRIGHT"] is True


def test_descriptions_of_ones_own_classes(photos: Path, tmp_path: Path, capsys) -> None:
    file = photos / "descriptions.json"
    options = ["TRAINER.HICROPL.FROZEN_TEXT", "descriptions"]
    options += ["TRAINER.HICROPL.DESCRIPTIONS", str(file), "OPTIM.MAX_EPOCH", "1"]
    names = ["red circle", "Blue_Square", "green triangle", "yellow star", "black square"]
    texts = {name: [f"a drawing of a {name} on paper."] for name in names}
    file.write_text(json.dumps(dict(list(texts.items())[:4])), encoding="utf-8")
    assert run(photos, tmp_path / "run", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line and "black square" in line
    file.write_text(json.dumps(texts), encoding="utf-8")
    assert run(photos, tmp_path / "run", *options) == 0
    assert "* total: 20" in capsys.readouterr().out
