"""Downloads that resume where they were cut off, and archives that stay inside their folder.

gdown serves Google Drive. torchvision's ``download_url`` cannot resume, so other addresses are read
here.
"""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib

from dassl.errors import UserError
from dassl.utils.logger import log
from dassl.utils.tools import mkdir_if_missing

TIMEOUT = 30  # seconds for a server to respond
BLOCK = 1 << 20  # bytes


class NetworkError(UserError):
    """An address that cannot be reached, or a connection that was cut off."""


def download(url: str, path: str, checksum: str = "") -> None:
    """Download ``url`` to ``path``, which exists only when it is complete and verified.

    A partial download stays in ``path`` + ".part", and the next call resumes it.

    Args:
        url: an address on the web or on Google Drive (with ``id=`` or ``/d/``).
        path: of the file; its folder is made.
        checksum: MD5 (32 digits) or SHA-256 (64) of the file; "" where none is known.

    Raises:
        NetworkError: the address cannot be reached.
        UserError: the server refuses the file, or the file has another checksum.
    """
    part = path + ".part"
    try:
        if urllib.parse.urlsplit(url).hostname == "drive.google.com":
            _from_drive(url, part)
        else:
            _from_web(url, part)
    # gdown's errors have no common base; what the disk and the network raise are OSErrors
    except Exception as error:
        # urllib's and requests' errors have a response where the server answers, if only to refuse
        refused = isinstance(error, urllib.error.HTTPError)
        if isinstance(error, OSError) and not refused and getattr(error, "response", None) is None:
            raise NetworkError(f"cannot reach {url}: {_root(error)}") from error
        raise UserError(f"cannot download {url}: {' '.join(str(error).split())}") from error
    try:
        check_file(part, checksum)
    except UserError as error:
        os.unlink(part)
        raise UserError(f"{url} is not the expected file: {error}; removed") from error
    os.replace(part, path)


def check_file(path: str, checksum: str) -> None:
    """Raise ``UserError`` where the file's MD5 or SHA-256 differs; "" is always right."""
    if not checksum:
        return
    kind = {32: "MD5", 64: "SHA-256"}[len(checksum)]
    digest = hashlib.new(kind.replace("-", ""), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != checksum:
        raise UserError(f"the {kind} of '{path}' is {digest.hexdigest()}, not {checksum}")


def _root(error: BaseException) -> str:
    """Return what the first of a chain of errors says: "Name or service not known"."""
    while first := error.__cause__ or error.__context__:
        error = first
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _from_drive(url: str, part: str) -> None:
    import gdown

    mkdir_if_missing(os.path.dirname(part))
    # it skips a file that is already complete
    if gdown.download(url, part, quiet=False, resume=True) is None:
        raise UserError("Google Drive refuses the file")


def _from_web(url: str, part: str) -> None:
    """Append to what is there if the server allows it, or else start over."""
    from tqdm import tqdm

    done = os.path.getsize(part) if os.path.exists(part) else 0
    headers = {"User-Agent": "Mozilla/5.0"}  # some hosts refuse Python's own
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing is missing
            return
        raise
    with response:
        resumed = response.status == 206
        done = done if resumed else 0
        size = int(response.headers.get("Content-Length", 0)) + done
        mkdir_if_missing(os.path.dirname(part))
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(
                total=size or None,
                initial=done,
                unit="B",
                unit_scale=True,
                desc=os.path.basename(part).removesuffix(".part"),
            ) as bar,
        ):
            try:
                while block := response.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
            except http.client.IncompleteRead as error:
                file.write(error.partial)
    if os.path.getsize(part) < size:
        raise OSError(
            f"the connection was closed after {os.path.getsize(part)} of {size} bytes; "
            "the same command resumes from there"
        )


def extract_archive(path: str, folder: str) -> None:
    """Unpack a tar or zip file into ``folder``, nothing outside of it.

    Raises:
        UserError: the file is neither, is damaged, or has a member that points outside.
    """
    log.info(f"Extracting {os.path.basename(path)} ...")
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                tar.extractall(folder, filter="data")
            return
        with zipfile.ZipFile(path) as archive:
            inside = os.path.realpath(folder)
            for member in archive.namelist():
                target = os.path.realpath(os.path.join(folder, member))
                if os.path.commonpath([inside, target]) != inside:
                    raise UserError(f"archive '{path}' has a member outside its folder: {member}")
            archive.extractall(folder)
    except (  # damage, and what a full disk, a password or an unknown compression raises
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        RuntimeError,  # and NotImplementedError
    ) as error:
        raise UserError(f"archive '{path}' cannot be unpacked: {error}") from error
