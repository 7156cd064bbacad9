"""Unpacking and downloading: nothing is written outside the folder, whatever a file holds."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dassl.errors import UserError
from dassl.utils.download import check_file, download, extract_archive
from tests.datasets import archives

FAST = ("half", "middle zero", "a page")


def refused(path: Path, folder: Path) -> str:
    with pytest.raises(UserError) as info:
        extract_archive(str(path), str(folder))
    line = str(info.value)
    assert str(path) in line and "\n" not in line
    return line


@pytest.mark.parametrize("kind", archives.hostile())
def test_what_leaves_the_folder_is_refused(tmp_path, kind):
    (tmp_path / "outside").write_text("mine")
    path, folder = tmp_path / "archive", tmp_path / "folder"
    path.write_bytes(archives.hostile()[kind])
    folder.mkdir()
    refused(path, folder)
    assert {p.name for p in tmp_path.iterdir()} == {"outside", "archive", "folder"}
    assert (tmp_path / "outside").read_text() == "mine"
    assert not Path("/tmp/outside-of-everything").exists()
    assert all(p.is_dir() or p.is_file() for p in folder.rglob("*"))


@pytest.mark.parametrize("kind", archives.whole())
def test_files_keep_their_content_and_no_privileges(tmp_path, kind):
    path = tmp_path / "archive"
    path.write_bytes(archives.whole()[kind])
    extract_archive(str(path), str(tmp_path / "folder"))
    for name in "abc":
        file = tmp_path / "folder" / "images" / name
        assert file.read_bytes() == archives.FILE
        assert not file.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


@pytest.mark.parametrize(
    "damage",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in archives.damaged(b"")
    ],
)
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_damaged_archive_is_one_line(tmp_path, kind, damage):
    path = tmp_path / "archive"
    path.write_bytes(archives.damaged(archives.whole()[kind])[damage])
    assert "cannot be unpacked" in refused(path, tmp_path / "folder")


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def link_to_nothing(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("not yet there"))


def hard_link(path: Path, victim: Path) -> None:
    os.link(victim, path)


def pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, victim: Path) -> None:
    path.mkdir()


PLANTED = [link, link_to_nothing, hard_link, pipe, folder]


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "https://drive.google.com/uc?id=x"])
def test_a_download_is_not_written_through_what_was_planted(
    tmp_path, monkeypatch, plant: Callable[[Path, Path], None], url: str
):
    import gdown

    def unexpected(*arguments: Any, **options: Any) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(gdown, "download", unexpected)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    plant(tmp_path / "file.zip.part", victim)
    with pytest.raises(UserError, match=r"file\.zip\.part' is not a plain file"):
        download(url, str(tmp_path / "file.zip"))
    if "drive" in url:  # gdown has temporary files of its own beside it
        (tmp_path / "file.zip.part").rename(tmp_path / "file.zip.partabc.part")
        with pytest.raises(UserError, match=r"partabc\.part' is not a plain file"):
            download(url, str(tmp_path / "file.zip"))
    assert victim.read_text() == "mine" and not (tmp_path / "not yet there").exists()


@pytest.mark.parametrize("plant", [pipe, folder, link_to_nothing])
def test_what_is_not_a_file_is_not_read(tmp_path, plant):
    path = tmp_path / "archive.zip"
    plant(path, tmp_path / "victim")
    with pytest.raises(UserError, match=r"archive\.zip' is not a file"):
        check_file(str(path), "")
    assert "is not a file" in refused(path, tmp_path / "folder")
