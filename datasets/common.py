"""What the public few-shot datasets share: CoOp's split files, and how splits are made.

A split file is JSON, {"train": [[path, label, class name], ...], "val": ..., "test": ...}, its
paths relative to the image folder. If it is missing, the split is made by the rule and the random
draws of CoOp's public code, from Python's global ``random``, so the same seed gives the same split.
As in that code, the images of a class folder are taken in the order in which the disk lists them,
so only the saved file reproduces a split on another disk.
"""

from __future__ import annotations

import os
import random
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase, Datum
from dassl.data.datasets.base_dataset import Split, check_text, leaves_folder
from dassl.data.shared_files import read_or_make
from dassl.errors import UserError, check_regular
from dassl.utils import listdir_nohidden, log, read_json, write_json

# Folders (and files without a picture's suffix) that systems, cameras' programs and network drives
# leave among pictures, in lower case. Names that begin with a dot are hidden, and ignored anyway.
LEFTOVERS = (
    "@eadir",
    "__macosx",
    "#recycle",
    "@recycle",
    "@recently-snapshot",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
)
SPLITS = ("train", "val", "test")
Splits = tuple[Split, Split, Split]
Row = tuple[str, int, str]  # path, label, class name


class PublicDataset(DatasetBase):
    """A dataset with the folders and file names of CoOp's public code.

    A subclass defines ``dataset_dir``, ``image_dir`` and ``split_file`` (relative paths in the
    class, absolute ones in an instance), its ``templates``, and ``make_split``, which is called
    when the split file is missing. ``split_file`` is empty if the publishers list all three parts.

    Args:
        cfg: the config; ``DATASET.ROOT`` is used, and what ``DatasetBase`` uses.

    Raises:
        UserError: a folder, file or image is missing or malformed.
    """

    dataset_dir: str
    image_dir = "images"
    split_file = ""

    def __init__(self, cfg: CfgNode) -> None:
        self.dataset_dir = dataset_folder(cfg, type(self))
        self.image_dir = os.path.join(self.dataset_dir, self.image_dir)
        train, val, test = self._splits()
        super().__init__(train_x=train, val=val, test=test, cfg=cfg)

    def make_split(self) -> Splits:
        """Return training, validation and test images from the publishers' own files."""
        raise NotImplementedError

    def _splits(self) -> Splits:
        if not self.split_file:
            return self.make_split()
        self.split_file = os.path.join(self.dataset_dir, self.split_file)
        return read_or_make(self.split_file, self._read_split, self._make_split)

    def _read_split(self) -> Splits | None:
        if not os.path.exists(self.split_file):
            return None
        splits = read_split(self.split_file, self.image_dir)
        if not splits[0]:
            raise UserError(f"split file '{self.split_file}' is damaged: 'train' is empty")
        return splits

    def _make_split(self) -> tuple[dict[str, list[Row]], Splits]:
        splits = self.make_split()
        record = split_record(*splits, self.image_dir)
        for rows in record.values():
            for path, _, _ in rows:
                if leaves_folder(path):
                    raise UserError(f"image {path!r} is outside of the folder '{self.image_dir}'")
        return record, splits


def dataset_folder(cfg: CfgNode, dataset: type[DatasetBase]) -> str:
    """Return the folder of a dataset, below ``DATASET.ROOT``.

    Raises:
        UserError: the folder is missing.
    """
    root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    folder = os.path.join(root, dataset.dataset_dir)
    if not os.path.isdir(folder):
        raise UserError(f"dataset {dataset.__name__} is missing: no folder '{folder}'")
    return folder


def image(path: str, label: int, classname: str, named_by: str) -> Datum:
    """Return an image listed in the file ``named_by``.

    Raises:
        UserError: the image is missing.
    """
    if not os.path.isfile(path):
        raise UserError(f"image {path!r}, listed in '{named_by}', is missing")
    return Datum(impath=path, label=label, classname=classname)


def read_fields(path: str, count: int, separator: str | None = None) -> Iterator[list[str]]:
    """Yield each line of a text file split into ``count`` fields; the last may contain blanks.

    Raises:
        UserError: the file cannot be read, or a line has fewer fields.
    """
    check_regular(path)
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors write a byte order mark
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read '{path}': {reason}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.strip().split(separator, count - 1)
        if len(fields) < count:
            raise UserError(f"'{path}', line {number}: {line!r} has fewer than {count} fields")
        yield fields


def label_from_1(text: str, path: str) -> int:
    """Return the label, from 0, where the file ``path`` counts from 1.

    Raises:
        UserError: ``text`` is not a whole number above 0.
    """
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"'{path}': expected a class number, from 1, got {text!r}")
    return int(text) - 1


def label_of(classname: str, labels: Mapping[str, int], path: str) -> int:
    """Return the label of a class that the file ``path`` names.

    Raises:
        UserError: the class is unknown.
    """
    if classname not in labels:
        raise UserError(f"'{path}' names the unknown class {classname!r}")
    return labels[classname]


def read_rows(filepath: str) -> dict[str, list[Row]]:
    """Return the rows of each part of a split file, without checking that the images exist.

    Raises:
        UserError: the file is missing or damaged, lists an image outside of its folder, or one
            twice in a part or both for training and for validation or test.
    """
    content = read_json(filepath)
    damaged = f"split file '{filepath}' is damaged"
    parts: dict[str, list[Row]] = {}
    for part in SPLITS:
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{damaged}: '{part}' is not a list of [path, label, class name]")
        for row in rows:
            if not (isinstance(row, list) and [type(value) for value in row] == [str, int, str]):
                raise UserError(
                    f"{damaged}: expected [path, label, class name] in '{part}', got "
                    f"{reprlib.repr(row)}"
                )
            path, _, name = row
            check_text(path, f"{damaged}: image")
            check_text(name, f"{damaged}: class")
            if not name.strip():
                raise UserError(f"{damaged}: no class name for '{path}'")
            if leaves_folder(path):
                raise UserError(f"{damaged}: '{path}' is outside of the folder of the images")
        parts[part] = [tuple(row) for row in rows]
    paths = {part: [os.path.normpath(row[0]) for row in rows] for part, rows in parts.items()}
    for part, listed in paths.items():
        if len(set(listed)) < len(listed):
            twice, _ = Counter(listed).most_common(1)[0]
            raise UserError(f"{damaged}: '{part}' lists '{twice}' twice")
        # validation images that are test images are usual, and known as such
        both = set(paths["train"]) & set(listed) if part != "train" else None
        if both:
            raise UserError(f"{damaged}: 'train' and '{part}' both list '{min(both)}'")
    return parts


def read_split(filepath: str, path_prefix: str) -> Splits:
    """Return the parts of a split file, whose paths are relative to ``path_prefix``.

    Raises:
        UserError: the file is damaged or lists missing images, a class has no training image though
            others have, there is no test image, or the labels are not 0..n-1 with one name each,
            all different.
    """
    log.info(f"Reading split from {filepath}")
    names: dict[int, str] = {}
    parts = read_rows(filepath)
    for rows in parts.values():
        for _, label, name in rows:
            if names.setdefault(label, name) != name:
                raise UserError(
                    f"split file '{filepath}' is damaged: label {label} is named both "
                    f"'{names[label]}' and '{name}'"
                )
    _check_labels(names, filepath)
    if not parts["test"]:
        raise UserError(f"split file '{filepath}' is damaged: 'test' is empty")
    untrained = names.keys() - {label for _, label, _ in parts["train"]}
    if parts["train"] and untrained:
        raise UserError(
            f"split file '{filepath}' is damaged: class '{names[min(untrained)]}' has no training "
            "image"
        )
    found = [
        [(os.path.join(path_prefix, path), label, name) for path, label, name in rows]
        for rows in parts.values()
    ]
    missing = [path for rows in found for path, _, _ in rows if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"split file '{filepath}' lists missing images ({len(missing)} in all); the first is "
            f"'{missing[0]}'"
        )
    train, val, test = (
        [Datum(impath=path, label=label, classname=name) for path, label, name in rows]
        for rows in found
    )
    return train, val, test


def _check_labels(names: Mapping[int, str], filepath: str) -> None:
    """Raise ``UserError`` unless the labels of a split file are 0..n-1, with different names."""
    labels: dict[str, int] = {}
    for expected, (label, name) in enumerate(sorted(names.items())):
        if label != expected:
            raise UserError(
                f"split file '{filepath}' is damaged: expected labels 0 to "
                f"{len(names) - 1}, got {label} but not {expected}"
            )
        if labels.setdefault(name, label) != label:
            raise UserError(
                f"split file '{filepath}' is damaged: labels {labels[name]} and {label} are both "
                f"named '{name}'"
            )


def split_record(
    train: Sequence[Datum], val: Sequence[Datum], test: Sequence[Datum], path_prefix: str
) -> dict[str, list[Row]]:
    """Return what a split file holds, with paths relative to ``path_prefix``."""
    return {
        part: [(relative(item.impath, path_prefix), item.label, item.classname) for item in items]
        for part, items in zip(SPLITS, (train, val, test), strict=True)
    }


def relative(path: str, folder: str) -> str:
    """Return a path relative to a folder, with slashes on every system."""
    return os.path.relpath(path, folder).replace(os.sep, "/")


def save_split(
    train: Sequence[Datum],
    val: Sequence[Datum],
    test: Sequence[Datum],
    filepath: str,
    path_prefix: str,
) -> None:
    """Write a split file with paths relative to ``path_prefix``."""
    write_json(split_record(train, val, test, path_prefix), filepath)
    log.info(f"Saved split to {filepath}")


def split_trainval(trainval: Sequence[Datum], p_val: float = 0.2) -> tuple[Split, Split]:
    """Split off the share ``p_val`` of each class for validation.

    Classes come in the order in which they first appear; the first images of a shuffled class are
    its validation images.

    Raises:
        UserError: a class has too few images.
    """
    log.info(f"Splitting trainval into {1 - p_val:.0%} train and {p_val:.0%} val")
    train: Split = []
    val: Split = []
    for items in DatasetBase.split_dataset_by_label(trainval).values():
        count = round(len(items) * p_val)
        if count == 0:
            raise UserError(
                f"class '{items[0].classname}' has {len(items)} training images: too few to "
                f"split off {p_val:.0%} for validation"
            )
        random.shuffle(items)
        val.extend(items[:count])
        train.extend(items[count:])
    return train, val


def split_class(items: Split, p_trn: float = 0.5, p_val: float = 0.2) -> Splits:
    """Shuffle the images of one class and split them into training, validation and test images.

    Args:
        items: one image or more.
        p_trn, p_val: shares of them.

    Raises:
        UserError: one of the parts would be empty.
    """
    random.shuffle(items)
    end_train = round(len(items) * p_trn)
    end_val = end_train + round(len(items) * p_val)
    parts = items[:end_train], items[end_train:end_val], items[end_val:]
    if not all(parts):
        raise UserError(
            f"class '{items[0].classname}' has {len(items)} images: too few for {p_trn:.0%} "
            f"training, {p_val:.0%} validation and test images"
        )
    return parts


def read_and_split_data(
    image_dir: str,
    p_trn: float = 0.5,
    p_val: float = 0.2,
    ignored: Sequence[str] = (),
    new_cnames: Mapping[str, str] | None = None,
) -> Splits:
    """Split ``image_dir/<class>/<image>``; labels follow the sorted folder names.

    Args:
        image_dir: the folder of the class folders.
        p_trn, p_val: shares of each class; the rest is for testing.
        ignored: folders to skip.
        new_cnames: {folder: class name} of folders whose own name is not used.

    Raises:
        UserError: a folder is missing or has too few images.
    """
    log.info(f"Splitting into {p_trn:.0%} train, {p_val:.0%} val, and {1 - p_trn - p_val:.0%} test")
    splits: Splits = ([], [], [])
    folders = [folder for folder in class_folders(image_dir) if folder not in ignored]
    for label, folder in enumerate(folders):
        items = list_images(os.path.join(image_dir, folder), label, (new_cnames or {}).get(folder))
        if not items:
            raise UserError(f"class folder '{os.path.join(image_dir, folder)}' is empty")
        for part, more in zip(splits, split_class(items, p_trn, p_val), strict=True):
            part.extend(more)
    return splits


def class_folders(image_dir: str) -> list[str]:
    """Return the sorted names of the folders in ``image_dir``.

    Raises:
        UserError: ``image_dir`` is missing, cannot be read or contains no folders, a link in it
            leads nowhere, or a folder's name cannot be shown.
    """
    if not os.path.isdir(image_dir):
        raise UserError(f"image folder '{image_dir}' is missing")
    folders = []
    for name in list_folder(image_dir):
        path = os.path.join(image_dir, name)
        if os.path.isdir(path) and name.lower() not in LEFTOVERS:
            check_text(name, f"image folder '{image_dir}' has the class folder")
            folders.append(name)
        elif os.path.islink(path) and not os.path.exists(path):
            raise UserError(f"cannot read {path!r}: the link leads nowhere")
    if not folders:
        raise UserError(f"image folder '{image_dir}' contains no class folders")
    return sorted(folders)


def list_folder(folder: str) -> list[str]:
    """Return the names in a folder that are not hidden, in directory order.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        return listdir_nohidden(folder)
    except OSError as error:
        raise UserError(f"cannot read the folder '{folder}': {error.strerror}") from error


def list_images(folder: str, label: int, classname: str | None = None) -> Split:
    """Return the images of a class folder in directory order, named after it by default."""
    classname = classname or os.path.basename(folder)
    return [
        Datum(impath=os.path.join(folder, name), label=label, classname=classname)
        for name in list_folder(folder)
        if name.lower() not in LEFTOVERS
    ]


def read_mat(path: str, name: str) -> Any:
    """Return the first row of the array ``name`` in a MATLAB file.

    Raises:
        UserError: the file is missing or has no such array.
    """
    from scipy.io import loadmat  # installed with scikit-learn; imported here because it is slow

    if not os.path.isfile(path):
        raise UserError(f"cannot read '{path}': there is no such file")
    try:
        return loadmat(path)[name][0]
    # scipy raises errors of many types for damaged files
    except Exception as error:
        raise UserError(f"'{path}' is not a MATLAB file with an array '{name}'") from error
