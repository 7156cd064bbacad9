"""Downloads that resume where they were cut off, and archives that stay inside their folder.

gdown serves Google Drive. torchvision's ``download_url`` cannot resume, so other addresses are read
here.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import lzma
import os
import stat
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from dassl.errors import UserError
from dassl.utils.logger import log
from dassl.utils.tools import mkdir_if_missing

TIMEOUT = 30  # seconds for a server to respond
BLOCK = 1 << 20  # bytes
_OF_A_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EROFS)


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
        UserError: the server refuses the file, the file has another checksum, or it cannot be
            written. Nothing is written through a link.
    """
    part = path + ".part"
    check_plain(part)
    try:
        if urllib.parse.urlsplit(url).hostname == "drive.google.com":
            _from_drive(url, part)
        else:
            _from_web(url, part)
    except UserError:
        raise
    # gdown's errors have no common base; what the disk and the network raise are OSErrors
    except Exception as error:
        # urllib's and requests' errors have a response where the server answers, if only to refuse
        refused = isinstance(error, urllib.error.HTTPError)
        if isinstance(error, OSError) and error.errno in _OF_A_DISK:  # gdown's own writing
            raise UserError(f"cannot write '{part}': {error.strerror}") from error
        if isinstance(error, OSError) and not refused and getattr(error, "response", None) is None:
            raise NetworkError(f"cannot reach {url}: {_root(error)}") from error
        raise UserError(f"cannot download {url}: {' '.join(str(error).split())}") from error
    try:
        check_file(part, checksum)
    except UserError as error:
        os.unlink(part)
        raise UserError(f"{url} is not the expected file: {error}; removed") from error
    try:
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}") from error


def check_plain(path: str) -> None:
    """Raise ``UserError`` where something else than a file of its own is at ``path``.

    Writing to a link would change the file that it leads to, and a pipe would never end.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise UserError(f"'{path}' is not a plain file but a link, a folder or a pipe; remove it")


def check_file(path: str, checksum: str) -> None:
    """Raise ``UserError`` where the file's MD5 or SHA-256 differs; "" is always right."""
    if not os.path.isfile(path):
        raise UserError(f"'{path}' is not a file")
    if not checksum:
        return
    kind = {32: "MD5", 64: "SHA-256"}[len(checksum)]
    digest = hashlib.new(kind.replace("-", ""), usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    if digest.hexdigest() != checksum:
        raise UserError(f"the {kind} of '{path}' is {digest.hexdigest()}, not {checksum}")


def _root(error: BaseException) -> str:
    """Return what the first of a chain of errors says: "Name or service not known"."""
    while first := error.__cause__ or error.__context__:
        error = first
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _from_drive(url: str, part: str) -> None:
    import gdown

    folder, name = os.path.split(part)
    mkdir_if_missing(folder)
    for other in os.listdir(folder):  # it continues files of its own whose names begin so
        if other.startswith(name):
            check_plain(os.path.join(folder, other))
    # it skips a file that is already complete
    if gdown.download(url, part, quiet=False, resume=True) is None:
        raise UserError(f"cannot download {url}: Google Drive refuses the file")


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
        try:
            with (
                _open_plain(part, append=resumed) as file,
                tqdm(
                    total=size or None,
                    initial=done,
                    unit="B",
                    unit_scale=True,
                    desc=os.path.basename(part).removesuffix(".part"),
                ) as bar,
            ):
                for block in _blocks(response, url):
                    file.write(block)
                    bar.update(len(block))
        except OSError as error:  # the network's are NetworkErrors
            raise UserError(f"cannot write '{part}': {error.strerror}") from error
    if os.path.getsize(part) < size:
        raise OSError(
            f"the connection was closed after {os.path.getsize(part)} of {size} bytes; "
            "the same command resumes from there"
        )


def _open_plain(path: str, append: bool) -> IO[bytes]:
    """Open a file for writing, never through a link that somebody put there meanwhile."""
    mode = os.O_APPEND if append else os.O_TRUNC
    no_links = getattr(os, "O_NOFOLLOW", 0)  # not on Windows
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | mode | no_links, 0o666), "wb")


def _blocks(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    """Yield what a server sends, up to where the connection is closed."""
    try:
        while block := response.read(BLOCK):
            yield block
    except http.client.IncompleteRead as error:
        yield error.partial
    except OSError as error:
        raise NetworkError(f"cannot reach {url}: {_root(error)}") from error


def extract_archive(path: str, folder: str) -> None:
    """Unpack a tar or zip file into ``folder``, nothing outside of it.

    Raises:
        UserError: the file is neither, is damaged, or has a member that points outside or is
            neither a file nor a folder.
    """
    log.info(f"Extracting {os.path.basename(path)} ...")
    if not os.path.isfile(path):
        raise UserError(f"archive '{path}' is not a file")
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                tar.extractall(folder, filter=_tar_member)
                if not tar.getmembers():
                    raise UserError("it is empty")
                assert tar.fileobj is not None
                while tar.fileobj.read(BLOCK):  # the checksum of gzip is at the end
                    pass
            return
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)  # 0: not from Unix
                _check_place(member.filename)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UserError(f"its member '{member.filename}' is a link or a device")
            archive.extractall(folder)
    except (  # damage, and what a full disk, a password or an unknown compression raises
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        RuntimeError,  # and NotImplementedError
        ValueError,  # our own, and numbers in a header that are none
    ) as error:
        raise UserError(f"archive '{path}' cannot be unpacked: {error}") from error


def _check_place(name: str) -> None:
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise UserError(f"its member '{name}' leads outside its folder")


def _tar_member(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Let pass what Python's filter for data does, and links that lead down alone.

    The filter of Python before 3.11.13 can be deceived by links that lead up.
    """
    _check_place(member.name)
    if member.issym() or member.islnk():
        _check_place(member.linkname)
    return tarfile.data_filter(member, folder)
