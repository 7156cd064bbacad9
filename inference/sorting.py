"""Pictures sorted into one folder for each class; no file is ever replaced."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Sequence
from itertools import count

from dassl.errors import is_control, writing
from dassl.utils.tools import mkdir_if_missing

LONGEST = 100  # bytes of a folder's name; file systems take 255
# Names that Windows keeps for devices.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def safe_name(label: str) -> str:
    """Return a folder's name that every file system takes and that leads nowhere else."""
    name = "".join("_" if is_control(c) or c in '/\\:*?"<>|' else c for c in label)
    name = name.encode(errors="replace")[:LONGEST].decode(errors="ignore").strip(" .")
    return f"_{name}" if not name or _DEVICES.fullmatch(name) else name


class Sorter:
    """Copies pictures, or makes symbolic links to them.

    A picture that is there already, from an earlier run, is left; another one of its name gets a
    number, as in "photo (2).jpg". Folders of classes whose names would be the same get numbers,
    too.

    Args:
        folder: where the classes' folders are made, once a class has a picture.
        labels: the classes.
        link: whether to make links.
    """

    def __init__(self, folder: str, labels: Sequence[str], link: bool) -> None:
        self.folder, self.link = folder, link
        self.places: dict[str, str] = {}
        self.taken: set[str] = set()
        for label in labels:
            self.place_of(label)

    def place_of(self, label: str) -> str:
        """Return the folder of a class."""
        if label not in self.places:
            name = safe_name(label)
            names = (name if i == 1 else f"{name} ({i})" for i in count(1))
            free = next(each for each in names if each.casefold() not in self.taken)
            self.taken.add(free.casefold())
            self.places[label] = os.path.join(self.folder, free)
        return self.places[label]

    def add(self, path: str, label: str) -> str:
        """Put a picture into its class's folder and return where it is there.

        Raises:
            UserError: that cannot be written.
        """
        place = self.place_of(label)
        mkdir_if_missing(place)
        stem, suffix = os.path.splitext(os.path.basename(path))
        for i in count(1):
            target = os.path.join(place, f"{stem}{suffix}" if i == 1 else f"{stem} ({i}){suffix}")
            with writing(f"'{target}'"):
                try:
                    self._make(path, target)
                except FileExistsError:
                    if not self._is_there(path, target):
                        continue
            return target
        raise AssertionError("numbers do not end")

    def _make(self, path: str, target: str) -> None:
        if self.link:
            os.symlink(os.path.abspath(path), target)
            return
        with open(path, "rb") as source, open(target, "xb") as copy:
            try:
                shutil.copyfileobj(source, copy)
            except BaseException:
                os.unlink(target)
                raise

    def _is_there(self, path: str, target: str) -> bool:
        if self.link or os.path.islink(target):
            return os.path.islink(target) and os.path.realpath(target) == os.path.realpath(path)
        return os.path.isfile(target) and filecmp.cmp(path, target, shallow=False)
