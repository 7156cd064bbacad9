"""Fetch what is missing of a public dataset, from its sources or else from the mirror."""

from __future__ import annotations

import os
import tarfile
import zipfile
from contextlib import suppress
from functools import partial

from dassl.command import say
from dassl.errors import UserError, escaped
from dassl.utils import read_json
from dassl.utils.download import NetworkError, download

from .mirror import find_dataset, mirrored, read_members
from .sources import MIRROR, MIRRORED, PUBLIC_SETS, PublicSet, Source
from .status import check, exists
from .unpacking import find_members, unpack, unpacking


def prepare(name: str, root: str, fetched: list[str]) -> None:
    """Fetch and unpack what is missing of a dataset; print what must be obtained manually.

    Args:
        name: name of the dataset.
        root: folder of the datasets.
        fetched: receives the path of each file that was downloaded.

    Raises:
        UserError: neither an address nor the mirror can be reached, or a file is not the expected
            one. What was fetched before is kept.
    """
    entry = PUBLIC_SETS[name]
    folder = entry.folder(root)
    if not check(entry, folder).missing:
        say(f"{name}: complete")
        return
    say(f"{name}: into {escaped(folder)}")
    if not entry.sources:
        _say_by_hand(entry, folder)
    for source in entry.sources:
        if all(exists(folder, path) for path in source.gives):
            continue
        path = os.path.join(folder, source.file)
        failure = _try_to_fetch(source, path, fetched)
        if failure:
            _use_mirror(name, source, folder, fetched, failure)
            if not check(entry, folder).missing:  # what no run needs may be absent
                break
        elif source.unpack:
            find = partial(find_members, source, path)
            unpack(path, source.checksum, folder, path in fetched, find)
    missing = check(entry, folder).missing
    if missing and entry.sources:
        say(
            f"{name} lacks {', '.join(missing)}. Existing files are not fetched again: first move "
            "away an incomplete folder or a wrong file."
        )


def _say_by_hand(entry: PublicSet, folder: str) -> None:
    for line in entry.by_hand:
        say(line.format(folder=escaped(folder)))
    for source in entry.sources:
        if not source.url and not all(exists(folder, path) for path in source.gives):
            say(
                f"  {source.file} (SHA-256 {source.checksum}): place it in {escaped(folder)} and "
                f"run the same command to unpack it. Or provide {', '.join(source.gives)} in it."
            )


def _with_advice(error: UserError, path: str) -> UserError:
    return type(error)(
        f"{error}; obtain the file by other means, place it at '{path}' and run the same command "
        "again"
    )


def _fetch(source: Source, path: str, fetched: list[str]) -> None:
    if os.path.exists(path):
        return
    if not source.url:
        raise UserError(f"{source.file} has no address anymore")
    target = _target(source, path)
    download(source.url, target, source.checksum)
    try:
        _check_kind(target, source)
    except UserError:
        os.unlink(target)
        raise
    os.replace(target, path)
    fetched.append(path)


def _target(source: Source, path: str) -> str:
    """Return where a source is downloaded to: what has no checksum is looked at first."""
    return path if source.checksum else path + ".new"


def _check_kind(path: str, source: Source) -> None:
    """Raise ``UserError`` where a file is not of its kind.

    Google Drive may return a page about the file instead of the file.
    """
    if source.checksum:
        return
    if source.file.endswith(".json"):
        read_json(path)
    elif source.unpack and not (tarfile.is_tarfile(path) or zipfile.is_zipfile(path)):
        raise UserError(f"{source.url} is no archive")


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _try_to_fetch(source: Source, path: str, fetched: list[str]) -> UserError | None:
    """Fetch a file, or return why its source fails to give it.

    Raises:
        UserError: the source gave a part of it.
    """
    part = _target(source, path) + ".part"
    done = _size(part)
    try:
        _fetch(source, path, fetched)
    except UserError as error:
        if _size(part) > done:
            raise _with_advice(error, path) from error
        return error
    return None


def _use_mirror(
    name: str, source: Source, folder: str, fetched: list[str], failure: UserError
) -> None:
    """Take from the mirror what a run lacks because a source failed to give its file.

    Raises:
        UserError: the mirror fails, too, or has nothing that a run lacks.
    """
    entry, path = PUBLIC_SETS[name], os.path.join(folder, source.file)
    gives = [given for each in entry.sources for given in each.gives]
    wanted = [given for given in check(entry, folder).missing if given in gives]
    if name not in MIRRORED or not wanted:
        raise _with_advice(failure, path) from failure
    say(f"{name}: {failure}; trying the mirror {MIRROR}")
    try:
        if all(os.path.splitext(given)[1] for given in wanted):  # no folder of images
            _copy_members(MIRRORED[name], wanted, folder, fetched)
        else:
            archive = mirrored(MIRRORED[name])
            file = os.path.join(folder, archive.file)
            _fetch(archive, file, fetched)
            find = partial(find_dataset, entry, folder=folder)
            unpack(file, archive.checksum, folder, file in fetched, find)
    except UserError as error:
        if not source.url:
            _say_by_hand(entry, folder)
        is_network = isinstance(failure, NetworkError) and isinstance(error, NetworkError)
        kind = NetworkError if is_network else UserError
        raise _with_advice(kind(f"{failure}; and from the mirror: {error}"), path) from error
    with suppress(OSError):  # it may not be there, or not be a file
        os.unlink(_target(source, path) + ".part")


def _copy_members(archive: str, wanted: list[str], folder: str, fetched: list[str]) -> None:
    """Copy a few files out of an archive of the mirror."""
    contents = read_members(archive, wanted)
    with unpacking(folder) as temporary:
        for given, content in contents.items():
            file = os.path.join(temporary, given)
            with open(file, "wb") as written:
                written.write(content)
            if given.endswith(".json"):
                read_json(file)
            os.replace(file, os.path.join(folder, given))
            fetched.append(os.path.join(folder, given))
