"""Tar and zip files that are damaged, or whose members would leave their folder."""

from __future__ import annotations

import io
import random
import stat
import tarfile
import zipfile

FILE = bytes(range(256)) * 20


def tar(*members: tuple[str, bytes, str], compression: str = "") -> bytes:
    """Write a tar file; a member has a name, a type of ``tarfile`` and what it links to."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o6755
            info.size = len(FILE) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(FILE))
    return file.getvalue()


def zipped(*members: tuple[str, int]) -> bytes:
    """Write a zip file; a member has a name and a type of ``stat``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, kind in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o6755) << 16
            archive.writestr(info, FILE if kind == stat.S_IFREG else b"../outside")
    return file.getvalue()


def hostile() -> dict[str, bytes]:
    """Make archives that would write outside their folder, or make other things than files."""
    regular, link, hard = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    return {
        "tar: up": tar(("../outside", regular, "")),
        "tar: up from below": tar(("a/../../outside", regular, "")),
        "tar: absolute": tar(("/tmp/outside-of-everything", regular, "")),
        "tar: link up": tar(("a", link, "..")),
        "tar: link to the root": tar(("a", link, "/etc")),
        "tar: through a link": tar(("a", link, ".."), ("a/outside", regular, "")),
        "tar: link by a link": tar(
            ("d/a", link, "."), ("d/b", link, "a/../.."), ("d/c", link, "b")
        ),
        "tar: hard link up": tar(("a", hard, "../outside")),
        "tar: hard link to the root": tar(("a", hard, "/etc/hostname")),
        "tar: pipe": tar(("a", tarfile.FIFOTYPE, "")),
        "tar: device": tar(("a", tarfile.CHRTYPE, "")),
        "zip: up": zipped(("../outside", stat.S_IFREG)),
        "zip: up from below": zipped(("a/../../outside", stat.S_IFREG)),
        "zip: up as on Windows": zipped(("a\\..\\..\\outside", stat.S_IFREG)),
        "zip: absolute": zipped(("/tmp/outside-of-everything", stat.S_IFREG)),
        "zip: link": zipped(("a", stat.S_IFLNK)),
        "zip: pipe": zipped(("a", stat.S_IFIFO)),
        "zip: device": zipped(("a", stat.S_IFCHR)),
    }


def whole() -> dict[str, bytes]:
    """Make archives that nothing is wrong with."""
    members = [(f"images/{name}", tarfile.REGTYPE, "") for name in "abc"]
    return {
        "tar": tar(*members),
        "tar.gz": tar(*members, compression="gz"),
        "zip": zipped(*((name, stat.S_IFREG) for name, _, _ in members)),
    }


def damaged(content: bytes) -> dict[str, bytes]:
    """Damage a compressed archive in ten ways that it must show."""
    half, draw = len(content) // 2, random.Random(0)
    return {
        "empty": b"",
        "one byte": content[:1],
        "half": content[:half],
        "end missing": content[:-40],
        "start missing": content[40:],
        "middle missing": content[: half - 20] + content[half + 20 :],
        "middle zero": content[: half - 20] + bytes(40) + content[half + 20 :],
        "all zero": bytes(len(content)),
        "noise": draw.randbytes(len(content)),
        "a page": b"<!DOCTYPE html><html>too many people</html>",
    }
