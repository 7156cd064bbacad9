"""The embedded datasets: what they contain, and how they are drawn, read and sampled."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from yacs.config import CfgNode

import datasets  # noqa: F401  (registers the datasets)
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.errors import UserError
from dassl.utils import set_random_seed
from datasets.common import SPLITS
from datasets.digits import Digits
from datasets.embedded import EmbeddedDataset, Example, wording
from datasets.embedded.sheets import concepts
from tests.embedded import draw_small

SIZES = {  # pictures in train, val, test
    "Emoji": (2560, 640, 9040),
    "EmojiV2": (0, 0, 4480),
    "EmojiSketch": (0, 0, 4480),
    "EmojiNoise": (0, 0, 4480),
    "EmojiRendition": (0, 0, 4480),
    "Animals": (1536, 384, 9024),
    "Food": (1536, 384, 9024),
    "Faces": (1280, 320, 9000),
    "Shapes": (1024, 256, 9120),
    "Glyphs": (1152, 288, 9000),
    "Digits": (898, 360, 539),
}
SHIFTED = ("EmojiV2", "EmojiSketch", "EmojiNoise", "EmojiRendition")
OF_PEOPLE = ("Emoji", "Animals", "Food", "Faces")


@DATASET_REGISTRY.register()
class ThreeColours(EmbeddedDataset):
    """A small dataset for these tests: plain pictures of 5 + 2 + 3 of each of three classes."""

    folder = "three_colours"
    numbers = {"train": 5, "val": 2, "test": 3}

    @classmethod
    def examples(cls):
        for label, classname in enumerate(("dark red", "dark green", "dark blue")):
            for split, number in cls.numbers.items():
                for k in range(number):
                    picture = np.zeros((32, 32, 3), np.uint8)
                    picture[..., label] = 100 + 50 * SPLITS.index(split) + k
                    yield Example(split, label, classname, picture)


def config(name: str, root: object, shots: int = -1, subset: str = "all", seed: int = 1) -> CfgNode:
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["DATASET.NAME", name, "DATASET.ROOT", str(root), "DATASET.NUM_SHOTS", shots]
        + ["DATASET.SUBSAMPLE_CLASSES", subset, "SEED", seed]
    )
    return cfg


def split_name(name: str) -> str:
    return f"split_{'zhou' if name == 'Digits' else 'scenes'}_{name}.json"


def split_file(root: Path, name: str) -> dict:
    """Read a dataset's split file."""
    folder = DATASET_REGISTRY.get(name).folder
    return json.loads((root / folder / split_name(name)).read_text())


def hash_of_pixels(items) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(np.asarray(Image.open(item.impath)).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", SIZES)
def test_sizes(root: Path, name: str) -> None:
    numbers = Counter(DATASET_REGISTRY.get(name).numbers)
    if name == "Digits":  # whose classes are of different sizes
        drawn = Counter(example.split for example in Digits.examples())
    else:
        names = build_dataset(config(name, root)).classnames
        assert names == DATASET_REGISTRY.get(name).class_names()
        classes = len(names)
        drawn = {split: classes * numbers[split] for split in SPLITS}
    assert tuple(drawn[split] for split in SPLITS) == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_files(root: Path, few: dict[str, dict[str, int]], name: str) -> None:
    dataset = build_dataset(config(name, root))
    splits = split_file(root, name)
    for split in SPLITS:
        labels = Counter(label for _, label, _ in splits[split])
        number = few[name].get(split)
        assert labels == ({x: number for x in range(dataset.num_classes)} if number else {})
    paths = [path for split in splits.values() for path, _, _ in split]
    assert len(set(paths)) == len(paths)
    for item in random.Random(0).sample(dataset.test, 10):
        with Image.open(item.impath) as image:
            assert (image.size, image.mode) == ((32, 32), "RGB")
        assert os.path.basename(os.path.dirname(item.impath)) == item.classname.replace(" ", "_")
    assert sorted(os.listdir(root / dataset.folder)) == ["images", split_name(name)]
    assert all("{}" in template for template in dataset.templates)


@pytest.mark.parametrize("name", SIZES)
def test_config_file_and_descriptions(root: Path, name: str) -> None:
    folder = DATASET_REGISTRY.get(name).folder
    project = Path(datasets.__file__).parents[1]
    file = project / "configs" / "datasets" / f"{folder}.yaml"
    assert yaml.safe_load(file.read_text()) == {"DATASET": {"NAME": name}}
    text = (project / "datasets" / "descriptions" / f"{name}.json").read_text()
    described = json.loads(text)
    assert described == wording.descriptions()[name]
    assert set(described) == set(build_dataset(config(name, root)).classnames)
    for sentences in described.values():
        assert 4 <= len(set(sentences)) == len(sentences) <= 8


def test_descriptions_tell_classes_apart() -> None:
    for described in wording.descriptions().values():
        together = [" ".join(sentences) for sentences in described.values()]
        assert len(set(together)) == len(together)
    for name, sentences in wording.descriptions()["Shapes"].items():
        color, texture, shape = name.split()
        others = [c for c in wording.COLOR_PHRASES if c != color]
        assert not any(f" {other} " in f" {' '.join(sentences)} " for other in others)


def test_same_pixels_in_two_roots(
    root: Path, few: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    for name in ("Faces", "Digits"):
        draw_small(tmp_path, name, **few[name])
        here, there = (build_dataset(config(name, place)) for place in (root, tmp_path))
        assert hash_of_pixels(here.test) == hash_of_pixels(there.test)
        assert [os.path.relpath(item.impath, root) for item in here.test] == [
            os.path.relpath(item.impath, tmp_path) for item in there.test
        ]


def test_drawing_does_not_disturb_what_is_sampled_behind_it(tmp_path: Path, monkeypatch) -> None:
    """Expect it even where a package draws a random number when it is first imported."""
    examples = ThreeColours.examples
    drawing = staticmethod(lambda: [random.random(), *examples()][1:])
    monkeypatch.setattr(ThreeColours, "examples", drawing)
    found = []
    for _ in range(2):
        set_random_seed(1)
        build_dataset(config("ThreeColours", tmp_path))
        found.append(random.getstate())
    assert found[0] == found[1]


def test_pictures_of_a_class_differ(root: Path) -> None:
    for name in ("Shapes", "Glyphs"):
        dataset = build_dataset(config(name, root))
        items = [item for item in dataset.train_x + dataset.val + dataset.test if item.label == 1]
        assert len({np.asarray(Image.open(item.impath)).tobytes() for item in items}) == 4 + 4 + 4


@pytest.mark.parametrize("name", SIZES)
def test_other_numbers_of_pictures_do_not_change_the_first_ones(name: str) -> None:
    whole = DATASET_REGISTRY.get(name)

    def drawn(**numbers: int) -> dict[tuple[str, int], list[bytes]]:
        """Return the pictures of the first two classes, by split and label."""
        own = {split: number for split, number in numbers.items() if split in whole.numbers}
        found: dict[tuple[str, int], list[bytes]] = {}
        for example in type(name, (whole,), {"numbers": own}).examples():
            if example.label == 2:
                break
            pictures = found.setdefault((example.split, example.label), [])
            pictures.append(example.picture.tobytes())
        return found

    few, more = drawn(train=1, val=3, test=2), drawn(train=2, val=1, test=5)
    assert few.keys() == more.keys() and len(few) == 2 * len(whole.numbers)
    for place, pictures in few.items():
        count = min(len(pictures), len(more[place]))
        assert count and pictures[:count] == more[place][:count]


def test_shifted_sets_have_the_classes_of_emoji(root: Path) -> None:
    pixels = {hash_of_pixels(build_dataset(config("Emoji", root)).test)}
    for name in SHIFTED:
        for subset in ("all", "base", "new"):
            plain = build_dataset(config("Emoji", root, subset=subset))
            shifted = build_dataset(config(name, root, subset=subset))
            assert shifted.lab2cname == plain.lab2cname
        pixels.add(hash_of_pixels(build_dataset(config(name, root)).test))
    assert len(pixels) == 5


@pytest.mark.parametrize("name", [*OF_PEOPLE, "Shapes", "Glyphs", "Digits"])
def test_base_and_new_halves(root: Path, name: str) -> None:
    whole, base, new = (
        build_dataset(config(name, root, subset=subset)) for subset in ("all", "base", "new")
    )
    half = math.ceil(whole.num_classes / 2)
    assert base.classnames + new.classnames == whole.classnames
    assert base.num_classes == half and not {*base.classnames} & {*new.classnames}
    for part in (base, new):
        assert {item.label for item in part.test} == set(range(part.num_classes))
        assert all(part.classnames[item.label] == item.classname for item in part.test)
    assert len(base.test) + len(new.test) == len(whole.test)


@pytest.mark.parametrize("name", [name for name in SIZES if name not in ("Digits", *SHIFTED)])
def test_an_interval_of_a_half_is_narrow(root: Path, name: str) -> None:
    number = DATASET_REGISTRY.get(name).numbers["test"]
    for subset in ("base", "new"):
        pictures = number * build_dataset(config(name, root, subset=subset)).num_classes
        assert pictures >= 4400
        assert 100 * 1.96 * math.sqrt(0.5 * 0.5 / pictures) <= 1.5  # the widest, at 50%


@pytest.mark.parametrize("name", OF_PEOPLE)
def test_halves_of_what_people_drew_are_of_the_same_kinds(root: Path, name: str) -> None:
    classes = concepts()[name.lower()]
    assert build_dataset(config(name, root)).classnames == [concept.name for concept in classes]
    base, new = (
        Counter(concept.subgroup for concept in half)
        for half in (classes[: len(classes) // 2], classes[len(classes) // 2 :])
    )
    assert all(abs(base[kind] - new[kind]) <= 1 for kind in base | new)


def test_halves_of_shapes_have_attributes_of_their_own(root: Path) -> None:
    found = []
    for subset in ("base", "new"):
        names = build_dataset(config("Shapes", root, subset=subset)).classnames
        classes = [tuple(name.split()) for name in names]
        for one, other in itertools.combinations(classes, 2):
            assert sum(a == b for a, b in zip(one, other, strict=True)) <= 1
        found.append([set(words) for words in zip(*classes, strict=True)])
    for attribute, (size, own) in enumerate(((6, 2), (4, 0), (5, 3))):  # color, texture, shape
        base, novel = (half[attribute] for half in found)
        assert len(base) == len(novel) == size
        assert len(base - novel) == len(novel - base) == own


def test_halves_of_glyphs_are_alike(root: Path) -> None:
    for subset in ("base", "new"):
        names = build_dataset(config("Glyphs", root, subset=subset)).classnames
        assert Counter(name.split()[0] for name in names) == {"letter": 13, "digit": 5}


@pytest.mark.parametrize(("name", "shots", "seed"), [("Digits", 6, 1), ("Shapes", 2, 3)])
def test_few_shot_samples_are_those_of_the_public_toolbox(
    root: Path, name: str, shots: int, seed: int
) -> None:
    splits = split_file(root, name)
    random.seed(seed)
    expected = []
    for split, number in (("train", shots), ("val", min(shots, 4))):
        by_class: dict[int, list[str]] = {}
        for path, label, _ in splits[split]:
            by_class.setdefault(label, []).append(path)
        expected.append([p for paths in by_class.values() for p in random.sample(paths, number)])
    for _ in range(2):  # drawn, then read
        set_random_seed(seed)
        dataset = build_dataset(config(name, root, shots=shots, seed=seed))
        for part, paths in zip((dataset.train_x, dataset.val), expected, strict=True):
            assert [os.path.relpath(d.impath, dataset.image_dir) for d in part] == paths
    # classes are subsampled after the sample was drawn
    set_random_seed(seed)
    base = build_dataset(config(name, root, shots=shots, seed=seed, subset="base"))
    kept = [
        path
        for path in expected[0]
        if os.path.join(base.image_dir, path) in {item.impath for item in base.train_x}
    ]
    assert [os.path.relpath(item.impath, base.image_dir) for item in base.train_x] == kept
    assert len(kept) == shots * base.num_classes
    shutil.rmtree(Path(base.dataset_dir) / "split_fewshot")


def test_digits_are_those_of_scikit_learn(root: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = Counter(
        (images.tobytes(), label)
        for images, label in zip(
            np.round(digits.images).astype(np.uint8), digits.target.tolist(), strict=True
        )
    )
    drawn = Counter()
    for example in Digits.examples():
        # the middle of every 4 x 4 block, where enlarging has changed least, tells the picture
        blocks = example.picture[..., 0].astype(float).reshape(8, 4, 8, 4).mean((1, 3))
        drawn[example.label] += 1
        assert example.classname == wording.NUMBERS[example.label]
        if drawn[example.label] <= 3:
            distances = np.abs(digits.images * 255 / 16 - blocks).mean((1, 2))
            assert digits.target[distances.argmin()] == example.label
    assert drawn == Counter(label for _, label in source.elements())


def test_all_of_the_pictures_are_used_once(root: Path) -> None:
    from sklearn.datasets import load_digits

    pictures = {example.picture.tobytes() for example in Digits.examples()}
    assert len(pictures) == len({image.tobytes() for image in load_digits().images})


def test_several_first_uses_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: build_dataset(config("ThreeColours", tmp_path)), range(4)))
    assert [len(dataset.train_x) for dataset in made] == [15] * 4
    assert os.listdir(tmp_path) == ["three_colours"]


def test_interrupted_first_use_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ThreeColours.examples

    def interrupted():
        for number, example in enumerate(whole()):
            if number == 12:
                raise KeyboardInterrupt
            yield example

    monkeypatch.setattr(ThreeColours, "examples", staticmethod(interrupted))
    with pytest.raises(KeyboardInterrupt):
        build_dataset(config("ThreeColours", tmp_path))
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    assert len(build_dataset(config("ThreeColours", tmp_path)).test) == 9


def test_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        build_dataset(config("ThreeColours", tmp_path / "file" / "below"))


def test_empty_root() -> None:
    with pytest.raises(UserError, match="DATASET.ROOT"):
        build_dataset(config("ThreeColours", ""))


def test_damaged_folder(tmp_path: Path) -> None:
    dataset = build_dataset(config("ThreeColours", tmp_path))
    lost = dataset.test[4].impath
    os.rename(lost, lost + ".bak")
    with pytest.raises(
        UserError, match=f"missing images .1 in all.; the first is '{lost}'; delete the folder"
    ):
        build_dataset(config("ThreeColours", tmp_path))
    os.rename(lost + ".bak", lost)
    text = Path(dataset.split_path).read_text()
    for damaged in ("[1, 2]", '{"train": []}', text.replace('"val"', '"other"')):
        Path(dataset.split_path).write_text(damaged)
        with pytest.raises(UserError, match="is damaged: .*; delete the folder"):
            build_dataset(config("ThreeColours", tmp_path))
    Path(dataset.split_path).write_text(json.dumps({**json.loads(text), "train": []}))
    with pytest.raises(UserError, match="'train' is empty; delete the folder"):
        build_dataset(config("ThreeColours", tmp_path))
    Path(dataset.split_path).write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="split_zhou_ThreeColours.json"):
        build_dataset(config("ThreeColours", tmp_path))
    os.remove(dataset.split_path)
    with pytest.raises(UserError, match="split_zhou_ThreeColours.json' is missing"):
        build_dataset(config("ThreeColours", tmp_path))


def test_pictures_of_an_earlier_drawing_are_not_taken_for_these(tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    (folder / "images").mkdir(parents=True)
    (folder / "split_zhou_Shapes.json").write_text('{"train": [], "val": [], "test": []}')
    with pytest.raises(UserError, match=r"is missing; delete the folder '.*shapes'"):
        build_dataset(config("Shapes", tmp_path))
    assert sorted(os.listdir(folder)) == ["images", "split_zhou_Shapes.json"]
