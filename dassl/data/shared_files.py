"""Files that several runs share: one of them makes the file, the others read it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from dassl.errors import UserError
from dassl.utils.logger import log
from dassl.utils.tools import mkdir_if_missing, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Content = TypeVar("Content")
_may_write = True


@contextmanager
def writing_nothing() -> Iterator[None]:
    """Within it, what would be kept for later runs is made and not written."""
    global _may_write
    before, _may_write = _may_write, False
    try:
        yield
    finally:
        _may_write = before


def may_write() -> bool:
    """Return whether files for later runs may be written now."""
    return _may_write


def read_or_make(
    path: str,
    read: Callable[[], Content | None],
    make: Callable[[], tuple[Any, Content]],
) -> Content:
    """Return what a JSON file holds, or make it: of several processes one does, the others read.

    Where the file cannot or may not be written, what ``make`` returns is not kept. On a file system
    without locks a new file is still made by one process alone; replacing an outdated one is not.

    Args:
        path: of the file.
        read: return the content of the file, or None where it is missing or out of date.
        make: return what JSON is to hold, and the content that ``read`` would return.
    """
    kept = read()
    if kept is not None:
        return kept
    if not may_write():
        return make()[1]
    with locked(path):
        kept = read()  # another process may have been first
        if kept is not None:
            return kept
        outdated = os.path.lexists(path)
        record, content = make()
        try:
            if outdated:
                write_json(record, path)
            elif not _create(record, path):  # a process was first in spite of the lock
                return read_or_make(path, read, make)
            log.info(f"Saved {path}")
        except (OSError, UserError) as error:  # a read-only folder; the seed gives the content
            log.info(f"Not saved: {error}")
        return content


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of a file; without one where the folder or the system does not allow it."""
    lock = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.lock")
    descriptor = None
    try:
        mkdir_if_missing(os.path.dirname(path))
        while fcntl is not None:
            no_links = getattr(os, "O_NOFOLLOW", 0)  # one could make any file of the user
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | no_links, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    break
            os.close(descriptor)  # its last holder has removed it
    except (OSError, UserError):
        pass  # a read-only folder, or a file system without locks
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                os.unlink(lock)
            os.close(descriptor)


def _create(record: Any, path: str) -> bool:
    """Write a new JSON file; return False where another process is the first to.

    Linking is what no two processes do with success, on a network drive without locks, too.
    """
    with tempfile.TemporaryDirectory(prefix=".new-", dir=os.path.dirname(path) or ".") as folder:
        new = os.path.join(folder, os.path.basename(path))
        write_json(record, new)
        try:
            os.link(new, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            os.replace(new, path)
    return True
