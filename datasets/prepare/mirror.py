"""The mirror of the public datasets on the Hugging Face Hub, for what a source fails to give.

The Hub is the one at ``HF_ENDPOINT``, by default https://huggingface.co. Archives are downloaded by
``dassl.utils.download``, which continues a download of an earlier command; huggingface_hub, which
does not, gives the address and the SHA-256.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from zipfile import ZipFile

from dassl.errors import UserError
from dassl.utils.download import NetworkError

from .sources import MIRROR, MIRROR_COMMIT, PublicSet, Source
from .status import check, exists


def mirrored(archive: str) -> Source:
    """Return where an archive of the mirror is, and its SHA-256.

    Raises:
        NetworkError: the Hub cannot be reached.
        UserError: the Hub has no such archive, or refuses it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(MIRROR, archive, revision=MIRROR_COMMIT)
    try:
        etag = get_hf_file_metadata(url, token=False).etag or ""
    except Exception as error:  # the HTTP client's errors are no OSErrors
        response = getattr(error, "response", None)
        if response is None:
            raise NetworkError(f"cannot reach {url}: {_reason(error)}") from error
        raise UserError(f"cannot download {url}: HTTP Error {response.status_code}") from error
    # the tag of a large file is its SHA-256
    return Source(f"mirror-{archive}", url, etag if re.fullmatch("[0-9a-f]{64}", etag) else "")


def read_members(archive: str, names: Sequence[str]) -> dict[str, bytes]:
    """Read a few files of an archive of the mirror, and nothing but its list of contents besides.

    Raises:
        UserError: the archive cannot be read, or has no such file.
    """
    from huggingface_hub import HfFileSystem, constants

    place = f"{MIRROR}/{archive}"
    try:
        files = HfFileSystem(endpoint=constants.ENDPOINT, token=False)
        with files.open(place, revision=MIRROR_COMMIT) as remote, ZipFile(remote) as zipped:
            paths = {
                name: next((p for p in zipped.namelist() if f"/{p}".endswith(f"/{name}")), None)
                for name in names
            }
            absent = [name for name, path in paths.items() if path is None]
            if absent:
                raise UserError(f"{place} has no {', '.join(absent)}")
            return {name: zipped.read(path) for name, path in paths.items() if path}
    except UserError:
        raise
    except Exception as error:  # as above, and what a damaged archive raises
        raise UserError(f"cannot read {place}: {_reason(error)}") from error


def find_dataset(entry: PublicSet, tree: str, folder: str) -> list[tuple[str, str]]:
    """Find a dataset, wherever it is in an unpacked archive, and check its images and classes.

    Args:
        entry: the dataset.
        tree: where the archive has been unpacked.
        folder: the dataset's folder, which may already have a part of it.

    Returns:
        (path, path in the dataset's folder) of all that the dataset's sources would have given;
        nothing else of the archive is of use, least of all its pickled few-shot samples.

    Raises:
        UserError: no folder of the archive has the dataset.
    """
    missing = list(entry.folders)
    for parent, _, _ in os.walk(tree):
        if all(exists(parent, images) for images in entry.folders):
            missing = [part for part in check(entry, parent).missing if not exists(folder, part)]
            if not missing:
                gives = [path for source in entry.sources for path in source.gives]
                there = [path for path in gives if exists(parent, path)]
                return [(os.path.join(parent, path), path) for path in there]
    raise UserError(f"the archive lacks {', '.join(missing)}")


def _reason(error: Exception) -> str:
    """Return what an error says, in one line of moderate length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
