"""ImageFolder: the user's own photos."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from yacs.config import CfgNode

import datasets
from dassl.config import get_cfg_default
from dassl.data.data_manager import DatasetWrapper
from dassl.data.datasets import build_dataset
from dassl.errors import UserError
from dassl.utils import read_image

COLORS = {
    "red car": (200, 30, 30),
    "green_leaf": (30, 180, 40),
    "Blue": (20, 40, 220),
    "gelbe Blüte": (230, 220, 40),
    "黒": (5, 5, 5),
}


def config(root: Path, *options: object, shots: int = -1, seed: int = 1) -> CfgNode:
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["DATASET.NAME", "ImageFolder", "DATASET.ROOT", str(root), "DATASET.NUM_SHOTS", shots]
        + ["SEED", seed, *options]
    )
    return cfg


def build(root: Path, *options: object, shots: int = -1, seed: int = 1):
    random.seed(seed)
    return build_dataset(config(root, *options, shots=shots, seed=seed))


def paths(items, root: Path) -> list[str]:
    return [Path(item.impath).relative_to(root).as_posix() for item in items]


def parts(dataset, root: Path) -> dict[str, list[str]]:
    return {
        part: paths(items, root)
        for part, items in (
            ("train", dataset.train_x),
            ("val", dataset.val),
            ("test", dataset.test),
        )
    }


def picture(path: Path, color=(100, 100, 100), mode: str = "RGB", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(len(path.name)).randint(-20, 20, (32, 32, 3))
    pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def photos(root: Path, classes=tuple(COLORS), count: int = 20) -> Path:
    """Save pictures in many formats, some of them in subfolders of the class folder."""
    kinds = [
        ("jpg", "RGB"),
        ("JPG", "CMYK"),
        ("jpeg", "L"),
        ("png", "RGBA"),
        ("PNG", "P"),
        ("webp", "RGB"),
        ("bmp", "RGB"),
        ("tiff", "CMYK"),
        ("TIF", "RGB"),
    ]
    for name in classes:
        for number in range(count):
            suffix, mode = kinds[number % len(kinds)]
            place = root / name / "day two" if number % 4 == 3 else root / name
            picture(place / f"photo {number:02d}.{suffix}", COLORS.get(name, (90, 90, 90)), mode)
        (root / name / "Thumbs.db").write_text("no image")
        (root / name / ".hidden.jpg").write_text("no image")
    return root


def test_classes_and_split(tmp_path: Path) -> None:
    photos(tmp_path)
    dataset = build(tmp_path)
    assert dataset.classnames == sorted(COLORS)
    found = parts(dataset, tmp_path)
    everything = [path for split in found.values() for path in split]
    assert len(set(everything)) == len(everything) == 100
    for items, count in ((dataset.train_x, 14), (dataset.val, 2), (dataset.test, 4)):
        assert Counter(item.label for item in items) == dict.fromkeys(range(5), count)
        assert all(Path(i.impath).relative_to(tmp_path).parts[0] == i.classname for i in items)
    # kept, whatever was drawn before and whatever the seed is
    random.seed(5)
    assert parts(build(tmp_path, seed=2), tmp_path) == found
    shutil.copytree(tmp_path, tmp_path.parent / "other")
    (tmp_path.parent / "other" / "split_image_folder.json").unlink()
    again = build(tmp_path.parent / "other", seed=1)
    assert parts(again, tmp_path.parent / "other") == found
    (tmp_path / "split_image_folder.json").unlink()
    assert parts(build(tmp_path, seed=2), tmp_path) != found


def test_every_format_is_read(tmp_path: Path) -> None:
    photos(tmp_path, ["Blue", "red car"], 18)
    dataset = build(tmp_path)
    items = [*dataset.train_x, *dataset.val, *dataset.test]
    assert len(items) == 36
    for item in items:
        mean = np.asarray(read_image(item.impath)).mean((0, 1))
        if not item.impath.endswith(".jpeg"):  # those are gray
            assert np.abs(mean - COLORS[item.classname]).max() < 45


def test_16_bits_and_upright(tmp_path: Path) -> None:
    half = np.zeros((8, 8), np.uint16)
    half[:, 4:] = 257 * 128
    Image.fromarray(half).save(tmp_path / "deep.png")
    assert np.asarray(read_image(str(tmp_path / "deep.png")))[0, [0, 7], 0].tolist() == [0, 128]

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    for name in ("a", "b"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.new("RGB", (40, 20), "white")
            image.save(tmp_path / "root" / name / f"{number}.jpg", exif=exif)
    for options, size in (((), (40, 20)), (("INPUT.UPRIGHT", True), (20, 40))):
        cfg = config(tmp_path / "root", *options)
        dataset = build_dataset(cfg)
        assert DatasetWrapper(cfg, dataset.train_x)[0]["img"].size == size
    file = Path(datasets.__file__).parents[1] / "configs" / "datasets" / "image_folder.yaml"
    assert yaml.safe_load(file.read_text())["INPUT"]["UPRIGHT"] is True


def test_names_and_templates(tmp_path: Path) -> None:
    photos(tmp_path, ["a", unicodedata.normalize("NFD", "Blüte")], 4)
    names = {"Blüte": "yellow flower"}  # the folder's ü is written in two signs
    (tmp_path / "classnames.json").write_text(json.dumps(names, ensure_ascii=False))
    text = "a holiday photo of a {}.\n\nmy {}\n"
    (tmp_path / "templates.txt").write_text(text, encoding="utf-8-sig")
    dataset = build(tmp_path)
    assert sorted(dataset.classnames) == ["a", "yellow flower"]
    assert dataset.templates == ["a holiday photo of a {}.", "my {}"]
    (tmp_path / "templates.txt").unlink()
    assert build(tmp_path).templates == ["a photo of a {}."]


@pytest.mark.parametrize("given", [("train",), ("train", "val"), ("train", "test"), None])
def test_parts_that_have_folders(tmp_path: Path, given) -> None:
    given = given or ("train", "val", "test")
    for part in given:
        photos(tmp_path / part, ["a", "b"], 10)
    found = parts(build(tmp_path), tmp_path)
    for part in given[1:]:
        assert len(found[part]) == 20
        assert all(path.startswith(f"{part}/") for path in found[part])
    drawn = set(found) - set(given)
    for part in drawn:
        assert len(found[part]) in (2, 4)
        assert all(path.startswith("train/") for path in found[part])
    assert sum(len(found[part]) for part in {"train", *drawn}) == 20
    assert (tmp_path / "split_image_folder.json").exists() == bool(drawn)
    assert parts(build(tmp_path, seed=9), tmp_path) == found


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    photos(tmp_path, ["bus", "train"], 4)
    assert build(tmp_path).classnames == ["bus", "train"]


def test_images_that_come_and_go(tmp_path: Path, capsys) -> None:
    photos(tmp_path, ["a", "b"], 10)
    before = parts(build(tmp_path), tmp_path)
    (tmp_path / before["test"][0]).unlink()
    (tmp_path / before["train"][0]).unlink()
    picture(tmp_path / "a" / "new.png")
    photos(tmp_path, ["c"], 10)
    after = parts(build(tmp_path, seed=4), tmp_path)
    assert "2 images of" in capsys.readouterr().out
    assert after == parts(build(tmp_path), tmp_path)
    known = {part: [path for path in split if path[0] != "c"] for part, split in after.items()}
    assert set(known["test"]) == set(before["test"][1:])
    assert set(known["val"]) == set(before["val"])
    assert set(known["train"]) == {*before["train"][1:], "a/new.png"}
    assert [len(after[part]) - len(known[part]) for part in after] == [7, 1, 2]


def test_share_of_validation_images(tmp_path: Path) -> None:
    photos(tmp_path / "none", ["a", "b"], 10)
    assert not build(tmp_path / "none", "DATASET.VAL_PERCENT", 0.0).val
    photos(tmp_path / "half", ["a", "b"], 10)
    assert len(build(tmp_path / "half", "DATASET.VAL_PERCENT", 0.5).val) == 2 * 4
    for share in (-0.1, 1.0):
        with pytest.raises(
            UserError, match=rf"VAL_PERCENT: expected a number in \[0, 1\), got {share}"
        ):
            build(tmp_path / "half", "DATASET.VAL_PERCENT", share)


def test_files_that_are_not_images_are_counted(tmp_path: Path, capsys) -> None:
    photos(tmp_path, ["a", "b"], 4)
    (tmp_path / "b" / "IMG_1.HEIC").write_bytes(b"")
    build(tmp_path)
    assert ".tiff: .db (2), .heic (1)\n" in capsys.readouterr().out


def test_few_shots_and_halves(tmp_path: Path) -> None:
    photos(tmp_path)
    dataset = build(tmp_path, shots=3)
    assert Counter(item.label for item in dataset.train_x) == dict.fromkeys(range(5), 3)
    assert (tmp_path / "split_fewshot" / "shot_3-seed_1.json").exists()
    assert parts(build(tmp_path, shots=3), tmp_path) == parts(dataset, tmp_path)
    base = build(tmp_path, "DATASET.SUBSAMPLE_CLASSES", "base", shots=3)
    new = build(tmp_path, "DATASET.SUBSAMPLE_CLASSES", "new", shots=3)
    assert (base.num_classes, base.classnames + new.classnames) == (3, sorted(COLORS))


def damaged(tmp_path: Path) -> list[Path]:
    photos(tmp_path)
    first, second, third = (tmp_path / "Blue" / f"photo {number:02d}" for number in (0, 1, 4))
    broken = [first.with_suffix(".jpg"), second.with_suffix(".JPG"), third.with_suffix(".PNG")]
    broken[0].write_bytes(b"")
    broken[1].write_bytes(broken[1].read_bytes()[:-100])
    broken[2].write_text("no picture")
    return broken


def test_broken_images_stop_the_run_or_are_left_out(tmp_path: Path, capsys) -> None:
    broken = damaged(tmp_path)
    with pytest.raises(UserError, match="3 of 100 images cannot be read") as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value) and "DATALOADER.ON_ERROR skip" in str(caught.value)
    assert all(f"'{path}'" in str(caught.value) for path in broken)
    assert not (tmp_path / "split_image_folder.json").exists()
    dataset = build(tmp_path, "DATALOADER.ON_ERROR", "skip")
    printed = capsys.readouterr().out
    assert "Left out 3 of 100 images" in printed
    assert all(f"'{path}'" in printed for path in broken)
    found = {path for split in parts(dataset, tmp_path).values() for path in split}
    assert len(found) == 97 and not found & set(paths(map(Item, broken), tmp_path))
    with pytest.raises(UserError, match="DATALOADER.ON_ERROR: .*got 'ignore'"):
        build(tmp_path, "DATALOADER.ON_ERROR", "ignore")


class Item:
    def __init__(self, path: Path) -> None:
        self.impath = str(path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classnames.json", "[]", "is not {folder: class name}"),
        ("classnames.json", '{"a": ""}', "is not {folder: class name}"),
        ("classnames.json", '{"z": "zoo"}', "'z', which does not exist"),
        (
            "classnames.json",
            '{"a": "one name", "b": "one_name"}',
            "'a' and 'b' have the same class name",
        ),
        ("classnames.json", '{"b": "A"}', "'a' and 'b' have the same class name"),
        ("templates.txt", "a photo\n", "'a photo' must have one {}"),
        ("templates.txt", "{} or {}\n", "must have one {}"),
        ("templates.txt", "a {} {x}\n", "no other braces"),
        ("templates.txt", "\n", "has no template"),
        ("split_image_folder.json", "{}", "[path, label, class name]; delete it"),
        ("c/1.txt", "empty class", "c' has no readable image"),
    ],
)
def test_one_line_for_damage(tmp_path: Path, file: str, content: str, message: str) -> None:
    photos(tmp_path, ["a", "b"], 4)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_line_for_folders(tmp_path: Path) -> None:
    photos(tmp_path / "few", ["a", "b"], 1)
    photos(tmp_path / "alone", ["a"], 4)
    photos(tmp_path / "alone_in_part" / "train", ["a"], 4)
    photos(tmp_path / "called" / "train", ["a", "b"], 4)
    photos(tmp_path / "called" / "Valid", ["a", "b"], 4)
    os.makedirs(tmp_path / "no_utf_8" / "b")
    photos(tmp_path / "no_utf_8", ["a"], 2)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/no_utf_8/b/\xe9.jpg")).write_bytes(b"")
    photos(tmp_path / "no_train" / "test", ["a"], 2)
    photos(tmp_path / "more" / "train", ["a", "c"], 4)
    photos(tmp_path / "more" / "test", ["a", "b"], 2)
    photos(tmp_path / "both", ["train", "test", "a"], 2)
    os.makedirs(tmp_path / "empty" / "split_fewshot")
    for name, message in (
        ("few", "class 'a' has 1 images: too few to train and to test"),
        ("no_train", "has a folder 'test' but no 'train'"),
        ("more", "'b' is in '.*' but not in 'train'"),
        ("both", "'test' and 'train' next to 'a'"),
        ("empty", "contains no class folders"),
        ("alone", "only the class folder 'a'; a classifier needs two"),
        ("alone_in_part", "train' contains only the class folder 'a'"),
        ("called", "folders 'Valid', 'train': parts must be named 'train', 'val' and 'test'"),
        ("no_utf_8", r"b/\\udce9.jpg': its name has control characters or is not UTF-8"),
    ):
        with pytest.raises(UserError, match=message):
            build(tmp_path / name)
