"""ImageFolder: the user's own photos."""

from __future__ import annotations

import json
import multiprocessing
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
from datasets.image_folder import files_below

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


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int16])
def test_values_without_a_usual_range_are_stretched(tmp_path: Path, kind: type) -> None:
    values = np.array([[-3, 0, 7], [1, 2, 5]]).astype(kind)
    path = tmp_path / "values.tiff"

    def save(values: np.ndarray) -> None:
        # Pillow cannot write all of these types that it reads
        tags = {256: 3, 257: 2, 258: 8 * values.itemsize, 262: 1, 259: 1, 273: 200, 278: 2}
        tags |= {279: values.nbytes, 339: 3 if values.dtype.kind == "f" else 2}
        data = b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little")
        for tag in sorted(tags):
            data += b"".join(
                n.to_bytes(size, "little") for n, size in ((tag, 2), (4, 2), (1, 4), (tags[tag], 4))
            )
        path.write_bytes(data.ljust(200, b"\0") + values.tobytes())

    save(values)
    expected = np.round((values.astype(float) + 3) * 25.5).astype(np.uint8)
    assert (np.asarray(read_image(str(path))) == expected[..., None]).all()
    save(np.full_like(values, 7))
    with pytest.raises(UserError, match="values.tiff' has gray values without .* all the same"):
        read_image(str(path))
    if values.dtype.kind == "f":
        for odd in (np.nan, np.inf):
            values[0, 0] = odd
            save(values)
            with pytest.raises(UserError, match="without a range, as they are not all finite"):
                read_image(str(path))


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


def test_a_part_need_not_have_every_class(tmp_path: Path) -> None:
    train = photos(tmp_path / "train")
    for name, classes in (("val", 1), ("test", 2)):
        photos(tmp_path / name, tuple(COLORS)[1 : 1 + classes], count=3)
    dataset = build(tmp_path)
    assert dataset.classnames == sorted(path.name for path in train.iterdir())
    assert {item.classname for item in dataset.test} == set(tuple(COLORS)[1:3])
    assert len(dataset.test) == 6 and len(dataset.val) == 3


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


def use(root: Path, seed: int, start, answers) -> None:
    start.wait()
    answers.put(parts(build(root, seed=seed), root))


def at_once(root: Path, seeds: list[int]) -> list[dict[str, list[str]]]:
    """Build the dataset in several processes at once, one for each seed."""
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(len(seeds)), context.Queue()
    processes = [
        context.Process(target=use, args=(root, seed, start, answers), daemon=True)
        for seed in seeds
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return found


def kept_split(root: Path) -> dict[str, list[str]]:
    kept = json.loads((root / "split_image_folder.json").read_text())
    return {part: sorted(path for path, _, _ in rows) for part, rows in kept.items()}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_runs_that_start_at_once_use_the_split_that_is_kept(tmp_path: Path) -> None:
    photos(tmp_path, ["a", "b"], 10)
    assert at_once(tmp_path, [1, 2, 3, 4]) == [kept_split(tmp_path)] * 4
    before = kept_split(tmp_path)
    photos(tmp_path, ["c"], 10)
    assert at_once(tmp_path, [5, 6, 7, 8]) == [kept_split(tmp_path)] * 4
    assert all(set(before[part]) < set(kept_split(tmp_path)[part]) for part in before)
    assert sorted(os.listdir(tmp_path)) == [
        *(".checked_images.json", "a", "b", "c", "split_image_folder.json")
    ]


def test_an_image_keeps_its_part_while_it_is_missing(tmp_path: Path) -> None:
    photos(tmp_path, ["a", "b"], 10)
    before = parts(build(tmp_path), tmp_path)
    lost = tmp_path / before["test"][0]
    hidden = lost.with_name(".away")
    lost.rename(hidden)
    picture(tmp_path / "a" / "new.png")  # the file is written again
    assert before["test"][0] not in parts(build(tmp_path), tmp_path)["test"]
    hidden.rename(lost)
    after = parts(build(tmp_path), tmp_path)
    assert after == {**before, "train": sorted([*before["train"], "a/new.png"])}


def linked(root: Path) -> Path:
    """Link folders in the ways that occur, and some that never end."""
    photos(root / "root", ["a", "b"], 4)
    picture(root / "more" / "deep" / "x.png")
    picture(root / "more" / "y.png")
    a = root / "root" / "a"
    links = {
        "1_more": root / "more",
        "2_again": root / "more" / "deep",
        "3_own": a / "day two",
        "4_up": a,
        "5_root": root / "root",
        "6_everything": Path("/"),
        "7_itself": a / "7_itself",
        "8.png": a / "8.png",
    }
    for name, target in links.items():
        (a / name).symlink_to(target)
    (root / "more" / "back").symlink_to(a)
    os.mkfifo(a / "pipe.png")
    return root / "root"


def test_linked_folders_are_followed_once(tmp_path: Path, capsys) -> None:
    root = linked(tmp_path)
    found = {path for split in parts(build(root), root).values() for path in split}
    names = [f"photo {number:02d}" for number in range(3)] + ["day two/photo 03"]
    own = {path for path in found if path.startswith("a/")}
    assert {path.rpartition(".")[0] for path in own} == {
        *(f"a/{name}" for name in names),
        *("a/1_more/y", "a/1_more/deep/x"),
    }
    assert len(found) == len(own) + 4
    printed = capsys.readouterr().out
    assert "links to a folder above or one that is there already (6)" in printed
    assert "links to themselves (2)" in printed and "devices (1)" in printed


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    photos(tmp_path / "elsewhere", ["a", "b"], 4)
    (tmp_path / "root").mkdir()
    for name in ("a", "b"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert len(build(tmp_path / "root").test) == 2


def test_leftovers_of_systems_are_no_pictures(tmp_path: Path, capsys) -> None:
    photos(tmp_path, ["a", "b"], 4)
    expected = parts(build(tmp_path), tmp_path)
    capsys.readouterr()
    for name in ("a/@eaDir/1.png", "a/__MACOSX/1.png", "a/._1.png", "@eaDir/1.png"):
        picture(tmp_path / name)
    (tmp_path / "lost+found").mkdir()
    assert parts(build(tmp_path), tmp_path) == expected
    assert ": ._* (1), @eaDir (1), __MACOSX (1)\n" in capsys.readouterr().out


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    photos(tmp_path, ["a", "b"], 8)
    locked = str(tmp_path / "a" / "day two")
    scandir = os.scandir

    def deny(path):
        if path == locked:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UserError, match=f"cannot read '{locked}': Permission denied; make it"):
        build(tmp_path)
    dataset = build(tmp_path, "DATALOADER.ON_ERROR", "skip")
    assert f"Left out: cannot read '{locked}': Permission denied" in capsys.readouterr().out
    assert sum(map(len, parts(dataset, tmp_path).values())) == 14
    monkeypatch.undo()
    (tmp_path / "b" / "drive").symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match="cannot read '.*b/drive': No such file or directory"):
        build(tmp_path)
    (tmp_path / "b" / "drive").unlink()
    (tmp_path / "c").symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match=f"cannot read '{tmp_path}/c': the link leads nowhere"):
        build(tmp_path)
    (tmp_path / "c").unlink()
    (tmp_path / "b" / "lost.png").symlink_to(tmp_path / "lost.png")
    with pytest.raises(UserError, match="cannot read '.*b/lost.png': No such file or directory"):
        build(tmp_path)


def test_files_come_in_the_same_order_each_time(tmp_path: Path) -> None:
    root = linked(tmp_path)
    listed = [list(files_below(str(root / "a"), Counter(), print)) for _ in range(2)]
    assert listed[0] == listed[1] and len(listed[0]) == 4 + 2 + 1  # and Thumbs.db


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


def split(**given: list) -> str:
    return json.dumps({"train": [], "val": [], "test": [], **given})


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
        ("classnames.json", '{"a": null, "b": "c"}', "is not {folder: class name}"),
        ("classnames.json", '{"a": ["b"]}', "is not {folder: class name}"),
        ("classnames.json", '{"a": "b\\u001b[31m"}', r"class 'b\x1b[31m': its name has control"),
        ("classnames.json", '{"a": "\\ud800"}', "is not valid JSON"),
        ("classnames.json", '{"\\n": "c"}', r"names the folder '\n', which"),
        ("classnames.json", '{"ü": "c", "u\\u0308": "d"}', "names the folder 'ü' twice"),
        ("a\x1b[31m/1.txt", "", r"class folder 'a\x1b[31m': its name has control characters"),
        ("templates.txt", "a {}.\nb {}.\na {}.\n", "'a {}.' is there 2 times"),
        ("templates.txt", "a \x1b[31m {}", r"template 'a \x1b[31m {}': its name has"),
        ("templates.txt", "a photo\n", "'a photo' must have one {}"),
        ("templates.txt", "{} or {}\n", "must have one {}"),
        ("templates.txt", "a {} {x}\n", "no other braces"),
        ("templates.txt", "\n", "has no template"),
        ("split_image_folder.json", "[]", "'train' is not a list of [path, label, class name]; "),
        ("split_image_folder.json", split(test=[["a/1.png", 0, "a"]] * 2), "'a/1.png' twice"),
        (
            "split_image_folder.json",
            split(train=[["a/1.png", 0, "a"]], test=[["./a/1.png", 0, "a"]]),
            "'train' and 'test' both list 'a/1.png'; delete it",
        ),
        ("split_image_folder.json", split(val=[["/a.png", 0, "a"]]), "'/a.png' is outside of"),
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
