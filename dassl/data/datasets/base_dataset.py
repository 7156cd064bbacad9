"""What a dataset is: lists of ``Datum``, and the few-shot and class subsets of them."""

from __future__ import annotations

import math
import os
import random
import reprlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from yacs.config import CfgNode

from dassl.compat import PublicDatasetMethods
from dassl.data.shared_files import read_or_make
from dassl.errors import UserError, check_choice, escaped, is_control
from dassl.utils.logger import log
from dassl.utils.tools import check_isfile, read_json

SUBSETS = ("all", "base", "new")  # of the classes


class Datum:
    """One image: its path, the label of its class (from 0), its domain and its class's name."""

    def __init__(
        self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""
    ) -> None:
        if not isinstance(impath, str):
            raise TypeError(f"impath must be a str, not a {type(impath).__name__}")
        check_isfile(impath)
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname

    def __repr__(self) -> str:
        return f"Datum({self.impath!r}, {self.label}, {self.domain}, {self.classname!r})"


Split = list[Datum]


class DatasetBase(PublicDatasetMethods):
    """A dataset: splits, and the names of the classes.

    A subclass takes the config, builds the lists and hands them to ``super().__init__``. With
    ``cfg`` the lists are whole ones, and the few-shot sample and the class subsets are made here:
    training and validation images are those of ``DATASET.SUBSAMPLE_CLASSES``, test images those of
    ``TEST.SUBSAMPLE_CLASSES`` ("": the same), and each list's labels count the classes of its own
    subset from 0. Validation images that are test images are not sampled. Without ``cfg``, as in
    files written for the public toolbox, the lists stay as they are.

    Args:
        train_x: labeled training images, at least one of each class; None where the dataset is
            for testing only.
        train_u: unlabeled training images; kept, not used here.
        val: validation images, or None.
        test: test images.
        cfg: the config; ``DATASET.NUM_SHOTS``, ``SEED`` and the two class subsets are used.
        classnames: names of all classes, by label; by default those of the training images, or of
            the test images where there are no others.

    Raises:
        UserError: there is no training or test image, a class has no image, a label is not a whole
            number from 0, or a class name or path has characters that cannot be shown.

    Attributes:
        applies_subsets: whether the class subsets of the config were applied here.
    """

    dataset_dir: str = ""  # folder of the dataset
    domains: list[str] = []  # names of all domains
    templates: list[str] = ["a photo of a {}."]  # prompt templates; the first is *the* template
    creates_root: bool = False  # True: draws or downloads into a root that need not exist yet
    root_is_dataset: bool = False  # True: another DATASET.ROOT is another dataset
    is_drawn: bool = False  # True: pictures for a model that knows drawings alone

    def __init__(
        self,
        train_x: Sequence[Datum] | None = None,
        train_u: Sequence[Datum] | None = None,
        val: Sequence[Datum] | None = None,
        test: Sequence[Datum] | None = None,
        *,
        cfg: CfgNode | None = None,
        classnames: Sequence[str] | None = None,
    ) -> None:
        if train_x is not None and not train_x:
            raise self._lacks("training")
        if not test:
            raise self._lacks("test")
        self._train_x = list(train_x or [])
        self._train_u = train_u
        self._val = val
        self._test: Sequence[Datum] = test
        self._check_items(classnames or ())
        if classnames is None:
            labeled = self._train_x or test
            self._check_classes(labeled, self.get_num_classes(labeled))
            self._lab2cname, self._classnames = self.get_lab2cname(labeled)
        else:
            self._lab2cname, self._classnames = dict(enumerate(classnames)), list(classnames)
            if self._train_x:
                self._check_classes(self._train_x, len(classnames))
        self._test_classnames = self._classnames
        self.applies_subsets = cfg is not None
        if cfg is not None:
            self._sample_and_subset(cfg)
        self._num_classes = len(self._classnames)

    def _place(self) -> str:
        return f" in '{self.dataset_dir}'" if self.dataset_dir else ""

    def _lacks(self, kind: str) -> UserError:
        return UserError(f"dataset {type(self).__name__} has no {kind} image{self._place()}")

    def _check_items(self, classnames: Sequence[str]) -> None:
        """Check what each image, and each class, says of itself."""
        names = set(classnames)
        for item in (*self._train_x, *(self._val or []), *self._test):
            if isinstance(item.label, bool) or not isinstance(item.label, Integral):
                kind = "a whole number"
            elif item.label < 0:
                kind = "0 or more"
            else:
                names.add(item.classname)
                check_text(item.impath, "image")
                continue
            raise UserError(
                f"dataset {type(self).__name__}: expected a label that is {kind}, got "
                f"{item.label!r} for {item.impath!r}"
            )
        for name in names:
            check_text(str(name), f"dataset {type(self).__name__} has the class")

    def _check_classes(self, labeled: Sequence[Datum], count: int) -> None:
        """Check that each of ``count`` classes, and each of another split, is among ``labeled``."""
        kind = "training" if self._train_x else "test"
        known = {item.label for item in labeled}
        names = {item.label: item.classname for item in (*(self._val or []), *self._test)}
        for label in range(max(count, *(label + 1 for label in names))):
            if label not in known:
                called = f"'{names[label]}' (label {label})" if names.get(label) else str(label)
                raise UserError(
                    f"class {called} of {type(self).__name__} has no {kind} image{self._place()}"
                )

    def _sample_and_subset(self, cfg: CfgNode) -> None:
        """Apply shots, and then class subsets: a sample is drawn before classes are left out."""
        train, val = self._train_x, list(self._val or [])
        if train:
            shots, seed, fixed = cfg.DATASET.NUM_SHOTS, cfg.SEED, not self.val_is_disjoint
            train, few = self.sample_few_shot(train, [] if fixed else val, shots, seed)
            val = val if fixed else few
        names, subset = self._classnames, cfg.DATASET.SUBSAMPLE_CLASSES
        trained = class_subset(range(len(names)), subset)
        tested = class_subset(range(len(names)), cfg.TEST.SUBSAMPLE_CLASSES or subset)
        self._train_x = of_classes(train, trained)
        self._val = self._val and of_classes(val, trained)
        self._test = of_classes(self._test, tested)
        self._classnames = [names[label] for label in trained]
        self._lab2cname = dict(enumerate(self._classnames))
        self._test_classnames = [names[label] for label in tested]
        if subset != "all":
            log.info(f"SUBSAMPLE {subset.upper()} CLASSES!")
        if tested != trained:
            log.info(f"TEST ON {cfg.TEST.SUBSAMPLE_CLASSES.upper()} CLASSES!")
        if train and not self._train_x:
            raise self._lacks("training")
        if not self._test:
            raise self._lacks("test")

    @property
    def train_x(self) -> Split:
        return self._train_x

    @property
    def train_u(self) -> Sequence[Datum] | None:
        return self._train_u

    @property
    def val(self) -> Sequence[Datum] | None:
        return self._val

    @property
    def test(self) -> Sequence[Datum]:
        return self._test

    @property
    def val_is_disjoint(self) -> bool:
        """Whether no validation image is a test image; a link is the file that it leads to."""
        val = {_identity(item.impath) for item in self.val or []}
        return not val or val.isdisjoint(_identity(item.impath) for item in self.test)

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        return self._classnames

    @property
    def test_classnames(self) -> list[str]:
        """Names of the classes of the test images, by their labels.

        They differ from ``classnames`` where ``TEST.SUBSAMPLE_CLASSES`` says so.
        """
        return self._test_classnames

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Sequence[Datum]) -> int:
        """Return the highest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return the class name by label, and the class names in the order of the labels."""
        mapping = {item.label: item.classname for item in data_source}
        return mapping, [mapping[label] for label in sorted(mapping)]

    def generate_fewshot_dataset(
        self, *data_sources: Sequence[Datum], num_shots: int = -1, repeat: bool = False
    ) -> Split | list[Split]:
        """Sample ``num_shots`` images per class from each list, with Python's global ``random``.

        Classes come in the order in which they first appear, and of a class with too few images,
        all are taken. That is the public toolbox's order of draws, so the same seed gives the same
        sample.

        Args:
            data_sources: one or more lists.
            num_shots: images per class; below 1, the lists are returned as they are.
            repeat: fill up small classes by drawing some images more than once.

        Returns:
            A list of images, or of such lists where several were given.
        """
        if num_shots < 1:
            whole = [list(source) for source in data_sources]
            return whole[0] if len(whole) == 1 else whole
        samples = [self._sample(source, num_shots, repeat=repeat) for source in data_sources]
        return samples[0] if len(samples) == 1 else samples

    def _sample(
        self, source: Sequence[Datum], num_shots: int, kind: str = "images", repeat: bool = False
    ) -> Split:
        log.info(f"Creating a {num_shots}-shot dataset")
        sample: Split = []
        small: list[str] = []
        for items in self.split_dataset_by_label(source).values():
            if len(items) >= num_shots:
                sample.extend(random.sample(items, num_shots))
            elif repeat:
                sample.extend(random.choices(items, k=num_shots))
            else:
                sample.extend(items)
                small.append(escaped(f"{items[0].classname} ({len(items)})"))
        if small:
            log.info(f"Classes with fewer than {num_shots} {kind}, all used: {', '.join(small)}")
        return sample

    def sample_few_shot(
        self,
        train: Sequence[Datum],
        val: Sequence[Datum],
        num_shots: int,
        seed: int,
        folder: str = "",
    ) -> tuple[Split, Split]:
        """Sample few-shot training and validation lists (at most 4 per class), kept on disk.

        Call it before classes are subsampled and before ``super().__init__``. The first call with
        a shot and seed (0 or more) samples, and writes split_fewshot/shot_<n>-seed_<s>.json into
        the dataset's folder; later calls read that. ``random`` is left as if nothing had been
        drawn, so both calls lead to the same training. A negative seed samples again each time.

        Args:
            train, val: the full lists.
            num_shots: images per class; below 1, the lists are returned as they are.
            seed: the seed that the caller has given to ``set_random_seed``.
            folder: paths in the file are relative to it; "" means ``dataset_dir``.

        Raises:
            UserError: the file is damaged.
        """
        if num_shots < 1:
            return list(train), list(val)
        folder = folder or self.dataset_dir
        path = os.path.join(folder, "split_fewshot", f"shot_{num_shots}-seed_{seed}.json")

        def read() -> tuple[Split, Split] | None:
            if not os.path.exists(path):
                return None
            record = read_json(path)
            kept_train = _read_few_shot(record, "train", path, folder, train, num_shots)
            kept_val = _read_few_shot(record, "val", path, folder, val, min(num_shots, 4))
            if kept_train is None or kept_val is None:
                return None
            log.info(f"Loading preprocessed few-shot data from {path}")
            return kept_train, kept_val

        def draw() -> tuple[Any, tuple[Split, Split]]:
            if seed >= 0 and os.path.exists(path):
                log.info(f"The images of the dataset have changed: replacing the sample in {path}")
            state = random.getstate()
            few_train = self._sample(train, num_shots, "training images")
            few_val = self._sample(val, min(num_shots, 4), "validation images")
            if seed >= 0:
                random.setstate(state)
            record = {
                name: [[os.path.relpath(item.impath, folder), item.label] for item in sample]
                for name, sample in (("train", few_train), ("val", few_val))
            }
            return record, (few_train, few_val)

        return draw()[1] if seed < 0 else read_or_make(path, read, draw)

    @staticmethod
    def split_dataset_by_label(data_source: Sequence[Datum]) -> dict[int, Split]:
        """Group the images by label; labels in the order in which they first appear."""
        groups: dict[int, Split] = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    @staticmethod
    def split_dataset_by_domain(data_source: Sequence[Datum]) -> dict[int, Split]:
        """Group the images by domain; domains in the order in which they first appear."""
        groups: dict[int, Split] = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups


def _identity(path: str) -> Any:
    """Return what tells a file from all others, whatever its names; its path if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path)
    return status.st_dev, status.st_ino


def _read_few_shot(
    record: Any, part: str, path: str, folder: str, pool: Sequence[Datum], num_shots: int
) -> Split | None:
    """Return the list ``part`` of the few-shot file ``path``.

    Returns:
        None where the list is not a sample of the pool: the images have changed.

    Raises:
        UserError: the file is damaged, or names a file outside of the dataset.
    """
    rows = record.get(part) if isinstance(record, dict) else None
    if not isinstance(rows, list) or (part == "train" and pool and not rows):
        raise UserError(f"few-shot file '{path}' is damaged: no images in '{part}'; delete it")
    known = {(os.path.relpath(item.impath, folder), item.label): item for item in pool}
    images = {impath for impath, _ in known}
    sample = {}
    for row in rows:
        if not (isinstance(row, list) and [type(value) for value in row] == [str, int]):
            raise UserError(
                f"few-shot file '{path}' is damaged: expected [path, label] in '{part}', got "
                f"{reprlib.repr(row)}; delete it"
            )
        check_text(row[0], f"few-shot file '{path}' is damaged: image")
        if row[0] not in images and leaves_folder(row[0]) and not any(map(leaves_folder, images)):
            raise UserError(
                f"few-shot file '{path}' names {row[0]!r}, which is outside of its folder; "
                "delete it"
            )
        if tuple(row) in sample:
            raise UserError(f"few-shot file '{path}' names {row[0]!r} twice; delete it")
        sample[tuple(row)] = known.get(tuple(row))
    kept = [item for item in sample.values() if item is not None]
    sizes = Counter(item.label for item in pool)
    expected = {label: min(size, num_shots) for label, size in sizes.items()}
    whole = len(kept) == len(rows) and Counter(item.label for item in kept) == expected
    return kept if whole else None


def check_text(text: str, what: str) -> None:
    """Raise ``UserError`` where a name or path has characters that cannot be shown as they are.

    Args:
        text: the name or path.
        what: what it is, the beginning of the message.
    """
    if any(map(is_control, text)):
        raise UserError(f"{what} {text!r}: its name has control characters or is not UTF-8")


def leaves_folder(path: str) -> bool:
    """Return whether a path that is to be relative to a folder leads out of it."""
    parts = os.path.normpath(path.replace("\\", "/")).split(os.sep)
    return os.path.isabs(path) or os.pardir in parts


def class_subset(labels: Sequence[int], subset: str) -> list[int]:
    """Return all of the sorted labels, the first half (rounded up, "base") or the other ("new").

    Raises:
        UserError: the subset is unknown.
    """
    check_choice("DATASET.SUBSAMPLE_CLASSES", subset, SUBSETS)
    half = math.ceil(len(labels) / 2)
    return list({"all": labels, "base": labels[:half], "new": labels[half:]}[subset])


def of_classes(items: Sequence[Datum], labels: Sequence[int]) -> Split:
    """Return the images of these labels, relabeled from 0 in their order."""
    new_label = {label: number for number, label in enumerate(labels)}
    return [
        item
        if new_label[item.label] == item.label
        else Datum(item.impath, new_label[item.label], item.domain, item.classname)
        for item in items
        if item.label in new_label
    ]


def subsample_classes(*splits: Sequence[Datum], subsample: str = "all") -> list[Split]:
    """Return the images of the base or the new half of the classes, relabeled from 0.

    The first half of the sorted labels of the first split, rounded up, is base.

    Args:
        splits: train, val, test or the like.
        subsample: "all", "base" or "new".

    Returns:
        One list for each split.
    """
    labels = sorted({item.label for item in splits[0]})
    selected = class_subset(labels, subsample)
    if subsample == "all":
        return [list(split) for split in splits]
    log.info(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    return [of_classes(split, selected) for split in splits]
