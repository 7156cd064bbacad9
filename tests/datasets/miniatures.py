"""Miniature trees of the fifteen public datasets, in their published layout.

The expected splits and samples are computed here independently, from the rules alone.
"""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from dassl.utils import set_random_seed

Row = tuple[str, int, str]  # path in the image folder, label, class name
Splits = dict[str, list[Row]]
PARTS = ("train", "val", "test")
PER_CLASS = 11


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 120, np.uint8)).save(file, "JPEG")
    return file.getvalue()


JPEG = jpeg()


def put(path: Path, content: str | bytes = JPEG) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# ---------------------------------------------------------------------------------- the rules


def cut_in_three(classes: list[list[Row]]) -> Splits:
    """Split each class: half for training, a fifth for validation, the rest for testing."""
    splits: Splits = {part: [] for part in PARTS}
    for rows in classes:
        rows = list(rows)
        random.shuffle(rows)
        train, val = round(0.5 * len(rows)), round(0.2 * len(rows))
        splits["train"] += rows[:train]
        splits["val"] += rows[train : train + val]
        splits["test"] += rows[train + val :]
    return splits


def cut_in_two(trainval: list[Row], test: list[Row]) -> Splits:
    """Move a fifth of the training images of each class to validation."""
    splits: Splits = {"train": [], "val": [], "test": test}
    for label in dict.fromkeys(row[1] for row in trainval):
        rows = [row for row in trainval if row[1] == label]
        random.shuffle(rows)
        splits["val"] += rows[: round(0.2 * len(rows))]
        splits["train"] += rows[round(0.2 * len(rows)) :]
    return splits


def few_shot(rows: list[Row], shots: int) -> list[Row]:
    sample = []
    for label in dict.fromkeys(row[1] for row in rows):
        sample += random.sample([row for row in rows if row[1] == label], shots)
    return sample


# ---------------------------------------------------------------------------------- the trees
# Each function writes one dataset and returns what gives its split, after random was seeded.

Rule = Callable[[], Splits]


def class_folders(images: Path, names: dict[str, str]) -> Rule:
    """Write folders of images; ``names`` is {folder: class name}, in another order."""
    for folder in sorted(names, reverse=True):
        for number in range(PER_CLASS):
            put(images / folder / f"image_{number:04d}.jpg")

    def rule() -> Splits:
        return cut_in_three(
            [
                [
                    (f"{folder}/{file}", label, names[folder])
                    for file in os.listdir(images / folder)
                    if not file.startswith(".")
                ]
                for label, folder in enumerate(sorted(names))
            ]
        )

    return rule


def dtd(folder: Path) -> Rule:
    rule = class_folders(folder / "images", {name: name for name in ("banded", "lined", "woven")})
    put(folder / "images" / "banded" / ".directory", "[Dolphin]")
    return rule


def eurosat(folder: Path) -> Rule:
    names = {
        "SeaLake": "Sea or Lake",
        "AnnualCrop": "Annual Crop Land",
        "Highway": "Highway or Road",
        "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "River": "River",
    }
    return class_folders(folder / "2750", names)


def food101(folder: Path) -> Rule:
    put(folder / "meta" / "train.txt", "not used")
    names = ("apple_pie", "waffles", "baby_back_ribs")
    return class_folders(folder / "images", {name: name for name in names})


def caltech101(folder: Path) -> Rule:
    images = folder / "101_ObjectCategories"
    for ignored in ("BACKGROUND_Google", "Faces_easy"):
        put(images / ignored / "image_0001.jpg")
    names = {
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "accordion": "accordion",
        "airplanes": "airplane",
    }
    return class_folders(images, names)


def oxford_pets(folder: Path) -> Rule:
    breeds = ["Abyssinian", "american_bulldog", "Egyptian_Mau"]
    rows = []
    for number in range(20, 20 + PER_CLASS):  # breeds in turn
        for label, breed in enumerate(breeds):
            put(folder / "images" / f"{breed}_{number}.jpg")
            rows.append((f"{breed}_{number}.jpg", label, breed.lower()))
    trainval, test = rows[: 8 * len(breeds)], rows[8 * len(breeds) :]
    for name, part in (("trainval", trainval), ("test", test)):
        lines = [f"{path[:-4]} {label + 1} 1 {label + 1}\n" for path, label, _ in part]
        put(folder / "annotations" / f"{name}.txt", "".join(lines))
    return lambda: cut_in_two(trainval, test)


def oxford_flowers(folder: Path) -> Rule:
    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "sweet pea"}
    put(folder / "cat_to_name.json", json.dumps(names))
    labels = [(3, 1, 2)[number % 3] for number in range(3 * PER_CLASS)]  # class 3 comes first
    (folder / "imagelabels.mat").parent.mkdir(exist_ok=True)
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    classes: list[list[Row]] = [[], [], []]
    for number, label in enumerate(labels):
        put(folder / "jpg" / f"image_{number + 1:05d}.jpg")
        row = (f"image_{number + 1:05d}.jpg", label - 1, names[str(label)])
        classes[(label + 3) % 3].append(row)
    return lambda: cut_in_three(classes)


def stanford_cars(folder: Path) -> Rule:
    models = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi TTS Coupe 2012"]
    names = ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Audi TTS Coupe"]
    put(folder / "devkit" / "README.txt", "")
    savemat(
        folder / "devkit" / "cars_meta.mat",
        {"class_names": np.array([models], dtype=object)},
    )
    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")]
    parts = []
    for images, file_name, count in (
        ("cars_train", "devkit/cars_train_annos.mat", 3 * 8),
        ("cars_test", "cars_test_annos_withlabels.mat", 3 * 3),
    ):
        table = np.zeros((1, count), dtype=[*fields, ("fname", object)])
        part = []
        for number in range(count):
            label, file = (2, 0, 1)[number % 3], f"{number + 1:05d}.jpg"
            put(folder / images / file)
            table[0, number] = (1, 1, 8, 8, label + 1, file)
            part.append((f"{images}/{file}", label, names[label]))
        savemat(folder / file_name, {"annotations": table})
        parts.append(part)
    return lambda: cut_in_two(parts[0], parts[1])


def fgvc_aircraft(folder: Path) -> Rule:
    variants = ["707-320", "A340 300", "DH-82"]
    put(folder / "variants.txt", "".join(f"{name}\n" for name in variants))
    splits: Splits = {}
    for start, (part, count) in enumerate(zip(PARTS, (18, 9, 6), strict=True)):
        splits[part] = []
        for number in range(count):
            label, file = (1, 2, 0)[number % 3], f"{start}{number:06d}"
            put(folder / "images" / f"{file}.jpg")
            splits[part].append((f"{file}.jpg", label, variants[label]))
        lines = [f"{path[:-4]} {name}\n" for path, _, name in splits[part]]
        put(folder / f"images_variant_{part}.txt", "".join(lines))
    return lambda: splits


def sun397(folder: Path) -> Rule:
    scenes = {
        "/a/abbey": "abbey",
        "/c/church/indoor": "indoor church",
        "/y/youth_hostel": "youth_hostel",
    }
    put(folder / "ClassName.txt", "".join(f"{scene}\n" for scene in scenes))
    parts: list[list[Row]] = [[], []]
    for number in range(PER_CLASS):
        for label, (scene, name) in enumerate(scenes.items()):
            path = f"{scene[1:]}/sun_{number:03d}.jpg"
            put(folder / "SUN397" / path)
            parts[number >= 8].append((path, label, name))
    for name, part in zip(("Training_01.txt", "Testing_01.txt"), parts, strict=True):
        put(folder / name, "".join(f"/{path}\n" for path, _, _ in part))
    return lambda: cut_in_two(parts[0], parts[1])


def ucf101(folder: Path) -> Rule:
    actions = {
        "ApplyEyeMakeup": "Apply_Eye_Makeup",
        "YoYo": "Yo_Yo",
        "HandstandPushups": "Handstand_Pushups",
    }
    lists = folder / "ucfTrainTestlist"
    lines = [f"{number} {action}\n" for number, action in enumerate(actions, start=1)]
    put(lists / "classInd.txt", "".join(lines))
    parts: list[list[Row]] = [[], []]
    text = ["", ""]
    for number in range(PER_CLASS):
        for label, (action, name) in enumerate(actions.items()):
            video = f"v_{action}_g{number:02d}_c01"
            put(folder / "UCF-101-midframes" / name / f"{video}.jpg")
            later = number >= 8
            parts[later].append((f"{name}/{video}.jpg", label, name))
            text[later] += f"{action}/{video}.avi" + ("\n" if later else f" {label + 1}\n")
    put(lists / "trainlist01.txt", text[0])
    put(lists / "testlist01.txt", text[1])
    return lambda: cut_in_two(parts[0], parts[1])


@dataclass
class Layout:
    name: str
    config: str
    folder: str
    images: str
    write: Callable[[Path], Rule]
    template: str = "a photo of a {}."

    @property
    def split_file(self) -> str:
        return f"{self.folder}/split_zhou_{self.name}.json"


A = "a photo of a {}, a type of "
DOING = "a photo of a person doing {}."
LAYOUTS = [
    Layout("OxfordPets", "oxford_pets", "oxford_pets", "images", oxford_pets, A + "pet."),
    Layout(
        "OxfordFlowers", "oxford_flowers", "oxford_flowers", "jpg", oxford_flowers, A + "flower."
    ),
    Layout(
        "FGVCAircraft", "fgvc_aircraft", "fgvc_aircraft", "images", fgvc_aircraft, A + "aircraft."
    ),
    Layout("DescribableTextures", "dtd", "dtd", "images", dtd, "{} texture."),
    Layout("EuroSAT", "eurosat", "eurosat", "2750", eurosat, "a centered satellite photo of {}."),
    Layout("StanfordCars", "stanford_cars", "stanford_cars", "", stanford_cars),
    Layout("Food101", "food101", "food-101", "images", food101, "a photo of {}, a type of food."),
    Layout("SUN397", "sun397", "sun397", "SUN397", sun397),
    Layout("Caltech101", "caltech101", "caltech-101", "101_ObjectCategories", caltech101),
    Layout("UCF101", "ucf101", "ucf101", "UCF-101-midframes", ucf101, DOING),
]

VERSIONS = {
    "ImageNetV2": ("imagenetv2", "imagenetv2", "imagenetv2-matched-frequency-format-val"),
    "ImageNetSketch": ("imagenet_sketch", "imagenet-sketch", "images"),
    "ImageNetA": ("imagenet_a", "imagenet-adversarial", "imagenet-a"),
    "ImageNetR": ("imagenet_r", "imagenet-rendition", "imagenet-r"),
}
FOLDERS = ["n01440764", "n01443537", "n01484850", "n02123045", "n15075141"]


def config(name: str, root: Path, shots: int = -1, subset: str = "all", seed: int = 1) -> CfgNode:
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["DATASET.NAME", name, "DATASET.ROOT", str(root), "DATASET.NUM_SHOTS", shots]
        + ["DATASET.SUBSAMPLE_CLASSES", subset, "SEED", seed]
    )
    return cfg


def build(name: str, root: Path, shots: int = -1, subset: str = "all", seed: int = 1):
    set_random_seed(seed)
    return build_dataset(config(name, root, shots, subset, seed))


def rows(items, images: Path) -> list[Row]:
    return [(Path(d.impath).relative_to(images).as_posix(), d.label, d.classname) for d in items]


def parts(dataset, layout: Layout, root: Path) -> Splits:
    images = root / layout.folder / layout.images
    lists = (dataset.train_x, dataset.val, dataset.test)
    return {part: rows(items, images) for part, items in zip(PARTS, lists, strict=True)}


def imagenet(folder: Path, images: str, folders: list[str], count: int) -> None:
    for name in reversed(folders):
        for number in range(count):
            put(folder / images / name / f"{name}_{number}.JPEG")
