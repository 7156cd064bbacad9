"""The checksums that a checkpoint carries, which torch does not look at."""

from __future__ import annotations

import os
import zipfile

from dassl.errors import UserError


def check_sums(path: str | os.PathLike) -> None:
    """Raise ``UserError`` where a member of a zip file differs from its checksum.

    Files in torch's old format have no checksums and pass.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except Exception as error:  # of several families
        raise UserError(f"'{path}' is damaged: {error}") from error
    if damaged:
        raise UserError(f"'{path}' is damaged: the checksum of its member '{damaged}' differs")
