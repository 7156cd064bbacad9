"""ImageFolder: any folder of images, one folder for each class."""

from __future__ import annotations

import os
import random
import unicodedata
from collections import Counter

from yacs.config import CfgNode

from dassl.data.data_manager import leave_out_broken
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.datasets.base_dataset import Split
from dassl.errors import UserError
from dassl.utils import log, read_json

from .common import SPLITS, class_folders, read_fields, read_rows, save_split

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TEST_SHARE = 0.2
# common names for the parts that would be mistaken for classes
NEARLY_PARTS = (*SPLITS, "valid", "validation", "testing", "training")


@DATASET_REGISTRY.register()
class ImageFolder(DatasetBase):
    """``DATASET.ROOT/<class>/...``, or the same below ``train``, ``val`` and ``test``.

    If all folders of the root have the names of parts, they are the parts; otherwise they are the
    classes. Folders within a class folder belong to the class. Labels follow the sorted class
    folders. Two files next to the folders are optional:

    - ``classnames.json``, {folder: class name}; a folder not listed keeps its own name;
    - ``templates.txt``, a prompt template with "{}" in each line; the first is the default one.

    A part without a folder is split off from the training images, class by class: a fifth of them
    for testing, ``DATASET.VAL_PERCENT`` of the rest for validation, at least one each. The split
    depends on ``SEED`` alone and is saved in ``split_image_folder.json``, which later runs read
    whatever their seed, so no model is tested on images it was trained on. Images added later are
    training images, unless their class is new.

    Args:
        cfg: the config; ``DATASET.ROOT``, ``DATASET.VAL_PERCENT`` and ``DATALOADER.ON_ERROR`` are
            used, and what ``DatasetBase`` uses.

    Raises:
        UserError: a folder, file or share is malformed, there is only one class, two classes have
            the same name, a class has too few images, or an image cannot be read and
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

        items = {"train": self._images(train_dir, classes, names)}
        for part in ("val", "test"):
            if in_parts and part in folders:
                place = os.path.join(self.dataset_dir, part)
                for name in class_folders(place):
                    if name not in classes:
                        raise UserError(f"class folder '{name}' is in '{place}' but not in 'train'")
                items[part] = self._images(place, classes, names)
        everything = [item for split in items.values() for item in split]
        whole = {item.impath for item in leave_out_broken(everything, cfg.DATALOADER.ON_ERROR)}
        splits = {
            part: [item for item in split if item.impath in whole] for part, split in items.items()
        }
        trained = {item.label for item in splits["train"]}
        for label, folder in enumerate(classes):
            if label not in trained:
                raise UserError(
                    f"class folder '{os.path.join(train_dir, folder)}' has no readable "
                    f"image ({', '.join(SUFFIXES)})"
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
        for template in templates:
            if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
                raise UserError(f"'{path}': '{template}' must have one {{}} and no other braces")
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
            given = {composed(folder): name.strip() for folder, name in content.items()}
        names = {folder: composed(given.pop(composed(folder), folder)) for folder in folders}
        if given:
            raise UserError(
                f"'{path}' names the folder '{next(iter(given))}', which does not exist"
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

    def _images(self, folder: str, classes: list[str], names: dict[str, str]) -> Split:
        """Return the images of a folder of class folders, sorted by path within a class."""
        items = []
        unused: Counter[str] = Counter()
        for label, name in enumerate(classes):
            paths = []
            for place, below, files in os.walk(os.path.join(folder, name)):
                below[:] = [other for other in below if not other.startswith(".")]
                for file in files:
                    suffix = os.path.splitext(file)[1].lower()
                    if suffix in SUFFIXES and not file.startswith("."):
                        paths.append(os.path.join(place, file))
                    elif not file.startswith("."):
                        unused[suffix or "no suffix"] += 1
            for path in sorted(paths):
                if path.encode(errors="replace").decode() != path:
                    raise UserError(f"the name of the image {path!a} is not UTF-8; rename it")
                items.append(Datum(path, label, classname=names[name]))
        if unused:
            kinds = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(unused.items()))
            log.info(f"Ignored files in '{folder}' that are not {', '.join(SUFFIXES)}: {kinds}")
        return items

    def _split_off(self, splits: dict[str, Split], val_share: float, seed: int) -> None:
        """Split off the parts missing in ``splits`` from its training images."""
        missing = [part for part in ("test", "val") if part not in splits]
        if not missing:
            return
        kept = self._kept_parts(missing)
        # A generator of its own, so the split does not depend on what was drawn before.
        generator = random.Random(max(seed, 0))
        by_class = self.split_dataset_by_label(splits["train"]).values()
        splits.update({part: [] for part in ("train", *missing)})
        gone = len(kept)
        for items in by_class:
            parts = {item.impath: kept.get(self._relative(item)) for item in items}
            gone -= sum(part is not None for part in parts.values())
            if not any(parts.values()):
                parts = draw_parts(items, missing, val_share, generator)
            for item in items:
                splits[parts[item.impath] or "train"].append(item)
        if gone:
            log.info(f"{gone} images of '{self.split_file}' are missing or unreadable")
        if kept.keys() == {self._relative(item) for split in splits.values() for item in split}:
            return
        try:
            save_split(
                splits["train"],
                splits["val"] if "val" in missing else [],
                splits["test"] if "test" in missing else [],
                self.split_file,
                self.dataset_dir,
            )
        except (
            OSError,
            UserError,
        ) as error:  # a read-only folder; the same seed gives the same split
            log.info(f"The split was not saved: {error}")

    def _relative(self, item: Datum) -> str:
        return os.path.relpath(item.impath, self.dataset_dir).replace(os.sep, "/")

    def _kept_parts(self, missing: list[str]) -> dict[str, str]:
        """Return {path: part} from the split file, empty if there is none."""
        if not os.path.exists(self.split_file):
            return {}
        try:
            rows = read_rows(self.split_file)
        except UserError as error:
            raise UserError(f"{error}; delete it") from error
        return {path: part for part in ("train", *missing) for path, _, _ in rows[part]}


def composed(text: str) -> str:
    """Return the text with composed accents; some file systems decompose them."""
    return unicodedata.normalize("NFC", text)


def draw_parts(
    items: Split, missing: list[str], val_share: float, generator: random.Random
) -> dict[str, str | None]:
    """Return {path: part} for the images of one class.

    Args:
        items: all training images of the class.
        missing: the parts to split off, "test" or "val" or both.
        val_share: share of the images that are not for testing.
        generator: source of the random split.

    Raises:
        UserError: no image would be left for training.
    """
    order = list(items)
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
    parts: dict[str, str | None] = {}
    for number, item in enumerate(order):
        parts[item.impath] = (
            "test" if number < tests else "val" if number < tests + vals else "train"
        )
    return parts
