"""Unpack archives of public datasets beside their place, and move into it what is of use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dassl.command import say
from dassl.errors import UserError, escaped
from dassl.utils.download import check_file, extract_archive

from .sources import Source

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ARCHIVES = (".tar", ".tgz", ".gz", ".zip")
UNPACKING = ".unpacking"  # how the names of temporary folders begin


@contextmanager
def unpacking(folder: str) -> Iterator[str]:
    """Make a temporary folder in the dataset's folder, in which no other process unpacks meanwhile.

    Raises:
        UserError: another process does, or the folder cannot be written.
    """
    lock = None
    try:
        if fcntl is not None:
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process unpacks in '{folder}' at this moment") from None
        for name in os.listdir(folder):
            if name.startswith(UNPACKING):  # left by a run that was killed; rmtree follows no link
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        temporary = tempfile.mkdtemp(prefix=f"{UNPACKING}-", dir=folder)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot unpack in '{folder}': {error.strerror}") from error
    finally:
        if lock is not None:
            os.close(lock)


def find_members(source: Source, path: str, tree: str) -> list[tuple[str, str]]:
    """Return (path, path in the dataset's folder) of the members that a source is there for."""
    found = []
    for inside, target in source.unpack.items():
        member = os.path.join(tree, inside)
        if inside.endswith(ARCHIVES) and os.path.isfile(member):
            inner = tempfile.mkdtemp(dir=tree)
            extract_archive(member, inner)
            member = os.path.join(inner, target)
        if not os.path.exists(member):
            raise UserError(f"archive '{path}' has no '{inside}'")
        found.append((member, target))
    return found


def unpack(
    path: str,
    checksum: str,
    folder: str,
    was_fetched: bool,
    find: Callable[[str], list[tuple[str, str]]],
) -> None:
    """Move those members of an archive that are missing into the dataset's folder.

    Args:
        path: of the archive, which is removed if it was fetched.
        checksum: its MD5 or SHA-256; "" if none is known.
        folder: the dataset's folder.
        was_fetched: whether this command has downloaded the archive, and checked it.
        find: returns (path, path in the dataset's folder) of the members of use, given the folder
            in which the archive has been unpacked.

    Raises:
        UserError: the archive is damaged or lacks a member. Nothing has been moved.
    """
    try:
        if not was_fetched:
            check_file(path, checksum)
        with unpacking(folder) as temporary:
            extract_archive(path, temporary)
            for member, target in find(temporary):
                moved = os.path.join(folder, target)
                if not os.path.exists(moved):
                    os.replace(member, moved)
    except UserError as error:
        raise UserError(
            f"{error}; if the file is damaged, delete it and run the same command again"
        ) from error
    if was_fetched:
        os.unlink(path)
    else:
        say(f"'{escaped(path)}' has been unpacked and is no longer needed")
