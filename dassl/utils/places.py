"""What is in the places where a run is going to write."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from dassl.errors import UserError, writing
from dassl.utils.tools import TEMPORARY_NAME


def check_files(folder: str, names: Iterable[str]) -> None:
    """Check that each of these names is free, or that of a file.

    Raises:
        UserError: something else has the name, such as a folder, a pipe or a dangling link.
    """
    for path in (os.path.join(folder, name) for name in names):
        if os.path.isdir(path):
            raise UserError(f"cannot write '{path}': Is a directory")
        if os.path.lexists(path) and not os.path.isfile(path):
            raise UserError(f"cannot write '{path}': Not a regular file")


def check_folders(folder: str, names: Iterable[str]) -> None:
    """Check that each of these names is free, or that of a folder that may be written.

    Raises:
        UserError: it is not, or a checkpoint in it is not a file.
    """
    for path in (os.path.join(folder, name) for name in names):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise UserError(f"cannot write '{path}': Not a directory")
        if os.path.isdir(path) and not os.access(path, os.W_OK | os.X_OK):
            raise UserError(f"cannot write '{path}': Permission denied")
        if os.path.isdir(path):
            saved = [x for x in os.listdir(path) if x.startswith(("model", "checkpoint"))]
            check_files(path, saved)


def remove_if_there(folder: str, name: str) -> None:
    """Remove a file that may not be there."""
    path = os.path.join(folder, name)
    with writing(f"'{path}'"), suppress(FileNotFoundError):
        os.unlink(path)


def remove_temporary_files(folder: str, lock_file: str) -> None:
    """Remove what ``atomic_write`` left in a run's folder and its models' when it was killed.

    Only whoever holds the folder's lock may do that. A folder in it that has a lock file of its
    own is another run's, and links are not followed.
    """
    with os.scandir(folder) as entries:
        inside = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    models = [path for path in inside if not os.path.lexists(os.path.join(path, lock_file))]
    for place in [folder, *models]:
        with suppress(OSError):  # another user's folder, or one that goes at this moment
            for name in filter(TEMPORARY_NAME.fullmatch, os.listdir(place)):
                os.unlink(os.path.join(place, name))
