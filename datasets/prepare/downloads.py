"""Fetch and unpack what is missing of a public dataset."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from dassl.command import say
from dassl.errors import UserError, escaped
from dassl.utils import read_json
from dassl.utils.download import check_file, download, extract_archive

from .sources import PUBLIC_SETS, Source
from .status import check, exists

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ARCHIVES = (".tar", ".tgz", ".gz", ".zip")
UNPACKING = ".unpacking"  # how the names of temporary folders begin


def prepare(name: str, root: str, fetched: list[str]) -> None:
    """Fetch and unpack what is missing of a dataset; print what must be obtained manually.

    Args:
        name: name of the dataset.
        root: folder of the datasets.
        fetched: receives the path of each file that was downloaded.

    Raises:
        UserError: an address cannot be reached, or a file is not the expected one. What was
            fetched before is kept.
    """
    entry = PUBLIC_SETS[name]
    folder = entry.folder(root)
    if not check(entry, folder).missing:
        say(f"{name}: complete")
        return
    say(f"{name}: into {escaped(folder)}")
    sources = [
        source for source in entry.sources if not all(exists(folder, path) for path in source.gives)
    ]
    by_hand = [s for s in sources if not s.url and not exists(folder, s.file)]
    if by_hand or not entry.sources:
        for line in entry.by_hand:
            say(line.format(folder=escaped(folder)))
    for source in by_hand:
        say(
            f"  {source.file} (SHA-256 {source.checksum}): place it in {escaped(folder)} and run "
            f"the same command to unpack it. Or provide {', '.join(source.gives)} in it."
        )
    for source in sources:
        path = os.path.join(folder, source.file)
        if source.url:
            _fetch(source, path, fetched)
        if source.unpack and os.path.exists(path):
            _unpack(source, path, folder, path in fetched)
    missing = check(entry, folder).missing
    if missing and entry.sources and not by_hand:
        say(
            f"{name} lacks {', '.join(missing)}. Existing files are not fetched again: first move "
            "away an incomplete folder or a wrong file."
        )


def _fetch(source: Source, path: str, fetched: list[str]) -> None:
    if os.path.exists(path):
        return
    try:
        if source.file.endswith(".json"):
            # Google Drive may return a page about the file instead of the file
            download(source.url, path + ".new", source.checksum)
            try:
                read_json(path + ".new")
            except UserError:
                os.unlink(path + ".new")
                raise
            os.replace(path + ".new", path)
        else:
            download(source.url, path, source.checksum)
    except UserError as error:
        raise type(error)(
            f"{error}; obtain the file by other means, place it at '{path}' and run the same "
            "command again"
        ) from error
    fetched.append(path)


@contextmanager
def _unpacking(folder: str) -> Iterator[str]:
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


def _unpack(source: Source, path: str, folder: str, was_fetched: bool) -> None:
    """Move those members of an archive that are missing into the dataset's folder."""
    try:
        if not was_fetched:
            check_file(path, source.checksum)
        with _unpacking(folder) as temporary:
            extract_archive(path, temporary)
            moves = []
            for inside, target in source.unpack.items():
                member = os.path.join(temporary, inside)
                if inside.endswith(ARCHIVES) and os.path.isfile(member):
                    inner = tempfile.mkdtemp(dir=temporary)
                    extract_archive(member, inner)
                    member = os.path.join(inner, target)
                if not os.path.exists(member):
                    raise UserError(f"archive '{path}' has no '{inside}'")
                moves.append((member, os.path.join(folder, target)))
            for member, moved in moves:
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
