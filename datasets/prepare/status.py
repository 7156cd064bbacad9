"""How complete a public dataset is."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dassl.errors import UserError
from dassl.table import print_table

from ..common import read_fields, read_rows
from .sources import PUBLIC_SETS, PublicSet, Source

IMAGES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Status:
    """How complete a dataset is.

    Attributes:
        found: number of images that a run would use.
        expected: their number in the papers' table.
        classes: number of classes; None if neither a list nor the folders tell.
        split: "present", "absent" or "not needed".
        missing: what a run lacks, to be printed; empty if the dataset is complete.
    """

    found: int
    expected: int
    classes: int | None
    split: str
    missing: list[str]


def check(entry: PublicSet, folder: str) -> Status:
    """Compare a dataset's folder with the papers' table; write nothing.

    Images are those listed in the split file, else those in the publishers' lists, else all image
    files in the folder.
    """
    there = {path for images in entry.folders for path in _image_files(folder, images)}
    parts, split, missing = entry.images, "not needed", []
    classes: int | None
    lists = [os.path.join(folder, name) for name in entry.lists]
    if entry.split_file:
        split = "present" if os.path.exists(os.path.join(folder, entry.split_file)) else "absent"
    if split == "absent":
        missing.append(entry.split_file)
    try:
        if split == "present":
            named = read_rows(os.path.join(folder, entry.split_file))
            parts = (len(named["train"]), len(named["val"]), len(named["test"]))
            listed = [row for part in named.values() for row in part]
            images = {posixpath.join(entry.image_dir, path) for path, _, _ in listed}
            classes = len({label for _, label, _ in listed})
        elif lists and all(os.path.exists(path) for path in lists):
            by_line = [fields for path in lists for fields in _read_list(path)]
            images = {posixpath.join(entry.folders[0], path) for path, _ in by_line}
            classes = len({name for _, name in by_line})
        else:
            images = {path for path in there if path.split("/")[-2] not in entry.ignored}
            folders = {posixpath.dirname(path) for path in images} - set(entry.folders)
            if len(entry.folders) > 1:  # the same classes in each
                folders = {posixpath.basename(path) for path in folders}
            classes = len(folders) or None
    except UserError as error:
        missing.append(f"a valid file: {error}")
        return Status(0, sum(entry.images), None, split, missing)

    found = len(images & there)
    needed = entry.folders if entry.split_file else [*entry.folders, *_gives(entry.sources)]
    absent = [path for path in dict.fromkeys(needed) if not exists(folder, path)]
    missing += absent
    if parts != entry.images:
        missing.append(f"a split file of {_counts(entry.images)} images, not {_counts(parts)}")
    elif found < sum(parts) and not absent:
        missing.append(f"{sum(parts) - found:,} of the images")
    if classes not in (None, entry.classes) and not missing:
        missing.append(f"{entry.classes} classes, not {classes}")
    return Status(found, sum(entry.images), classes, split, missing)


def _counts(parts: Iterable[int]) -> str:
    return "/".join(f"{count:,}" for count in parts)


def exists(folder: str, path: str) -> bool:
    return os.path.exists(os.path.join(folder, path))


def _gives(sources: Iterable[Source]) -> list[str]:
    return [path for source in sources for path in source.gives]


def _image_files(folder: str, images: str) -> list[str]:
    """Return the paths, relative to ``folder``, of all images at any depth of its ``images``."""
    found = []
    for parent, _, names in os.walk(os.path.join(folder, images), followlinks=True):
        place = os.path.relpath(parent, folder).replace(os.sep, "/")
        found += [
            f"{place}/{name}"
            for name in names
            if name.lower().endswith(IMAGES) and not name.startswith(".")
        ]
    return found


def _read_list(path: str) -> list[tuple[str, str]]:
    """Return (path, class identifier) of each image in a publishers' list."""
    images = []
    for (line,) in read_fields(path, 1):
        name, _, rest = line.partition(" ")
        name = name.lstrip("/")
        images.append(
            (name if name.endswith(".jpg") else f"{name}.jpg", rest or posixpath.dirname(name))
        )
    return images


def report(names: Sequence[str], root: str) -> bool:
    """Print the table of these datasets; return whether all are complete."""
    rows, complete = [], True
    for name in names:
        entry = PUBLIC_SETS[name]
        status = check(entry, entry.folder(root))
        complete = complete and not status.missing
        classes = "-" if status.classes is None else str(status.classes)
        rows.append(
            (
                name,
                f"{status.found:,} / {status.expected:,}",
                f"{classes} / {entry.classes}",
                status.split,
                ", ".join(status.missing) or "nothing",
            )
        )
    print_table(("dataset", "images", "classes", "split file", "missing"), rows)
    return complete
