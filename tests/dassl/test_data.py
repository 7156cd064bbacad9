import errno
import gc
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper, build_data_loader, shared_files
from dassl.data.data_manager import CHECKED_FILE
from dassl.data.datasets import (
    DATASET_REGISTRY,
    DatasetBase,
    Datum,
    build_dataset,
    check_dataset_cfg,
    check_training,
    subsample_classes,
)
from dassl.data.image_cache import ImageCache
from dassl.data.samplers import RandomClassSampler, build_sampler
from dassl.data.transforms import CHOICES, INTERPOLATION_MODES, Cutout, build_transform
from dassl.utils import UserError, read_image, read_json, set_random_seed
from dassl.utils.download import extract_archive
from tests.dassl import toys


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return toys.draw(tmp_path_factory.mktemp("data"))


@pytest.fixture
def cfg(root):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Toys", str(root)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.SIZE = (8, 8)
    return cfg


@pytest.fixture(scope="module")
def pool(root):
    """Make images of five classes with unordered labels: 8 each, but 2 of the class labeled 3."""
    labels = (4, 0, 3, 1, 2)
    items = []
    for number in range(8):
        for label in labels:
            if label != 3 or number < 2:
                path = root / "toys" / "train" / toys.CLASSES[label] / f"{number}.png"
                items.append(Datum(str(path), label, 0, toys.CLASSES[label]))
    return items


class Dataset(DatasetBase):
    """A dataset from lists."""


def paths(items):
    return [item.impath for item in items]


# Datasets ---------------------------------------------------------------------------------------


def test_dataset_knows_its_classes(pool):
    dataset = Dataset(train_x=pool, val=[], test=pool[:3])
    assert dataset.num_classes == 5
    assert dataset.classnames == list(toys.CLASSES)
    assert dataset.lab2cname[3] == "dog"


def test_dataset_without_images_or_with_an_empty_class_is_refused(pool):
    with pytest.raises(UserError, match="Dataset has no training image"):
        Dataset(train_x=[], test=pool)
    with pytest.raises(UserError, match="Dataset has no test image"):
        Dataset(train_x=pool, test=[])
    without = [item for item in pool if item.label != 4]
    with pytest.raises(UserError, match=r"class 'eel' \(label 4\) of Dataset has no training"):
        Dataset(train_x=without, test=pool)


def test_few_shot_sample_is_the_public_one(pool, capsys):
    dataset = Dataset(train_x=pool, test=pool)
    set_random_seed(7)
    sample = dataset.generate_fewshot_dataset(pool, num_shots=4)
    random.seed(7)
    expected = []
    for label in (4, 0, 3, 1, 2):
        items = [item for item in pool if item.label == label]
        expected += random.sample(items, 4) if len(items) >= 4 else items
    assert sample == expected
    assert "Classes with fewer than 4 images, all used: dog (2)" in capsys.readouterr().out
    repeated = dataset.generate_fewshot_dataset(pool, num_shots=4, repeat=True)
    assert set(Counter(item.label for item in repeated).values()) == {4}
    assert dataset.generate_fewshot_dataset(pool, num_shots=-1) == pool
    one, two = dataset.generate_fewshot_dataset(pool, pool, num_shots=1)
    assert len(one) == len(two) == 5


def test_few_shot_sample_is_kept_on_disk(pool, tmp_path, root):
    dataset = Dataset(train_x=pool, test=pool)
    dataset.dataset_dir = str(tmp_path)
    folder = str(root / "toys")
    set_random_seed(1)
    before = random.getstate()
    train, val = dataset.sample_few_shot(pool, pool, 6, seed=1, folder=str(tmp_path))
    assert random.getstate() == before
    file = tmp_path / "split_fewshot" / "shot_6-seed_1.json"
    assert sorted(read_json(str(file))) == ["train", "val"]
    assert max(Counter(item.label for item in val).values()) == 4

    random.seed(99)  # the file counts, not the state
    again = dataset.sample_few_shot(pool, pool, 6, seed=1, folder=str(tmp_path))
    assert paths(again[0]) == paths(train) and paths(again[1]) == paths(val)

    set_random_seed(1)
    expected_train = dataset.generate_fewshot_dataset(pool, num_shots=6)
    expected_val = dataset.generate_fewshot_dataset(pool, num_shots=4)
    assert paths(train) == paths(expected_train) and paths(val) == paths(expected_val)

    few = [item for item in pool if item.impath != train[0].impath]
    fresh, _ = dataset.sample_few_shot(few, few, 6, seed=1)
    assert train[0].impath not in paths(fresh)
    file.write_text('{"train": 3}')
    with pytest.raises(UserError, match="shot_6-seed_1.json' is damaged"):
        dataset.sample_few_shot(pool, pool, 6, seed=1)
    dataset.sample_few_shot(pool, pool, 6, seed=-1)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert folder not in file.read_text()


def make_dataset(pool, folder):
    dataset = Dataset(train_x=pool, test=pool)
    dataset.dataset_dir = str(folder)
    return dataset


def test_of_two_processes_the_first_one_s_sample_is_used(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files, "fcntl", None)  # a file system without locks
    dataset = make_dataset(pool, tmp_path)
    draw, first = DatasetBase._sample, []

    def sample(self, *arguments, **options):
        if not first:  # another process comes and goes while this one draws
            first.append(None)
            state = random.getstate()
            set_random_seed(5)
            first[0] = dataset.sample_few_shot(pool, [], 4, seed=1)
            random.setstate(state)
        return draw(self, *arguments, **options)

    monkeypatch.setattr(DatasetBase, "_sample", sample)
    set_random_seed(1)
    train, val = dataset.sample_few_shot(pool, [], 4, seed=1)
    assert paths(train) == paths(first[0][0]) and val == []
    set_random_seed(1)
    assert paths(train) != paths(dataset.generate_fewshot_dataset(pool, num_shots=4))
    assert sorted(os.listdir(tmp_path / "split_fewshot")) == ["shot_4-seed_1.json"]


def test_a_sample_of_other_images_is_replaced(pool, tmp_path):
    few = [item for item in pool if item.label != 4]
    dataset = make_dataset(pool, tmp_path)
    dataset.sample_few_shot(few, [], 2, seed=1)  # class 4 came later
    train, _ = dataset.sample_few_shot(pool, [], 2, seed=1)
    assert Counter(item.label for item in train) == dict.fromkeys(range(5), 2)
    again, _ = dataset.sample_few_shot(pool, [], 2, seed=1)
    assert paths(again) == paths(train)


def test_a_sample_without_validation_images_is_replaced_when_there_are_some(pool, tmp_path):
    dataset = make_dataset(pool, tmp_path)
    before, _ = dataset.sample_few_shot(pool[:20], [], 2, seed=1)
    train, val = dataset.sample_few_shot(pool[:20], pool[20:], 2, seed=1)
    assert len(val) == 2 * len({item.label for item in pool[20:]})
    again = dataset.sample_few_shot(pool[:20], pool[20:], 2, seed=1)
    assert paths(again[0]) == paths(train) and paths(again[1]) == paths(val)
    assert len(before) == len(train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: None, "damaged: no images in 'train'"),
        (lambda rows: {}, "damaged: no images in 'train'"),
        (lambda rows: [], "damaged: no images in 'train'"),
        (lambda rows: [["a\x1b[2J.png", 0], *rows], r"image 'a\\x1b\[2J.png': its name has"),
        (lambda rows: [None, *rows], "expected .path, label. in 'train', got None"),
        (lambda rows: [[rows[0][0], True], *rows[1:]], r"got \['.*', True\]"),
        (lambda rows: [[rows[0][0], 1.7], *rows[1:]], r"got \['.*', 1.7\]"),
        (lambda rows: [*rows, rows[0]], "names '.*png' twice"),
        (lambda rows: [["/etc/passwd", 0], *rows[1:]], "names '/etc/passwd', which is outside"),
        (lambda rows: [["a/../../b.png", 0], *rows[1:]], "names 'a/../../b.png', which is outside"),
    ],
)
def test_a_damaged_few_shot_file_is_named(pool, root, change, message):
    file = root / "toys" / "split_fewshot" / "shot_1-seed_77.json"
    dataset = make_dataset(pool, root / "toys")
    dataset.sample_few_shot(pool, [], 1, seed=77)
    record = read_json(str(file))
    file.write_text(json.dumps({**record, "train": change(record["train"])}))
    with pytest.raises(UserError, match=f"few-shot file '{file}' .*{message}"):
        dataset.sample_few_shot(pool, [], 1, seed=77)
    file.unlink()


@pytest.mark.parametrize("sign", ["\n", "\0", "\x1b[31m", "\x9b", "\u2028", "\udce9", "\t"])
def test_names_that_cannot_be_shown_are_refused(pool, root, sign):
    item = Datum(pool[0].impath, pool[0].label, classname=f"a{sign}b")
    with pytest.raises(UserError, match="Dataset has the class") as caught:
        Dataset(train_x=[item, *pool[1:]], test=pool)
    assert repr(item.classname) in str(caught.value) and str(caught.value).isprintable()
    with pytest.warns(UserWarning, match="No file found"):
        item = Datum(f"{root}/a{sign}b.png", 0, classname="ant")
    with pytest.raises(UserError, match="control characters or is not UTF-8"):
        Dataset(train_x=pool, test=[item])


@pytest.mark.parametrize("label", [1.0, True, "1", None, -1])
def test_labels_are_whole_numbers(pool, label):
    with pytest.raises(UserError, match=f"expected a label that is .*, got {label!r} for"):
        Dataset(train_x=[*pool, Datum(pool[0].impath, label, classname="ant")], test=pool)


def test_base_and_new_halves(pool):
    base, base_test = subsample_classes(pool, pool[:5], subsample="base")
    new = subsample_classes(pool, subsample="new")[0]
    assert {(item.label, item.classname) for item in base} == {(0, "ant"), (1, "bee"), (2, "cat")}
    assert {(item.label, item.classname) for item in new} == {(0, "dog"), (1, "eel")}
    assert len(base) + len(new) == len(pool) and len(base_test) == 3
    assert subsample_classes(pool, subsample="all") == [pool]
    with pytest.raises(UserError, match="novel"):
        subsample_classes(pool, subsample="novel")


def whole(pool, cfg):
    """Make a dataset from complete lists, of which the base class selects by the config."""
    val = [item for item in pool if item.impath.endswith("7.png")]  # none of the class "dog"
    return Dataset(train_x=pool, val=val, test=pool[:10], cfg=cfg)


def labeled(items):
    return {(item.label, item.classname) for item in items}


@pytest.mark.parametrize("subset", ["all", "base", "new"])
@pytest.mark.parametrize("tested", ["", "all", "base", "new"])
def test_training_and_test_have_class_subsets_of_their_own(pool, cfg, subset, tested):
    names = {"all": list(toys.CLASSES), "base": ["ant", "bee", "cat"], "new": ["dog", "eel"]}
    cfg.DATASET.SUBSAMPLE_CLASSES, cfg.TEST.SUBSAMPLE_CLASSES = subset, tested
    dataset = whole(pool, cfg)
    trained = names[subset]
    assert dataset.classnames == trained and dataset.num_classes == len(trained)
    assert dataset.lab2cname == dict(enumerate(trained))
    assert labeled(dataset.train_x) == set(enumerate(trained))
    assert labeled(dataset.val) == {pair for pair in enumerate(trained) if pair[1] != "dog"}
    assert dataset.test_classnames == names[tested or subset]
    assert labeled(dataset.test) == set(enumerate(dataset.test_classnames))


def test_shots_are_drawn_before_classes_are_left_out(pool, cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(Dataset, "dataset_dir", str(tmp_path))
    cfg.DATASET.NUM_SHOTS, cfg.SEED = 3, 2
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    set_random_seed(2)
    found = whole(pool, cfg)
    random.seed(2)
    sample = found.generate_fewshot_dataset(pool, num_shots=3)
    assert paths(found.train_x) == [item.impath for item in sample if item.label < 3]
    assert paths(found.test) == [item.impath for item in pool[:10] if item.label < 3]
    assert [path.name for path in tmp_path.rglob("*.json")] == ["shot_3-seed_2.json"]


def test_a_dataset_may_have_test_images_alone(pool, cfg):
    for dataset in (Dataset(test=pool), Dataset(test=pool, cfg=cfg)):
        assert dataset.classnames == list(toys.CLASSES) and not dataset.train_x
    cfg.DATASET.SUBSAMPLE_CLASSES = "new"
    assert Dataset(test=pool, cfg=cfg).classnames == ["dog", "eel"]
    with pytest.raises(UserError, match="class 2 of Dataset has no test image"):
        Dataset(test=[item for item in pool if item.label != 2])
    names = [*toys.CLASSES, "fox"]  # a class without any image
    assert Dataset(test=pool, cfg=cfg, classnames=names).classnames == ["dog", "eel", "fox"]
    with pytest.raises(UserError, match="class 5 of Dataset has no training image"):
        Dataset(train_x=pool, test=pool, classnames=names)


def test_validation_images_are_no_test_images_under_any_name(pool, tmp_path):
    assert Dataset(train_x=pool, val=pool[3:6], test=pool[:3]).val_is_disjoint
    assert Dataset(train_x=pool, test=pool).val_is_disjoint
    folder, name = os.path.split(pool[2].impath)
    link, hard = tmp_path / "link.png", tmp_path / "hard.png"
    link.symlink_to(pool[2].impath)
    hard.hardlink_to(pool[2].impath)
    for path in (os.path.join(folder, ".", name), str(link), str(hard)):
        same = Datum(path, pool[2].label)
        assert not Dataset(train_x=pool, val=[*pool[3:6], same], test=pool[:3]).val_is_disjoint


@pytest.mark.parametrize(
    ("count", "kind"), [(0, "no validation images"), (1, "test images for validation")]
)
def test_a_test_on_validation_images_needs_some(cfg, monkeypatch, count, kind):
    cfg.TEST.SPLIT = "val"
    assert DataManager(cfg).val_loader is not None
    monkeypatch.setattr(
        DATASET_REGISTRY.get("Toys"), "val", property(lambda self: self.test[:count])
    )
    with pytest.raises(UserError) as error:
        DataManager(cfg)
    assert str(error.value) == f"TEST.SPLIT: expected test for Toys, which has {kind}, got val"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("FINAL_MODEL", "best_val"),
        ("COMPUTE_CMAT", True),
        ("RECORD", ("logits",)),
        ("SAVE_LOGITS", True),
        ("METRICS", ("ece",)),
    ],
)
def test_what_a_test_leaves_needs_a_test(cfg, key, value):
    cfg.TEST[key] = value
    dataset = build_dataset(cfg)
    check_training(cfg, dataset)
    cfg.TEST.NO_TEST = True
    with pytest.raises(UserError) as error:
        check_training(cfg, dataset)
    line = f"TEST.NO_TEST: expected False with TEST.{key} {value!r}, got True"
    assert str(error.value) == line


def test_a_dataset_of_the_public_toolbox_has_no_other_test_classes(cfg):
    cfg.TEST.SUBSAMPLE_CLASSES = "base"
    with pytest.raises(UserError, match="TEST.SUBSAMPLE_CLASSES: expected '' for Toys"):
        DataManager(cfg)
    cfg.TEST.SUBSAMPLE_CLASSES = cfg.DATASET.SUBSAMPLE_CLASSES
    assert DataManager(cfg).num_classes == 5
    cfg.TEST.SUBSAMPLE_CLASSES = "novel"
    with pytest.raises(UserError, match="TEST.SUBSAMPLE_CLASSES.*'novel'"):
        DataManager(cfg)


def test_domains_are_checked():
    Dataset.domains = ["art", "photo"]
    dataset = Dataset.__new__(Dataset)
    dataset.check_input_domains(["art"], ["photo"])
    with pytest.raises(UserError, match="'sketch'"):
        dataset.check_input_domains(["art"], ["sketch"])


def test_archives_stay_inside_their_folder(tmp_path):
    outside = tmp_path / "outside.txt"
    (tmp_path / "file.txt").write_text("text")
    for name in ("evil.tar", "evil.zip"):
        if name.endswith("tar"):
            with tarfile.open(tmp_path / name, "w") as tar:
                tar.add(tmp_path / "file.txt", "../outside.txt")
        else:
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                archive.write(tmp_path / "file.txt", "../outside.txt")
        with pytest.raises(UserError, match=name):
            extract_archive(str(tmp_path / name), str(tmp_path / "in"))
        assert not outside.exists()
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.write(tmp_path / "file.txt", "sub/file.txt")
    extract_archive(str(tmp_path / "good.zip"), str(tmp_path / "in"))
    assert (tmp_path / "in" / "sub" / "file.txt").read_text() == "text"
    with pytest.raises(UserError, match="file.txt"):
        extract_archive(str(tmp_path / "file.txt"), str(tmp_path / "in"))


# Loading ----------------------------------------------------------------------------------------


def test_data_manager_builds_the_three_loaders(cfg):
    manager = DataManager(cfg)
    assert manager.num_classes == 5 and manager.lab2cname[0] == "ant"
    assert manager.val_loader is not None
    # 40 images in batches of 32: the rest is dropped in training, not in the test
    assert len(manager.train_loader_x) == 1 and len(manager.test_loader) == 1
    cfg.DATALOADER.TEST.BATCH_SIZE = 20
    batch = list(DataManager(cfg).test_loader)[1]
    assert sorted(batch) == ["domain", "img", "impath", "index", "label"]
    assert batch["img"].shape == (10, 3, 8, 8) and batch["label"].tolist() == [3] * 4 + [4] * 6
    assert batch["index"].tolist() == list(range(20, 30))


@pytest.mark.parametrize(("drop", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_the_last_batch_is_left_out_or_used(cfg, pool, capsys, drop, sizes):
    cfg.DATALOADER.TRAIN_X.DROP_LAST = drop
    loader = build_data_loader(cfg, "RandomSampler", pool[:10], 4, tfm=build_transform(cfg))
    assert len(loader) == len(sizes)
    assert [len(batch["label"]) for batch in loader] == sizes
    line = "Each epoch leaves out 2 of 10 images, which do not fill a batch of 4"
    assert (line in capsys.readouterr().out) == drop
    build_data_loader(cfg, "RandomSampler", pool[:8], 4, tfm=build_transform(cfg))
    assert "leaves out" not in capsys.readouterr().out


def damage_middle(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def test_a_broken_image_is_found_before_training_and_once(cfg, tmp_path, monkeypatch, capsys):
    cfg.DATASET.ROOT = str(toys.draw(tmp_path))
    path = tmp_path / "toys" / "train" / "bee" / "3.png"
    damage_middle(path)
    with pytest.raises(UserError, match=f"1 of 40 images cannot be read: image '{path}' is unread"):
        DataManager(cfg)
    cfg.DATALOADER.ON_ERROR = "skip"
    manager = DataManager(cfg)
    assert len(manager.dataset.train_x) == 39 and str(path) not in paths(manager.dataset.train_x)
    record = json.loads((tmp_path / "toys" / CHECKED_FILE).read_text())
    assert len(record) == 39 + 25 + 30 and "train/bee/3.png" not in record

    decoded = []

    def read(path, *arguments):
        decoded.append(path)
        return read_image(path, *arguments)

    def count():
        decoded.clear()
        DataManager(cfg)
        return len(decoded)

    monkeypatch.setattr("dassl.data.data_manager.read_image", read)
    monkeypatch.setattr("dassl.data.data_manager._checked", {})  # as in a new process
    assert count() == 1 and decoded == [str(path)]
    os.utime(tmp_path / "toys" / "test" / "ant" / "0.png", (0, 0))  # another file, perhaps
    assert count() == 2
    (tmp_path / "toys" / CHECKED_FILE).write_text("[1")
    assert count() == 1  # this process remembers, and writes the file again
    monkeypatch.setattr("dassl.data.data_manager._checked", {})
    assert count() == 1
    (tmp_path / "toys" / CHECKED_FILE).write_text("[1")
    monkeypatch.setattr("dassl.data.data_manager._checked", {})
    assert count() == 95
    cfg.INPUT.MAX_PIXELS = 119  # one fewer than each image has
    with pytest.raises(UserError, match="has 12 x 10 pixels: more than INPUT.MAX_PIXELS 119"):
        DataManager(cfg)


def test_a_damaged_record_of_decoded_images_is_made_again(cfg, tmp_path, monkeypatch):
    cfg.DATASET.ROOT = str(toys.draw(tmp_path))
    broken, file = tmp_path / "toys" / "train" / "bee" / "3.png", tmp_path / "toys" / CHECKED_FILE
    DataManager(cfg)
    record = file.read_text()
    damage_middle(broken)
    marks = json.loads(record)
    contents = [b"", b" ", b"null", b"3", b"[1]", b'"a"', b"{", record.encode()[:-9], bytes(99)]
    contents += [b"[" * 100_000, b'{"a": 1, "a": 1}', b'{"\xff": ""}', b'{"\\ud800": "\\u0000"}']
    contents += [json.dumps(dict.fromkeys(marks, value)).encode() for value in (None, 1, [], "")]
    for content in contents:
        monkeypatch.setattr("dassl.data.data_manager._checked", {})  # as in a new process
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"1 of 40 images cannot be read: image '{broken}'"):
            DataManager(cfg)
    cfg.DATALOADER.ON_ERROR = "skip"
    file.unlink()
    for kind in ("folder", "link"):
        file.mkdir() if kind == "folder" else file.symlink_to("nowhere")
        monkeypatch.setattr("dassl.data.data_manager._checked", {})
        assert len(DataManager(cfg).dataset.train_x) == 39
        file.rmdir() if kind == "folder" else file.unlink()


def test_a_class_whose_training_images_are_all_broken_is_named(cfg, tmp_path):
    cfg.DATASET.ROOT = str(toys.draw(tmp_path))
    for path in (tmp_path / "toys" / "train" / "cat").iterdir():
        damage_middle(path)
    cfg.DATALOADER.ON_ERROR = "skip"
    with pytest.raises(UserError, match="class 'cat' has no training image that can be read"):
        DataManager(cfg)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("received 0 items of ancdata"),
        EOFError(),
    ],
)
def test_the_limit_of_open_files_is_one_line(cfg, pool, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", fail)
    loader = build_data_loader(cfg, data_source=pool, tfm=build_transform(cfg), is_train=False)
    with pytest.raises(UserError, match="DATALOADER.NUM_WORKERS: expected .*ulimit -n.*, got 0"):
        next(iter(loader))


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_workers_that_cannot_all_be_started_end_without_a_word(cfg, pool, monkeypatch, number):
    """The first queue is for batches, then each worker has one."""
    made, ignored = [], []

    def queue(self):
        if len(made) == number - 1:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(original(self))
        return made[-1]

    original = multiprocessing.context.ForkContext.Queue
    monkeypatch.setattr(multiprocessing.context.ForkContext, "Queue", queue)
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 2
    loader = build_data_loader(cfg, data_source=pool, batch_size=2, tfm=build_transform(cfg))
    with pytest.raises(UserError, match="^DATALOADER.NUM_WORKERS: expected no more than "):
        next(iter(loader))
    gc.collect()
    assert not ignored and not multiprocessing.active_children()


def test_more_workers_than_cores_are_no_warning(cfg, pool, recwarn):
    cfg.DATALOADER.NUM_WORKERS = 1000
    loader = build_data_loader(cfg, data_source=pool * 500, batch_size=1, tfm=None)
    assert loader.num_workers == 1000 and not recwarn.list


@pytest.mark.slow
@pytest.mark.parametrize("limit", [16, 20, 28, 100, 256])
def test_workers_that_run_out_of_files_are_one_line(root, limit):
    program = f"""
import resource, sys
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.errors import UserError
from tests.dassl import toys
cfg = get_cfg_default()
cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.INPUT.SIZE = "Toys", {str(root)!r}, (8, 8)
cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.K_TRANSFORMS = 2, 100
cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 2
loader = DataManager(cfg).train_loader_x
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
try:
    print(len(list(loader)))
except UserError as error:
    sys.exit(f"error: {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: DATALOADER.NUM_WORKERS: expected") and line.endswith("got 2")


def test_an_image_is_not_to_blame_for_the_limit_of_open_files(cfg, monkeypatch):
    def fail(path, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    cfg.DATALOADER.ON_ERROR = "skip"
    monkeypatch.setattr("dassl.data.data_manager._checked", {})
    monkeypatch.setattr("dassl.data.data_manager._read_checked", lambda file: {})
    monkeypatch.setattr("dassl.utils.tools.Image.open", fail)
    with pytest.raises(UserError, match="cannot read .*: Too many open files; raise the limit"):
        DataManager(cfg)


def test_a_training_set_smaller_than_a_batch_is_used(cfg, pool):
    transform = build_transform(cfg)
    loader = build_data_loader(cfg, "RandomSampler", pool[:5], 32, tfm=transform)
    assert [len(batch["label"]) for batch in loader] == [5]


@pytest.mark.parametrize("batch_size", [1, 9, 10, 1_000_000])
def test_training_warns_of_a_batch_that_the_images_cannot_fill(cfg, pool, capsys, batch_size):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = batch_size
    check_training(cfg, Dataset(train_x=pool[:9], test=pool[9:]))
    warned = f"{batch_size} is more than the 9 training images" in "".join(capsys.readouterr())
    assert warned == (batch_size > 9)


def test_custom_transforms_and_wrapper(cfg):
    class Wrapper(DatasetWrapper):
        def __getitem__(self, idx):
            return {**super().__getitem__(idx), "extra": 1}

    one, other = torch.zeros(2), torch.ones(2)
    manager = DataManager(
        cfg, [lambda image: one, lambda image: other], lambda image: other, Wrapper
    )
    batch = next(iter(manager.train_loader_x))
    assert batch["img"].sum() == 0 and batch["img2"].min() == 1 and batch["extra"].min() == 1
    assert next(iter(manager.test_loader))["img"].min() == 1


def test_several_views_and_the_plain_image(cfg, pool):
    cfg.DATALOADER.K_TRANSFORMS = 2
    cfg.DATALOADER.RETURN_IMG0 = True
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "normalize")
    entry = DatasetWrapper(cfg, pool, transform=build_transform(cfg), is_train=True)[0]
    assert len(entry["img"]) == 2 and not torch.equal(entry["img"][0], entry["img"][1])
    assert entry["img0"].shape == (3, 8, 8) and entry["img0"].min() < 0
    with pytest.raises(UserError, match="K_TRANSFORMS"):
        DatasetWrapper(cfg, pool, transform=None, is_train=True)
    assert isinstance(DatasetWrapper(cfg, pool)[0]["img"], Image.Image)


def batches_of_two_epochs(cfg, workers, **settings):
    """Return paths and pixels of every batch, and torch's global random state after each epoch."""
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 7
    # of Python, numpy and torch
    cfg.INPUT.TRANSFORMS = ("random_translation", "cutout", "gaussian_noise")
    cfg.INPUT.CUTOUT_LEN = 2
    for key, value in settings.items():
        cfg.DATALOADER[key] = value
    set_random_seed(3)
    loader = DataManager(cfg).train_loader_x
    found = []
    for _ in range(2):
        for batch in loader:
            torch.rand(1)  # like a trainer that draws between batches
            found.append((batch["impath"], batch["img"]))
        found.append(([], torch.rand(1)))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(cfg, workers):
    expected = batches_of_two_epochs(cfg, 0, CACHE_MB=0)
    found = batches_of_two_epochs(cfg, workers)
    assert [paths for paths, _ in found] == [paths for paths, _ in expected]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))
    assert expected[0][0] != expected[6][0] and not torch.equal(expected[0][1], expected[6][1])


@pytest.mark.parametrize("workers", [0, 2])
def test_training_images_are_read_once(cfg, tmp_path, workers):
    cfg.DATASET.ROOT = str(toys.draw(tmp_path))
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 8
    manager = DataManager(cfg)
    assert len(list(manager.train_loader_x)) == 5
    for item in manager.dataset.train_x:
        os.unlink(item.impath)
    assert len(list(manager.train_loader_x)) == 5


def test_image_cache_keeps_to_its_budget(tmp_path):
    paths = []
    for number, size in enumerate([(4, 2), (2, 4), (3, 3)]):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.effect_noise(size, 90).convert("RGB").save(paths[-1])
    (tmp_path / "1.png").write_bytes(b"nothing")
    reads = []

    def read(path):
        reads.append(path)
        with Image.open(path) as image:
            # turned, as EXIF data may ask for
            return image.transpose(Image.Transpose.ROTATE_90) if "0" in path else image.copy()

    first = Image.open(paths[0]).transpose(Image.Transpose.ROTATE_90).tobytes()
    cache = ImageCache(paths, 3 * 4 * 2 + 3 * 3 * 3 - 1, read)  # one byte too few for the last
    for _ in range(2):
        assert cache[paths[0]].tobytes() == first and cache[paths[0]].size == (2, 4)
        assert cache[paths[2]].size == (3, 3)
        with pytest.raises(UnidentifiedImageError):
            cache[paths[1]]
    assert reads == [paths[0], paths[2], paths[1], paths[2], paths[1]]
    copy = pickle.loads(pickle.dumps(ImageCache(paths, 1000, Image.open)))
    assert copy[paths[0]].size == (4, 2)


def test_a_named_pipe_is_never_opened(cfg, tmp_path):
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    with pytest.raises(UserError, match="pipe.png' is not a file"):
        read_image(str(path))
    cache = ImageCache([str(path)], 1000, read_image)
    with pytest.raises(UserError, match="pipe.png' is not a file"):
        cache[str(path)]


# Transforms -------------------------------------------------------------------------------------


def test_test_transform_resizes_the_short_side_and_crops_the_center(cfg):
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, 16:32] = 255  # white in the middle third
    cfg.INPUT.INTERPOLATION = "bicubic"
    image = build_transform(cfg, is_train=False)(Image.fromarray(pixels))
    assert image.shape == (3, 8, 8) and image.min() > 0.9
    cfg.INPUT.TRANSFORMS = ("normalize", "random_flip")
    normal = build_transform(cfg, is_train=False)(Image.fromarray(pixels))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    assert torch.allclose(normal, (image - mean) / std, atol=1e-5)


def test_plain_training_transform_resizes_to_the_size(cfg):
    image = Image.fromarray(np.arange(16 * 48 * 3, dtype=np.uint8).reshape(16, 48, 3))
    result = build_transform(cfg)(image)
    expected = image.resize((8, 8), Image.Resampling.BILINEAR)
    assert torch.equal(
        (result * 255).round().byte(), torch.tensor(np.array(expected)).permute(2, 0, 1)
    )


@pytest.mark.parametrize("name", CHOICES)
def test_each_transform_gives_an_image_of_the_size(cfg, name):
    cfg.INPUT.TRANSFORMS = (name,)
    cfg.INPUT.GB_K = 3
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 16, 3), dtype=np.uint8))
    result = build_transform(cfg)(image)
    # random_crop alone cuts the image as it is, after padding
    assert result.shape == (3, 8, 8) and torch.isfinite(result).all()
    assert build_transform(cfg, is_train=False)(image).shape == (3, 8, 8)


def test_transform_settings_are_checked(cfg):
    with pytest.raises(UserError, match="did you mean 'normalize'"):
        build_transform(cfg, choices=["normalise"])
    cfg.INPUT.GB_K = 4
    with pytest.raises(UserError, match="GB_K: expected an odd number >= 1, got 4"):
        build_transform(cfg, choices=["gaussian_blur"])
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


def test_cutout_zeroes_a_square_and_leaves_the_input():
    set_random_seed(0)
    image = torch.ones(3, 20, 20)
    for _ in range(30):
        cut = Cutout(n_holes=1, length=6)(image)
        zeros = cut[0] == 0
        rows, columns = zeros.any(dim=1).sum(), zeros.any(dim=0).sum()
        assert 3 <= rows <= 6 and 3 <= columns <= 6 and zeros.sum() == rows * columns
    assert image.min() == 1


def test_interpolation_modes_have_the_public_names():
    assert INTERPOLATION_MODES["bicubic"].value == "bicubic"


# Samplers ---------------------------------------------------------------------------------------


def items_of(*labels_and_domains):
    items = []
    for label, domain, count in labels_and_domains:
        for _ in range(count):
            item = Datum.__new__(Datum)
            item._impath, item._label, item._domain, item._classname = "", label, domain, ""
            items.append(item)
    return items


@pytest.mark.parametrize("name", ["RandomDomainSampler", "SeqDomainSampler"])
def test_domain_samplers_fill_batches_evenly(name):
    items = items_of((0, 0, 9), (0, 1, 14), (0, 2, 11))
    sampler = build_sampler(name, data_source=items, batch_size=6, n_domain=0)
    order = list(sampler)
    assert len(order) == len(sampler) == len(set(order)) == 24  # four times 2 of each domain
    for start in range(0, 24, 6):
        domains = [items[index].domain for index in order[start : start + 6]]
        assert Counter(domains) == {0: 2, 1: 2, 2: 2}
        assert name == "RandomDomainSampler" or domains == [0, 0, 1, 1, 2, 2]
    with pytest.raises(
        UserError, match="DATALOADER.TRAIN_X.BATCH_SIZE: expected a multiple of 3, .*, got 7"
    ):
        build_sampler(name, data_source=items, batch_size=7)


def test_domains_per_batch_can_be_fewer():
    items = items_of((0, 0, 9), (0, 1, 9), (0, 2, 9))
    order = list(build_sampler("RandomDomainSampler", None, items, 4, n_domain=2))
    for start in range(0, len(order), 4):
        counts = Counter(items[index].domain for index in order[start : start + 4])
        assert sorted(counts.values()) == [2, 2]


def test_class_sampler_draws_whole_groups():
    items = items_of((0, 0, 6), (1, 0, 7), (2, 0, 1), (3, 0, 4))
    sampler = RandomClassSampler(items, batch_size=4, n_ins=2)
    state = random.getstate()
    order = list(sampler)
    assert len(order) >= 8 and len(order) % 4 == 0
    for start in range(0, len(order), 2):
        assert len({items[index].label for index in order[start : start + 2]}) == 1
    random.setstate(state)
    assert list(sampler) == order
    with pytest.raises(
        UserError, match="DATALOADER.TRAIN_X.N_INS: expected 1 to BATCH_SIZE 4 .*, got 5"
    ):
        RandomClassSampler(items, batch_size=4, n_ins=5)
    with pytest.raises(
        UserError, match="DATALOADER.TRAIN_X.BATCH_SIZE: expected at most 4 classes .*, got 8"
    ):
        RandomClassSampler(items, batch_size=8, n_ins=1)
    with pytest.raises(
        UserError, match="DATALOADER.TRAIN_X.BATCH_SIZE: expected a multiple of N_INS 2 .*, got 5"
    ):
        RandomClassSampler(items, batch_size=5, n_ins=2)


@pytest.mark.parametrize("name", ["RandomClassSampler", "RandomDomainSampler"])
def test_all_epochs_have_as_many_images(name):
    items = items_of((0, 0, 6), (1, 1, 2), (2, 2, 2), (3, 3, 4))
    for seed in range(5):
        random.seed(seed)
        sampler = build_sampler(name, None, items, 4, n_domain=2, n_ins=2)
        assert {len(list(sampler)) for _ in range(20)} == {len(sampler)}


def test_images_that_a_sampler_leaves_out_are_counted(cfg, capsys):
    train = cfg.DATALOADER.TRAIN_X
    train.SAMPLER, train.N_INS, train.BATCH_SIZE = "RandomClassSampler", 2, 6
    loader = DataManager(cfg).train_loader_x
    count, total = len(loader.sampler), len(loader.dataset)
    assert count < total
    line = f"Each epoch has {count} of {total} images (RandomClassSampler)"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["RandomClassSampler", "RandomDomainSampler", "SeqDomainSampler", "Sequential"]
)
def test_a_test_visits_each_image_once(cfg, name):
    cfg.DATALOADER.TEST.SAMPLER = name
    expected = "DATALOADER.TEST.SAMPLER: expected one of SequentialSampler, RandomSampler, got "
    with pytest.raises(UserError, match=f"{expected}'{name}'"):
        DataManager(cfg)


def test_keys_of_a_sampler_need_it(cfg):
    train = cfg.DATALOADER.TRAIN_X
    train.N_DOMAIN = -1  # all: nothing else than the default
    check_dataset_cfg(cfg)
    train.N_DOMAIN = 2
    with pytest.raises(UserError, match="TRAIN_X.N_DOMAIN: expected 0 for RandomSampler, .* got 2"):
        check_dataset_cfg(cfg)
    train.N_DOMAIN, train.N_INS = 0, 4
    with pytest.raises(UserError, match="TRAIN_X.N_INS: expected 16 for RandomSampler, .* got 4"):
        check_dataset_cfg(cfg)
    train.SAMPLER = "RandomClassSampler"
    check_dataset_cfg(cfg)


@pytest.mark.parametrize("name", ["RandomDomainSampler", "SeqDomainSampler"])
def test_domain_samplers_need_domains(cfg, monkeypatch, name):
    cfg.DATALOADER.TRAIN_X.SAMPLER = name
    with pytest.raises(UserError, match=f"TRAIN_X.SAMPLER: expected .* for Toys, .* got '{name}'"):
        DataManager(cfg)
    # one of several domains may be the only source
    monkeypatch.setattr(DATASET_REGISTRY.get("Toys"), "domains", ["art", "photo"])
    assert len(DataManager(cfg).train_loader_x) == 1


def test_unknown_sampler():
    with pytest.raises(UserError, match="did you mean 'RandomSampler'"):
        build_sampler("RandmSampler")


def test_the_lock_of_a_shared_file_makes_no_file_through_a_link(tmp_path):
    lock, path = tmp_path / "data" / ".kept.json.lock", str(tmp_path / "data" / "kept.json")
    lock.parent.mkdir()
    lock.symlink_to(tmp_path / "planted")
    assert shared_files.read_or_make(path, lambda: None, lambda: ([1], "made")) == "made"
    assert read_json(path) == [1] and not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1" * 5000, "value has 5000 digits"), ('"\\ud800"', "it has half of a character")],
)
def test_what_json_cannot_hold_is_said_without_pythons_advice(tmp_path, text, reason):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=f"^'.*a.json' is not valid JSON: .*{reason}$"):
        read_json(str(tmp_path / "a.json"))
