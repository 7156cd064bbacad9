"""What is looked at in a zip file, such as a checkpoint, before torch reads it."""

from __future__ import annotations

import os
import zipfile

from dassl.errors import UserError

MOST_UNPACKED = 100  # times the size of the file; torch does not compress at all


def check_sums(path: str | os.PathLike) -> None:
    """Raise ``UserError`` where a member of a zip file differs from its checksum.

    Files in torch's old format have no checksums and pass.
    """
    check_size(path)
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except Exception as error:  # of several families
        raise UserError(f"'{path}' is damaged: {error}") from error
    if damaged:
        raise UserError(f"'{path}' is damaged: the checksum of its member '{damaged}' differs")


def check_size(path: str | os.PathLike) -> None:
    """Raise ``UserError`` where a zip file would fill memory when it is unpacked."""
    unpacked = sum(member.file_size for member in _members(path))
    if unpacked > MOST_UNPACKED * os.path.getsize(path):
        raise UserError(f"'{path}' is damaged: it would have {unpacked:,} bytes when unpacked")


def is_torchscript(path: str | os.PathLike) -> bool:
    """Return whether a file is a program with its tensors, as ``torch.jit.save`` writes it."""
    names = [member.filename for member in _members(path)]
    return any("/code/" in name or name.endswith("/constants.pkl") for name in names)


def _members(path: str | os.PathLike) -> list[zipfile.ZipInfo]:
    """List what a zip file contains; nothing where the file is another one."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as file:
            return file.infolist()
    except Exception as error:  # of several families
        raise UserError(f"'{path}' is damaged: {error}") from error
