"""The fifteen public datasets, on miniature trees in their published layout."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import datasets
import train
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY
from dassl.errors import UserError
from tests.datasets.miniatures import (
    FOLDERS,
    JPEG,
    LAYOUTS,
    PARTS,
    VERSIONS,
    Layout,
    build,
    config,
    dtd,
    few_shot,
    fgvc_aircraft,
    imagenet,
    oxford_flowers,
    oxford_pets,
    parts,
    put,
    rows,
    stanford_cars,
    sun397,
    ucf101,
)

CONFIGS = Path(datasets.__file__).parents[1] / "configs"

each = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
each_split = pytest.mark.parametrize(
    "layout",
    [layout for layout in LAYOUTS if layout.name != "FGVCAircraft"],
    ids=lambda layout: layout.name,
)


@each
def test_the_split_is_the_public_one_for_the_seed(tmp_path: Path, layout: Layout) -> None:
    rule = layout.write(tmp_path / layout.folder)
    random.seed(7)
    expected = rule()
    assert all(len(expected[part]) >= 3 for part in PARTS)
    dataset = build(layout.name, tmp_path, seed=7)
    assert parts(dataset, layout, tmp_path) == expected
    names = {label: name for split in expected.values() for _, label, name in split}
    assert dataset.lab2cname == names
    assert dataset.classnames == [names[label] for label in range(len(names))]


@each_split
def test_a_made_split_is_kept(tmp_path: Path, layout: Layout) -> None:
    layout.write(tmp_path / layout.folder)
    first = parts(build(layout.name, tmp_path, seed=1), layout, tmp_path)
    saved = json.loads((tmp_path / layout.split_file).read_text())
    assert {part: [tuple(row) for row in saved[part]] for part in saved} == first
    assert parts(build(layout.name, tmp_path, seed=2), layout, tmp_path) == first
    (tmp_path / layout.split_file).unlink()
    assert parts(build(layout.name, tmp_path, seed=2), layout, tmp_path) != first


@each_split
def test_a_split_file_is_used_without_annotations(tmp_path: Path, layout: Layout) -> None:
    splits = layout.write(tmp_path / layout.folder)()
    for path in (tmp_path / layout.folder).rglob("*"):
        if path.suffix in (".txt", ".mat", ".json"):
            path.unlink()
    # other names and another order than any rule would give
    given = {
        part: [(path, label, f"class {label}") for path, label, _ in sorted(split, key=str)]
        for part, split in splits.items()
    }
    put(tmp_path / layout.split_file, json.dumps(given))
    text = (tmp_path / layout.split_file).read_text()
    assert parts(build(layout.name, tmp_path), layout, tmp_path) == given
    assert (tmp_path / layout.split_file).read_text() == text


@each
def test_few_shot_samples_are_the_public_ones(tmp_path: Path, layout: Layout) -> None:
    rule = layout.write(tmp_path / layout.folder)
    build(layout.name, tmp_path)  # a split is on disk from here on
    random.seed(1)
    whole = rule()
    # left by the public code; must never be opened
    put(tmp_path / layout.folder / "split_fewshot" / "shot_2-seed_3.pkl", b"not to be opened")
    random.seed(3)
    expected = (few_shot(whole["train"], 2), few_shot(whole["val"], 2))
    cache = tmp_path / layout.folder / "split_fewshot" / "shot_2-seed_3.json"
    for _ in ("drawn", "read"):
        found = parts(build(layout.name, tmp_path, shots=2, seed=3), layout, tmp_path)
        assert (found["train"], found["val"]) == expected
        assert found["test"] == whole["test"]
        assert cache.exists()
    # a sample is drawn before classes are left out
    base = build(layout.name, tmp_path, shots=2, seed=3, subset="base")
    paths = {path for path, label, _ in expected[0] if label < base.num_classes}
    assert {path for path, _, _ in parts(base, layout, tmp_path)["train"]} == paths
    assert len(paths) == 2 * base.num_classes


@each_split
def test_halves_and_samples_of_a_split_file(tmp_path: Path, layout: Layout) -> None:
    whole = layout.write(tmp_path / layout.folder)()
    put(tmp_path / layout.split_file, json.dumps(whole))
    names = {label: name for split in whole.values() for _, label, name in split}
    half = math.ceil(len(names) / 2)
    random.seed(5)
    sample = {"train": few_shot(whole["train"], 1), "val": few_shot(whole["val"], 1)}
    for subset, first, end in (("base", 0, half), ("new", half, len(names))):
        dataset = build(layout.name, tmp_path, shots=1, subset=subset, seed=5)
        assert dataset.classnames == [names[label] for label in range(first, end)]
        assert parts(dataset, layout, tmp_path) == {
            part: [
                (path, label - first, name) for path, label, name in split if first <= label < end
            ]
            for part, split in {**whole, **sample}.items()
        }


@each
def test_base_and_new_halves(tmp_path: Path, layout: Layout) -> None:
    layout.write(tmp_path / layout.folder)
    whole, base, new = (build(layout.name, tmp_path, subset=s) for s in ("all", "base", "new"))
    assert base.num_classes == math.ceil(whole.num_classes / 2)
    assert base.classnames + new.classnames == whole.classnames
    for part in (base, new):
        assert {item.label for item in part.test} == set(range(part.num_classes))
        assert all(part.classnames[item.label] == item.classname for item in part.test)
    assert len(base.test) + len(new.test) == len(whole.test)


def test_config_files_and_templates() -> None:
    expected = {layout.name: (layout.config, layout.template) for layout in LAYOUTS}
    expected["ImageNet"] = ("imagenet", "a photo of a {}.")
    expected.update({name: (where[0], "a photo of a {}.") for name, where in VERSIONS.items()})
    assert len(expected) == 15
    for name, (file, template) in expected.items():
        assert yaml.safe_load((CONFIGS / "datasets" / f"{file}.yaml").read_text()) == {
            "DATASET": {"NAME": name}
        }
        assert DATASET_REGISTRY.get(name).templates[0] == template


def test_a_class_with_few_images_gives_all_of_them(tmp_path: Path, capsys) -> None:
    dtd(tmp_path / "dtd")
    dataset = build("DescribableTextures", tmp_path, shots=16)
    assert len({item.impath for item in dataset.train_x}) == len(dataset.train_x) == 3 * 6
    assert "banded (6), lined (6), woven (6)" in capsys.readouterr().out


def test_files_written_for_the_public_code_find_what_they_look_for(tmp_path: Path) -> None:
    pets = DATASET_REGISTRY.get("OxfordPets")
    textures = DATASET_REGISTRY.get("DescribableTextures")
    rule = dtd(tmp_path)
    random.seed(1)
    expected = rule()
    random.seed(1)
    images = str(tmp_path / "images")
    splits = textures.read_and_split_data(images, ignored=["lined"], new_cnames={"woven": "wicker"})
    assert {item.classname for item in splits[2]} == {"banded", "wicker"}
    random.seed(1)
    splits = textures.read_and_split_data(images)
    pets.save_split(*splits, str(tmp_path / "split.json"), images)
    read = pets.read_split(str(tmp_path / "split.json"), images)
    for part, items in zip(PARTS, read, strict=True):
        assert rows(items, tmp_path / "images") == expected[part]
    train, val = pets.split_trainval(splits[0])
    assert (len(train), len(val)) == (15, 3)
    (base,) = pets.subsample_classes(train, subsample="base")
    assert {item.classname for item in base} == {"banded", "lined"}


# ----------------------------------------------------------------------------------- damage


def one_line_about(name: str, root: Path, *parts: str) -> None:
    with pytest.raises(UserError, match=".*".join(map(re.escape, parts))) as caught:
        build(name, root)
    assert "\n" not in str(caught.value)


def test_damaged_split_files(tmp_path: Path) -> None:
    dtd(tmp_path / "dtd")
    build("DescribableTextures", tmp_path)
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    good = json.loads(file.read_text())

    def damage(*message: str, **changed) -> None:
        file.write_text(json.dumps({**good, **changed}))
        one_line_about("DescribableTextures", tmp_path, str(file), *message)

    damage("'val'", val=None)
    damage("'test'", test=[["banded/image_0000.jpg", "banded"]])
    damage("'train'", train=[["banded/image_0000.jpg", "first", "banded"]])
    damage("label 0", "'banded'", "'lined'", test=[["banded/image_0000.jpg", 0, "lined"]])
    gap = {part: [row for row in good[part] if row[1] != 1] for part in PARTS}
    damage("expected labels 0 to 1, got 2 but not 1", **gap)
    same = {part: [[path, label, "banded"] for path, label, _ in good[part]] for part in PARTS}
    damage("labels 0 and 1 are both named 'banded'", **same)
    first, *others = good["train"]
    for row in (
        [first[0], True, "banded"],
        [first[0], 1.7, "banded"],
        [first[0], "0", "banded"],
        [None, 0, "banded"],
        [first[0], 0, None],
        [first[0], 0, "banded", 1],
        [[None]],
        None,
        "abc",
    ):
        damage("expected [path, label, class name] in 'train', got", train=[row, *others])
    damage("expected labels 0 to 3, got", train=[[first[0], 10**40, "x"], *others])
    damage("no class name for", train=[[first[0], 0, " "], *others])
    damage(r"class 'a\x1b[31m': its name has control", train=[[first[0], 0, "a\x1b[31m"], *others])
    damage(r"image 'a\x00b.jpg': its name has control", train=[["a\0b.jpg", 0, "banded"], *others])
    for path in ("/etc/passwd", "../images/x.jpg", "a/../../x.jpg", "..\\x.jpg"):
        damage("outside of the folder of the images", train=[[path, 0, "banded"], *others])
    damage("'train' lists", "twice", train=[first, *good["train"]])
    damage("'train' and 'test' both list", test=[first, *good["test"]])
    damage("'train' is empty", train=[])
    damage("'test' is empty", test=[])
    damage("has no training image", train=[row for row in good["train"] if row[1] != 2])
    for content in ("null", "[]", "3", '"train"'):
        file.write_text(content)
        one_line_about("DescribableTextures", tmp_path, str(file), "'train' is not a list")
    # validation images may be test images
    file.write_text(json.dumps({**good, "val": good["test"]}))
    assert not build("DescribableTextures", tmp_path).val_is_disjoint
    file.write_text(json.dumps(good)[:100])
    one_line_about("DescribableTextures", tmp_path, str(file))

    file.write_text(json.dumps(good))
    lost = tmp_path / "dtd" / "images" / good["test"][2][0]
    lost.unlink()
    one_line_about("DescribableTextures", tmp_path, str(file), "missing", "1 in all", str(lost))


def test_of_two_processes_the_first_one_s_split_is_used(tmp_path: Path, monkeypatch) -> None:
    dtd(tmp_path / "dtd")
    monkeypatch.setattr("dassl.data.shared_files.fcntl", None)  # a file system without locks
    textures, first = DATASET_REGISTRY.get("DescribableTextures"), []
    make_split = textures.make_split

    def make(self):
        if not first:  # another process comes and goes while this one draws
            first.append(None)
            first[0] = build("DescribableTextures", tmp_path, seed=2)
            random.seed(1)
        return make_split(self)

    monkeypatch.setattr(textures, "make_split", make)
    found = build("DescribableTextures", tmp_path, seed=1)
    layout = next(layout for layout in LAYOUTS if layout.name == "DescribableTextures")
    assert parts(found, layout, tmp_path) == parts(first[0], layout, tmp_path)
    saved = json.loads((tmp_path / layout.split_file).read_text())
    assert {part: [tuple(row) for row in saved[part]] for part in saved} == parts(
        found, layout, tmp_path
    )
    assert sorted(os.listdir(tmp_path / "dtd")) == ["images", Path(layout.split_file).name]


def test_lists_that_lead_out_of_the_folder_make_no_split(tmp_path: Path) -> None:
    oxford_pets(tmp_path / "oxford_pets")
    put(tmp_path / "oxford_pets" / "Abyssinian_1.jpg")
    file = tmp_path / "oxford_pets" / "annotations" / "test.txt"
    put(file, file.read_text() + "../Abyssinian_1 1 1 1\n")
    one_line_about("OxfordPets", tmp_path, "'../Abyssinian_1.jpg' is outside of the folder")
    assert not (tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json").exists()


def test_leftovers_of_systems_are_no_images(tmp_path: Path) -> None:
    dtd(tmp_path / "dtd")
    for name in ("images/@eaDir/1.jpg", "images/banded/Thumbs.db", "images/banded/@eaDir/1.jpg"):
        put(tmp_path / "dtd" / name)
    dataset = build("DescribableTextures", tmp_path)
    assert dataset.num_classes == 3 and "Thumbs" not in str([*dataset.train_x, *dataset.test])


def test_missing_folders(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        one_line_about(layout.name, tmp_path, f"no folder '{tmp_path / layout.folder}'")
    for name, (_, folder, _) in {**VERSIONS, "ImageNet": ("", "imagenet", "")}.items():
        one_line_about(name, tmp_path, f"no folder '{tmp_path / folder}'")
    (tmp_path / "dtd").mkdir()
    one_line_about("DescribableTextures", tmp_path, "images' is missing")
    (tmp_path / "dtd" / "images").mkdir()
    one_line_about("DescribableTextures", tmp_path, "images' contains no class folders")
    (tmp_path / "dtd" / "images" / "banded").mkdir()
    one_line_about("DescribableTextures", tmp_path, "banded' is empty")
    put(tmp_path / "dtd" / "images" / "banded" / "1.jpg")
    one_line_about("DescribableTextures", tmp_path, "'banded' has 1 images: too few")
    assert not (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").exists()


@pytest.mark.parametrize(
    ("write", "file", "content", "message"),
    [
        (oxford_pets, "annotations/test.txt", None, "No such file"),
        (oxford_pets, "annotations/test.txt", "Abyssinian_20\n", "line 1"),
        (oxford_pets, "annotations/test.txt", "Abyssinian_20 x 1 1\n", "'x'"),
        (oxford_pets, "annotations/test.txt", "Abyssinian_99 1 1 1\n", "Abyssinian_99.jpg"),
        (oxford_pets, "annotations/trainval.txt", "Abyssinian_20 1 1 1\n", ""),
        (oxford_flowers, "imagelabels.mat", None, "no such file"),
        (oxford_flowers, "imagelabels.mat", b"MATLAB 5.0", "not a MATLAB file"),
        (oxford_flowers, "cat_to_name.json", "{}", "no name for class 3"),
        (stanford_cars, "devkit/cars_meta.mat", b"", "not a MATLAB file"),
        (stanford_cars, "cars_test_annos_withlabels.mat", None, "no such file"),
        (fgvc_aircraft, "images_variant_val.txt", "1000000 DH\n", "unknown class 'DH'"),
        (fgvc_aircraft, "images_variant_val.txt", b"\xff\xfe", "not UTF-8 text"),
        (sun397, "Testing_01.txt", "/z/zoo/sun_1.jpg\n", "unknown class 'z/zoo'"),
        (ucf101, "ucfTrainTestlist/classInd.txt", "0 YoYo\n", "'0'"),
        (ucf101, "ucfTrainTestlist/trainlist01.txt", "YoYo 2\n", "'YoYo 2'"),
    ],
)
def test_damaged_annotations(tmp_path: Path, write, file, content, message) -> None:
    (layout,) = [layout for layout in LAYOUTS if layout.write is write]
    write(tmp_path / layout.folder)
    path = tmp_path / layout.folder / file
    path.unlink()
    if content is not None:
        put(path, content)
    if message:
        with pytest.raises(UserError) as caught:
            build(layout.name, tmp_path)
        assert str(path) in str(caught.value) and message in str(caught.value)
    else:
        one_line_about(layout.name, tmp_path, "'abyssinian' has 1 training images: too few")
    assert not (tmp_path / layout.split_file).exists()


# ---------------------------------------------------------------------------------- ImageNet

KNOWN = ["tench", "goldfish", "great white shark", "tabby cat", "toilet paper"]
NAMES = ["first", "second fish", "third", "fourth", "fifth"]
CLASSNAMES = "".join(f"{folder} {name}\n" for folder, name in zip(FOLDERS, NAMES, strict=True))


@pytest.fixture
def imagenet_root(tmp_path: Path) -> Path:
    imagenet(tmp_path / "imagenet", "images/train", FOLDERS, 6)
    imagenet(tmp_path / "imagenet", "images/val", FOLDERS, 2)
    put(tmp_path / "imagenet" / "preprocessed.pkl", b"not to be opened")
    put(tmp_path / "imagenet" / "split_fewshot" / "shot_2-seed_1.pkl", b"not to be opened")
    return tmp_path


@pytest.mark.parametrize("names", [KNOWN, NAMES])
def test_imagenet(imagenet_root: Path, names: list[str]) -> None:
    if names is NAMES:
        put(imagenet_root / "imagenet" / "classnames.txt", CLASSNAMES)
    images = imagenet_root / "imagenet" / "images"
    expected = {
        part: [
            (f"{part}/{folder}/{file}", label, names[label])
            for label, folder in enumerate(FOLDERS)
            for file in os.listdir(images / part / folder)
        ]
        for part in ("train", "val")
    }
    dataset = build("ImageNet", imagenet_root)
    assert dataset.classnames == names
    assert rows(dataset.train_x, images) == expected["train"]
    assert rows(dataset.val, images) == rows(dataset.test, images) == expected["val"]
    assert not dataset.val_is_disjoint
    random.seed(1)
    sample = few_shot(expected["train"], 2)
    for _ in ("drawn", "read"):
        dataset = build("ImageNet", imagenet_root, shots=2)
        assert rows(dataset.train_x, images) == sample
        assert rows(dataset.val, images) == expected["val"]
    assert build("ImageNet", imagenet_root, shots=2, subset="base").classnames == names[:3]
    new = build("ImageNet", imagenet_root, shots=2, subset="new")
    assert new.classnames == names[3:]
    assert {item.label for item in new.test} == {0, 1}


def test_two_classes_of_imagenet_may_have_one_name(imagenet_root: Path) -> None:
    names = ["crane", "tench", "crane", "fourth", "fifth"]
    lines = [f"{folder} {name}\n" for folder, name in zip(FOLDERS, names, strict=True)]
    put(imagenet_root / "imagenet" / "classnames.txt", "".join(lines))
    dataset = build("ImageNet", imagenet_root)
    assert dataset.classnames == names and dataset.num_classes == 5


def test_imagenet_has_the_80_templates(imagenet_root: Path) -> None:
    templates = build("ImageNet", imagenet_root).templates
    assert templates[0] == "a photo of a {}."
    assert len(set(templates)) == 80
    assert {"itap of a {}.", "a low resolution photo of the {}."} <= set(templates)


def test_imagenet_with_damage(imagenet_root: Path) -> None:
    names = imagenet_root / "imagenet" / "classnames.txt"
    put(names, CLASSNAMES.split("\n")[0] + "\n")
    one_line_about("ImageNet", imagenet_root, "no class name", FOLDERS[1])
    put(names, "n01440764\n")
    one_line_about("ImageNet", imagenet_root, str(names), "line 1")
    names.unlink()
    imagenet(imagenet_root / "imagenet", "images/val", ["n02000000"], 1)
    one_line_about("ImageNet", imagenet_root, "'n02000000'", "not in")
    shutil.rmtree(imagenet_root / "imagenet" / "images" / "val")
    one_line_about("ImageNet", imagenet_root, "val' is missing")


@pytest.mark.parametrize("names", [KNOWN, NAMES])
@pytest.mark.parametrize("name", VERSIONS)
def test_versions_of_imagenet(tmp_path: Path, name: str, names: list[str]) -> None:
    _, folder, images = VERSIONS[name]
    folders, expected = FOLDERS, names
    if name == "ImageNetV2":
        folders = [str(label) for label in range(12)]  # 10 comes after 9
        if names is KNOWN:
            expected = [*KNOWN[:3], "tiger shark", "hammerhead shark"]
        else:
            folders = folders[:5]
    elif name in ("ImageNetA", "ImageNetR"):
        folders, expected = FOLDERS[1::2], names[1::2]  # its own classes, labeled from 0
        put(tmp_path / folder / images / "README.txt", "read me")
    imagenet(tmp_path / folder, images, folders, 3)
    if names is NAMES:
        put(tmp_path / folder / "classnames.txt", CLASSNAMES)
    dataset = build(name, tmp_path, shots=1)
    assert dataset.classnames[: len(expected)] == expected
    assert dataset.num_classes == len(folders)
    found = rows(dataset.test, tmp_path / folder / images)
    assert [(Path(path).parts[0], label) for path, label, _ in found] == [
        (class_folder, label) for label, class_folder in enumerate(folders) for _ in range(3)
    ]
    assert not dataset.train_x and not dataset.val
    base, new = (build(name, tmp_path, subset=subset) for subset in ("base", "new"))
    assert base.classnames + new.classnames == dataset.classnames
    assert base.num_classes == math.ceil(len(folders) / 2)


def test_a_model_of_imagenet_chooses_among_the_classes_of_a_version(
    imagenet_root: Path, capsys
) -> None:
    imagenet(imagenet_root / "imagenet-adversarial", "imagenet-a", FOLDERS[1::2], 3)

    def start(dataset: str, *options: str, pairs: tuple[str, ...] = ()) -> int:
        command = ["--trainer", "CoOp", "--seed", "1", "--root", str(imagenet_root), *options]
        for option, file in (
            ("--dataset-config-file", CONFIGS / f"datasets/{dataset}.yaml"),
            ("--config-file", CONFIGS / "trainers/CoOp/vit_mini.yaml"),
            ("--output-dir", imagenet_root / dataset),
        ):
            command += [option, str(file)]
        few = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "TEST.SAVE_LOGITS", "True"]
        return train.main([*command, *few, *pairs])

    def run(dataset: str, *options: str) -> dict:
        assert start(dataset, *options) == 0
        return json.loads((imagenet_root / dataset / "results.json").read_text())

    def refused(*arguments: str, **pairs: tuple[str, ...]) -> str:
        capsys.readouterr()
        assert start(*arguments, **pairs) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert refused("imagenet", pairs=("TEST.FINAL_MODEL", "best_val")) == (
        "error: TEST.FINAL_MODEL: expected last_step for ImageNet, which has test images for "
        "validation, got best_val"
    )
    assert refused("imagenet_a") == (
        "error: DATASET.NAME: expected a dataset with training images, got ImageNetA, which has "
        "only test images; evaluate on it with --eval-only"
    )
    trained = run("imagenet")
    assert list(trained["per_class_accuracy"]) == KNOWN
    found = run("imagenet_a", "--eval-only", "--model-dir", str(imagenet_root / "imagenet"))
    assert found["total"] == 6 and list(found["per_class_accuracy"]) == KNOWN[1::2]
    logits = [np.load(imagenet_root / name / "logits.npz") for name in ("imagenet", "imagenet_a")]
    # every image is the same one: the scores of the classes do not depend on the other classes
    np.testing.assert_allclose(logits[1]["logits"][0], logits[0]["logits"][0, 1::2], rtol=1e-4)
    assert logits[1]["labels"].tolist() == [0, 0, 0, 1, 1, 1]


def test_folders_of_imagenetv2_are_labels(tmp_path: Path) -> None:
    folder, images = VERSIONS["ImageNetV2"][1:]
    imagenet(tmp_path / folder, images, ["0", "1000"], 1)
    one_line_about("ImageNetV2", tmp_path, "1000' is not a label of the 1000 classes")


def test_broken_images_of_any_dataset_can_be_left_out(tmp_path: Path, capsys) -> None:
    dtd(tmp_path / "dtd")
    dataset = build("DescribableTextures", tmp_path)
    broken = [dataset.train_x[3].impath, dataset.test[2].impath]
    for path in broken:
        Path(path).write_bytes(JPEG[:60])
    cfg = config("DescribableTextures", tmp_path)
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0])
    with pytest.raises(UserError, match=re.escape(broken[0])):
        DataManager(cfg)
    cfg.merge_from_list(["DATALOADER.ON_ERROR", "skip"])
    found = DataManager(cfg).dataset
    assert [len(split) for split in (found.train_x, found.val, found.test)] == [17, 6, 8]
    printed = capsys.readouterr().out
    assert all(path in printed for path in broken)
    cfg.merge_from_list(["DATALOADER.ON_ERROR", "Skip"])
    with pytest.raises(UserError, match="DATALOADER.ON_ERROR: .*got 'Skip'; did you mean 'skip'"):
        DataManager(cfg)
