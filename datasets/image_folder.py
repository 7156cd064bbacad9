"""ImageFolder: any folder of images, one folder for each class."""

from __future__ import annotations

import errno
import os
import posixpath
import random
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl.data.data_manager import leave_out_broken
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.datasets.base_dataset import Split, check_text
from dassl.data.shared_files import read_or_make
from dassl.errors import UserError, shown
from dassl.utils import log, read_json
from dassl.utils.tools import IMAGE_SUFFIXES

from .common import (
    LEFTOVERS,
    SPLITS,
    Row,
    class_folders,
    read_fields,
    read_rows,
    relative,
    split_record,
)

TEST_SHARE = 0.2
# common names for the parts that would be mistaken for classes
NEARLY_PARTS = (*SPLITS, "valid", "validation", "testing", "training")


@DATASET_REGISTRY.register()
class ImageFolder(DatasetBase):
    """``DATASET.ROOT/<class>/...``, or the same below ``train``, ``val`` and ``test``.

    If all folders of the root have the names of parts, they are the parts; otherwise they are the
    classes. Folders within a class folder belong to the class, linked ones too, each of them once;
    links that lead back to a folder above are not followed. Hidden files and what systems leave
    among pictures (``@eaDir``, ``__MACOSX``, ``._*``) are not pictures. Labels follow the sorted
    class folders. Two files next to the folders are optional:

    - ``classnames.json``, {folder: class name}; a folder not listed keeps its own name;
    - ``templates.txt``, a prompt template with "{}" in each line; the first is the default one.

    A part without a folder is split off from the training images, class by class: a fifth of them
    for testing, ``DATASET.VAL_PERCENT`` of the rest for validation, at least one each. The split
    depends on ``SEED`` alone and is saved in ``split_image_folder.json``, which later runs, and
    others that start at the same time, read whatever their seed, so no model is tested on images it
    was trained on. An image in the file keeps its part for good, even while it is missing. Images
    added later are training images, unless their class is new.

    Args:
        cfg: the config; ``DATASET.ROOT``, ``DATASET.VAL_PERCENT`` and ``DATALOADER.ON_ERROR`` are
            used, and what ``DatasetBase`` uses.

    Raises:
        UserError: a folder, file or share is malformed, there is only one class, two classes have
            the same name, a class has too few images, or an image or a folder cannot be read and
            ``DATALOADER.ON_ERROR`` is "stop".
    """

    root_is_dataset = True

    def __init__(self, cfg: CfgNode) -> None:
        self.dataset_dir = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.split_file = os.path.join(self.dataset_dir, "split_image_folder.json")
        self.templates = self._templates()
        # sample_few_shot saves its files next to the class folders
        folders = [name for name in class_folders(self.dataset_dir) if name != "split_fewshot"]
        in_parts = self._has_parts(folders)
        train_dir = os.path.join(self.dataset_dir, "train") if in_parts else self.dataset_dir
        classes = class_folders(train_dir) if in_parts else folders
        if len(classes) == 1:
            raise UserError(
                f"image folder '{train_dir}' contains only the class folder '{classes[0]}'; a "
                "classifier needs two classes or more"
            )
        names = self._class_names(classes)

        skip = cfg.DATALOADER.ON_ERROR == "skip"
        items = {"train": self._images(train_dir, classes, names, skip)}
        for part in ("val", "test"):
            if in_parts and part in folders:
                place = os.path.join(self.dataset_dir, part)
                for name in class_folders(place):
                    if name not in classes:
                        raise UserError(f"class folder '{name}' is in '{place}' but not in 'train'")
                items[part] = self._images(place, classes, names, skip)
        everything = [item for split in items.values() for item in split]
        whole = {item.impath for item in leave_out_broken(everything, cfg, self.dataset_dir)}
        splits = {
            part: [item for item in split if item.impath in whole] for part, split in items.items()
        }
        trained = {item.label for item in splits["train"]}
        for label, folder in enumerate(classes):
            if label not in trained:
                raise UserError(
                    f"class folder '{os.path.join(train_dir, folder)}' has no readable "
                    f"image ({', '.join(IMAGE_SUFFIXES)})"
                )
        self._split_off(splits, cfg.DATASET.VAL_PERCENT, cfg.SEED)

        super().__init__(
            train_x=splits["train"],
            val=splits["val"],
            test=splits["test"],
            cfg=cfg,
            classnames=[names[folder] for folder in classes],
        )

    def _has_parts(self, folders: list[str]) -> bool:
        """Tell whether the folders are parts, not classes; a class may be named "train"."""
        parts = [name for name in folders if name in SPLITS]
        others = [name for name in folders if name not in SPLITS]
        if not folders:
            raise UserError(f"image folder '{self.dataset_dir}' contains no class folders")
        if parts and not others and "train" not in parts:
            raise UserError(f"'{self.dataset_dir}' has a folder '{parts[0]}' but no 'train'")
        if len(parts) > 1 and others:
            raise UserError(
                f"'{self.dataset_dir}' has folders '{parts[0]}' and '{parts[1]}' next to "
                f"'{others[0]}': expected either parts or classes, got both"
            )
        if others and len(folders) > 1 and all(name.lower() in NEARLY_PARTS for name in others):
            raise UserError(
                f"'{self.dataset_dir}' has the folders {', '.join(map(repr, folders))}: parts must "
                "be named 'train', 'val' and 'test'"
            )
        return bool(parts) and not others

    def _templates(self) -> list[str]:
        path = os.path.join(self.dataset_dir, "templates.txt")
        if not os.path.exists(path):
            return list(DatasetBase.templates)
        templates = [line for (line,) in read_fields(path, 1)]
        for template, count in Counter(templates).items():
            check_text(template, f"'{path}': template")
            if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
                raise UserError(
                    f"'{path}': {shown(template)} must have one {{}} and no other braces"
                )
            if count > 1:
                raise UserError(f"'{path}': {shown(template)} is there {count} times")
        if not templates:
            raise UserError(f"'{path}' has no template")
        return templates

    def _class_names(self, folders: list[str]) -> dict[str, str]:
        """Return {folder: class name}; accents match however they are encoded."""
        path = os.path.join(self.dataset_dir, "classnames.json")
        given: dict[str, str] = {}
        if os.path.exists(path):
            content = read_json(path)
            if not isinstance(content, dict) or not all(
                isinstance(name, str) and name.strip() for name in content.values()
            ):
                raise UserError(f"'{path}' is not {{folder: class name}}")
            for folder, name in content.items():
                check_text(name, f"'{path}': class")
                if given.setdefault(composed(folder), name.strip()) != name.strip():
                    raise UserError(f"'{path}' names the folder {composed(folder)!r} twice")
        names = {folder: composed(given.pop(composed(folder), folder)) for folder in folders}
        if given:
            raise UserError(
                f"'{path}' names the folder {next(iter(given))!r}, which does not exist"
            )
        by_name: dict[str, str] = {}
        for folder, name in names.items():
            # a prompt has blanks for underscores, and CLIP reads it in lower case
            seen = " ".join(name.replace("_", " ").lower().split())
            other = by_name.setdefault(seen, folder)
            if other != folder:
                raise UserError(
                    f"the folders '{other}' and '{folder}' have the same class name: {name}"
                )
        return names

    def _images(self, folder: str, classes: list[str], names: dict[str, str], skip: bool) -> Split:
        """Return the images of a folder of class folders, sorted by path within a class."""
        items = []
        unused: Counter[str] = Counter()
        left_out: Counter[str] = Counter()

        def unreadable(error: OSError) -> None:
            message = f"cannot read {error.filename!r}: {error.strerror}"
            if not skip:
                raise UserError(
                    f"{message}; make it readable, or set DATALOADER.ON_ERROR skip to leave it out"
                )
            log.info(f"Left out: {message}")

        there = class_folders(folder)  # those of a part need not have every class
        for label, name in enumerate(classes):
            if name not in there:
                continue
            paths = []
            for path in files_below(os.path.join(folder, name), left_out, unreadable):
                suffix = os.path.splitext(path)[1].lower()
                if suffix in IMAGE_SUFFIXES:
                    paths.append(path)
                else:
                    unused[repr(suffix)[1:-1] or "no suffix"] += 1
            for path in sorted(paths):
                check_text(path, "image")
                items.append(Datum(path, label, classname=names[name]))
        if unused:
            kinds = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(unused.items()))
            images = ", ".join(IMAGE_SUFFIXES)
            log.info(f"Ignored files in '{folder}' that are not {images}: {kinds}")
        if left_out:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(left_out.items()))
            log.info(f"Ignored in '{folder}': {kinds}")
        return items

    def _split_off(self, splits: dict[str, Split], val_share: float, seed: int) -> None:
        """Split off the parts missing in ``splits`` from its training images."""
        missing = [part for part in ("test", "val") if part not in splits]
        if not missing:
            return
        images = {relative(item.impath, self.dataset_dir): item for item in splits["train"]}

        def read() -> dict[str, str] | None:
            kept = self._kept_parts(missing)
            return kept if kept.keys() >= images.keys() else None

        def draw() -> tuple[dict[str, list[Row]], dict[str, str]]:
            kept = self._kept_parts(missing)
            # A generator of its own, so the split does not depend on what was drawn before.
            generator = random.Random(max(seed, 0))
            drawn: dict[str, str] = {}
            for items in self.split_dataset_by_label(splits["train"]).values():
                paths = [relative(item.impath, self.dataset_dir) for item in items]
                if any(path in kept for path in paths):
                    drawn.update({path: kept.get(path, "train") for path in paths})
                else:
                    drawn.update(draw_parts(items, paths, missing, val_share, generator))
            train, val, test = (
                [item for path, item in images.items() if drawn[path] == part] for part in SPLITS
            )
            record = split_record(train, val, test, self.dataset_dir)
            for part, rows in self._kept_rows().items():
                record[part] += [row for row in rows if row[0] not in images]
            return record, {**kept, **drawn}

        parts = read_or_make(self.split_file, read, draw)
        gone = len(parts.keys() - images.keys())
        if gone:
            log.info(f"{gone} images of '{self.split_file}' are missing or unreadable")
        splits.update({part: [] for part in ("train", *missing)})
        for path, item in images.items():
            splits[parts[path]].append(item)

    def _kept_rows(self) -> dict[str, list[Row]]:
        """Return the rows of the split file by part, empty if there is none."""
        if not os.path.exists(self.split_file):
            return {}
        try:
            parts = read_rows(self.split_file)
        except UserError as error:
            raise UserError(f"{error}; delete it") from error
        return {
            part: [(posixpath.normpath(path), label, name) for path, label, name in rows]
            for part, rows in parts.items()
        }

    def _kept_parts(self, missing: list[str]) -> dict[str, str]:
        """Return {path: part} from the split file, without the parts that have a folder."""
        return {
            path: part
            for part, rows in self._kept_rows().items()
            if part == "train" or part in missing
            for path, _, _ in rows
        }


def composed(text: str) -> str:
    """Return the text with composed accents; some file systems decompose them."""
    return unicodedata.normalize("NFC", text)


def files_below(
    folder: str, left_out: Counter[str], unreadable: Callable[[OSError], Any]
) -> Iterator[str]:
    """Yield the paths of the files in a class folder and the folders below it, linked ones too.

    Each real folder comes once: by its own name if it has one here, or else by the first link.

    Args:
        folder: the class folder.
        left_out: counts what is passed over, by kind.
        unreadable: called with the error of a folder that cannot be read.
    """
    ways = (Path(os.path.realpath(folder)), Path(os.path.abspath(folder)))
    seen = {_identity(str(place)) for way in ways for place in way.parents}
    waiting = [folder]
    while waiting:
        for place, below, files in os.walk(waiting.pop(0), onerror=unreadable):
            if _identity(place) in seen:
                left_out["links to a folder above or one that is there already"] += 1
                below.clear()
                continue
            seen.add(_identity(place))
            below[:] = sorted(name for name in below if not name.startswith("."))
            left_out.update(name for name in below if name.lower() in LEFTOVERS)
            below[:] = [name for name in below if name.lower() not in LEFTOVERS]
            paths = [os.path.join(place, name) for name in below]
            waiting += [path for path in paths if os.path.islink(path)]  # walk passes over them
            for name in files:
                path = os.path.join(place, name)
                if name.startswith("._"):
                    left_out["._*"] += 1
                elif not name.startswith(".") and _is_file(path, left_out, unreadable):
                    yield path


def _is_file(path: str, left_out: Counter[str], unreadable: Callable[[OSError], Any]) -> bool:
    """Return whether a path is a regular file or a link to one; report it otherwise."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            left_out["links to themselves"] += 1
        else:
            unreadable(error)
        return False
    if not regular:
        left_out["pipes, sockets and devices"] += 1
    return regular


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def draw_parts(
    items: Split,
    paths: list[str],
    missing: list[str],
    val_share: float,
    generator: random.Random,
) -> dict[str, str]:
    """Return {path: part} for the images of one class.

    Args:
        items: all training images of the class.
        paths: those that the split file has for them.
        missing: the parts to split off, "test" or "val" or both.
        val_share: share of the images that are not for testing.
        generator: source of the random split.

    Raises:
        UserError: no image would be left for training.
    """
    order = list(paths)
    generator.shuffle(order)
    tests = max(1, round(TEST_SHARE * len(order))) if "test" in missing else 0
    left = len(order) - tests
    if left < 1:
        raise UserError(
            f"class '{items[0].classname}' has {len(order)} images: too few to train and to test"
        )
    vals = 0
    if "val" in missing and val_share > 0:
        vals = min(max(1, round(val_share * left)), left - 1)
    return {
        path: "test" if number < tests else "val" if number < tests + vals else "train"
        for number, path in enumerate(order)
    }
