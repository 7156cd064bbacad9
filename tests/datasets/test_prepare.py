"""Fetching the public datasets: miniatures of them, from a local server."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfFileSystem, constants

from dassl.data.datasets import DatasetBase
from dassl.errors import UserError
from dassl.utils.descriptions import read_descriptions
from dassl.utils.download import download
from datasets import prepare
from datasets.prepare import descriptions, sources
from datasets.prepare.sources import (
    DESCRIPTIONS,
    MIRROR,
    MIRROR_COMMIT,
    MIRRORED,
    PUBLIC_SETS,
    PublicSet,
    Source,
)
from tests.datasets import miniatures
from trainers.descriptions import descriptions_of
from trainers.hicropl import HiCroPL

CHECKOUT = Path(prepare.__file__).parents[2]


@dataclass
class Server:
    """A web server's files, its behavior, and the requests it received."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)  # close the connection after this many bytes
    ranges: bool = True
    tags: dict[str, str] = field(default_factory=dict)  # of files with another tag than their own
    secrets: list[str] = field(default_factory=list)  # what the requests gave away
    asked: list[tuple[str, str | None]] = field(default_factory=list)


HUB_PATH = f"{MIRROR}/resolve/{MIRROR_COMMIT}"
TOKEN = "hf_" + "x" * 34


def set_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Do what HF_ENDPOINT does where it is set before huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    set_hub(monkeypatch, "http://127.0.0.1:9")


@pytest.fixture
def server(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start a web server, which is the Hub, too."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, ranged = self.path[1:], self.headers.get("Range")
            state.secrets += self.headers.get_all("Authorization", [])
            if name.startswith("api/"):
                self.answer_about_the_mirror()
                return
            if self.command == "GET":
                state.asked.append((name, ranged))
            if name not in state.files:
                self.send_error(404)
                return
            content, start, end = state.files[name], 0, len(state.files[name])
            if ranged and state.ranges:
                first, _, last = ranged.removeprefix("bytes=").partition("-")
                start, end = int(first), int(last or end) + 1
                if start >= len(content):
                    self.send_error(416)
                    return
            served = content[start:end]
            self.send_response(206 if ranged and state.ranges else 200)
            self.send_header("Content-Length", str(len(served)))
            tag = state.tags.get(name) or hashlib.sha256(content).hexdigest()
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", MIRROR_COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(served[: state.cut.pop(name, len(content)) - start])

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer_about_the_mirror()

        def answer_about_the_mirror(self) -> None:
            if self.command == "POST" or "/tree/" in self.path:
                answer: object = [
                    {
                        "type": "file",
                        "path": name.removeprefix(f"{HUB_PATH}/"),
                        "size": len(content),
                        "oid": "0" * 40,
                    }
                    for name, content in state.files.items()
                    if name.startswith(HUB_PATH)
                ]
            else:
                answer = {"id": MIRROR, "sha": MIRROR_COMMIT, "siblings": []}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    set_hub(monkeypatch, state.url)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def table() -> Iterator[dict[str, PublicSet]]:
    """Make a table of datasets for the test to change."""
    before = dict(PUBLIC_SETS)
    yield PUBLIC_SETS
    PUBLIC_SETS.clear()
    PUBLIC_SETS.update(before)


def tar_of(members: dict[str, Path | bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, member in members.items():
            if isinstance(member, Path):
                tar.add(member, name)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    return file.getvalue()


def zip_of(members: dict[str, Path | bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, member in members.items():
            if isinstance(member, bytes):
                archive.writestr(name, member)
                continue
            for path in [member, *sorted(member.rglob("*"))]:
                if path.is_file():
                    archive.write(path, (Path(name) / path.relative_to(member)).as_posix())
    return file.getvalue()


def packed(source: Source, made: Path) -> bytes:
    """Return the source's file, made from a tree in the layout of the dataset."""
    if not source.unpack:
        return (made / source.file).read_bytes()
    members: dict[str, Path | bytes] = {"README": b"read me"}
    for inside, target in source.unpack.items():
        member: Path | bytes = made / target if (made / target).exists() else b"not used"
        if inside.endswith(".tar.gz"):
            member = tar_of({target: member})
        members[inside] = member
    return (zip_of if source.file.endswith(".zip") else tar_of)(members)


CONFIGS = {layout.config: layout for layout in miniatures.LAYOUTS}
VERSIONS = {config: (folder, images) for config, folder, images in miniatures.VERSIONS.values()}


def serve(name: str, server: Server, table: dict[str, PublicSet], made: Path) -> PublicSet:
    """Put a miniature of a dataset on the server, and its addresses and counts into the table."""
    entry = table[name]
    if name in CONFIGS:
        layout = CONFIGS[name]
        layout.write(made / layout.folder)
        dataset = miniatures.build(layout.name, made)  # writes the split file
        images = (len(dataset.train_x), len(dataset.val), len(dataset.test))
        classes = dataset.num_classes
    else:
        folders = ["0", "1"] if name == "imagenetv2" else miniatures.FOLDERS[:2]
        miniatures.imagenet(made / VERSIONS[name][0], VERSIONS[name][1], folders, 3)
        images, classes = (0, 0, 6), 2
    served = []
    for source in entry.sources:
        content = packed(source, made / entry.dataset.dataset_dir)
        kind = {0: None, 32: hashlib.md5, 64: hashlib.sha256}[len(source.checksum)]
        server.files[source.file] = content
        served.append(
            replace(
                source,
                url=source.url and f"{server.url}/{source.file}",
                checksum=kind(content).hexdigest() if kind else "",
            )
        )
    table[name] = replace(entry, sources=tuple(served), images=images, classes=classes)
    return table[name]


def mirror(name: str, server: Server, made: Path, top: str | None = None) -> str:
    """Put the mirror's archive of a miniature on the server; return its name there."""
    folder = made / PUBLIC_SETS[name].dataset.dataset_dir
    top = PUBLIC_SETS[name].dataset.dataset_dir if top is None else top
    members: dict[str, Path | bytes] = {
        (Path(top) / path.name).as_posix(): path.read_bytes() if path.is_file() else path
        for path in sorted(folder.iterdir())
    }
    members[(Path(top) / "split_fewshot" / "shot_1-seed_1.pkl").as_posix()] = b"a pickle"
    members["__MACOSX/._images"] = b""
    file = f"{HUB_PATH}/{MIRRORED[name]}"
    server.files[file] = zip_of(members)
    return file


def check_images(entry: PublicSet, folder: Path) -> None:
    """Check that the dataset reads below ``root`` what was made below ``made``."""
    found, made = (
        miniatures.build(entry.dataset.__name__, folder / place) for place in ("root", "made")
    )
    for part in ("train_x", "val", "test"):
        paths = [
            [Path(item.impath).relative_to(folder / place) for item in getattr(dataset, part)]
            if getattr(dataset, part)
            else []
            for place, dataset in (("root", found), ("made", made))
        ]
        # without a split file, images come in directory order
        assert paths[0] == paths[1] if entry.split_file else sorted(paths[0]) == sorted(paths[1])


def one_error(capsys: pytest.CaptureFixture[str], *pieces: str) -> str:
    """Check that the last command printed one line of error with these words; return it."""
    lines = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line]
    lines = [line for line in lines if "B/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    for piece in pieces:
        assert piece in lines[0]
    return lines[0]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def command(*arguments: object) -> int:
    return prepare.main([str(argument) for argument in arguments])


# ---------------------------------------------------------------------------------- fetching


@pytest.mark.parametrize("name", [name for name in PUBLIC_SETS if name != "imagenet"])
def test_what_was_fetched_is_what_the_dataset_reads(tmp_path, server, table, capsys, name) -> None:
    entry = serve(name, server, table, tmp_path / "made")
    folder = tmp_path / "root" / entry.dataset.dataset_dir
    if name == "stanford_cars":
        assert command(name, "--root", tmp_path / "root") == 2  # the mirror has nothing here
        printed = capsys.readouterr().out
        assert f"place it in {folder}" in printed
        folder.mkdir(parents=True)
        for source in entry.sources:
            if not source.url:
                assert f"{source.file} (SHA-256 {source.checksum})" in printed
                (folder / source.file).write_bytes(server.files[source.file])
    assert command(name, "--root", tmp_path / "root") == 0
    assert "nothing" in capsys.readouterr().out.splitlines()[-1]
    check_images(entry, tmp_path)
    left = names_in(folder) - {path.split("/")[0] for s in entry.sources for path in s.gives}
    by_hand = {source.file for source in entry.sources if not source.url}
    assert left == by_hand  # fetched archives are gone, those that the user placed are kept

    asked = len(server.asked)
    assert command(name, "--root", tmp_path / "root") == 0
    assert len(server.asked) == asked


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_resumed_from_its_part(
    tmp_path, server, table, capsys, ranges
) -> None:
    serve("oxford_pets", server, table, tmp_path / "made")
    server.ranges = ranges
    server.cut["images.tar.gz"] = 700
    folder = tmp_path / "root" / "oxford_pets"
    assert command("oxford_pets", "--root", tmp_path / "root") == 2
    one_error(capsys, f"{server.url}/images.tar.gz", "closed after 700 of", "resumes from there")
    assert [name for name, _ in server.asked] == ["images.tar.gz"]  # a server that sends is alive
    assert names_in(folder) == {"images.tar.gz.part"}
    assert command("oxford_pets", "--root", tmp_path / "root") == 0
    assert ("images.tar.gz", "bytes=700-") in server.asked
    assert not (folder / "images.tar.gz.part").exists()


def test_a_download_that_was_whole_when_it_was_killed(tmp_path, server, table) -> None:
    serve("oxford_pets", server, table, tmp_path / "made")
    part = tmp_path / "root" / "oxford_pets" / "images.tar.gz.part"
    miniatures.put(part, server.files["images.tar.gz"])
    miniatures.put(part.parent / ".unpacking-x" / "images" / "half", b"")  # while unpacking, too
    assert command("oxford_pets", "--root", tmp_path / "root") == 0
    assert names_in(part.parent) == {"images", "annotations", "split_zhou_OxfordPets.json"}
    assert not (part.parent / "images" / "half").exists()


def test_another_file_than_it_should_be(tmp_path, server, table, capsys) -> None:
    serve("oxford_pets", server, table, tmp_path / "made")
    server.files["annotations.tar.gz"] += b"\0"
    folder = tmp_path / "root" / "oxford_pets"
    assert command("oxford_pets", "--root", tmp_path / "root") == 2
    one_error(capsys, "annotations.tar.gz is not the expected file", "MD5", "removed")
    assert not [name for name, _ in server.asked if MIRROR in name]  # no run needs it
    assert names_in(folder) == {"images", "split_zhou_OxfordPets.json"}


def test_a_planted_link_is_not_followed(tmp_path, server, table) -> None:
    serve("oxford_pets", server, table, tmp_path / "made")
    folder = tmp_path / "root" / "oxford_pets"
    miniatures.put(tmp_path / "victim" / "images" / "mine", b"mine")
    folder.mkdir(parents=True)
    (folder / ".unpacking").symlink_to(tmp_path / "victim")
    (folder / "split_zhou_OxfordPets.json.new").symlink_to(tmp_path / "victim" / "images" / "mine")
    assert command("oxford_pets", "--root", tmp_path / "root") == 0
    assert [path.name for path in (tmp_path / "victim").rglob("*")] == ["images", "mine"]
    assert (tmp_path / "victim" / "images" / "mine").read_bytes() == b"mine"
    assert (folder / "images").is_dir() and not (folder / "images").is_symlink()


def test_one_process_unpacks_in_a_folder(tmp_path, server, table, capsys) -> None:
    fcntl = pytest.importorskip("fcntl")
    serve("oxford_pets", server, table, tmp_path / "made")
    folder = tmp_path / "root" / "oxford_pets"
    miniatures.put(folder / ".unpacking-other" / "half", b"")
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert command("oxford_pets", "--root", tmp_path / "root") == 2
    one_error(capsys, f"another process unpacks in '{folder}'")
    assert (folder / ".unpacking-other" / "half").exists()
    os.close(other)
    assert command("oxford_pets", "--root", tmp_path / "root") == 0
    assert not (folder / ".unpacking-other").exists()


def test_a_target_of_another_kind(tmp_path, server, table, capsys) -> None:
    serve("oxford_pets", server, table, tmp_path / "made")
    folder = tmp_path / "root" / "oxford_pets"
    miniatures.put(folder / "images.tar.gz" / "x", b"")  # a folder where the archive goes
    assert command("oxford_pets", "--root", tmp_path / "root") == 2
    one_error(capsys, f"'{folder}/images.tar.gz' is not a file")
    shutil.rmtree(folder / "images.tar.gz")
    (folder / "annotations").symlink_to("nothing")  # a link where its content goes
    assert command("oxford_pets", "--root", tmp_path / "root") == 2
    one_error(capsys, f"cannot unpack in '{folder}': Not a directory")


def damaged(members: dict[str, Path | bytes]) -> bytes:
    content = zip_of(members)
    return content[:1000] + content[1100:]


def climbing_tar(members: dict[str, Path | bytes]) -> bytes:
    return tar_of({**members, "../climbed": b"out"})


def climbing_zip(members: dict[str, Path | bytes]) -> bytes:
    return zip_of({**members, "../climbed": b"out"})


@pytest.mark.parametrize(
    ("pack", "words"),
    [
        (damaged, "cannot be unpacked"),
        (lambda members: tar_of(members)[:-3000], "cannot be unpacked"),
        (climbing_tar, "climbed"),
        (climbing_zip, "climbed"),
        (lambda members: zip_of({"other": b""}), "has no '2750'"),
    ],
)
def test_bad_archives_leave_nothing(tmp_path, server, table, capsys, pack, words) -> None:
    entry = serve("eurosat", server, table, tmp_path / "made")
    noise = bytes(range(256)) * 20  # does not shrink away
    server.files["EuroSAT.zip"] = pack(
        {"2750": tmp_path / "made" / "eurosat" / "2750", "noise": noise}
    )
    unchecked = replace(entry.sources[0], checksum="")
    table["eurosat"] = replace(entry, sources=(unchecked, *entry.sources[1:]))
    assert command("eurosat", "--root", tmp_path / "root") == 2
    one_error(capsys, "EuroSAT.zip", words, "delete it and run the same command again")
    assert names_in(tmp_path / "root" / "eurosat") == {"EuroSAT.zip"}
    assert not list(tmp_path.rglob("climbed"))


def test_an_address_out_of_reach(tmp_path, server, table, capsys) -> None:
    entry = serve("oxford_pets", server, table, tmp_path / "made")
    images, split, annotations = entry.sources
    closed = replace(split, url="http://127.0.0.1:9/split.json")
    table["oxford_pets"] = replace(entry, sources=(images, closed, annotations))
    folder = tmp_path / "root" / "oxford_pets"
    assert command("oxford_pets", "--root", tmp_path / "root") == 2
    place = f"place it at '{folder / split.file}'"
    one_error(capsys, "cannot reach http://127.0.0.1:9/split.json: Connection refused", place)
    assert names_in(folder) == {"images"}

    shutil.copy(tmp_path / "made" / "oxford_pets" / split.file, folder)
    assert command("oxford_pets", "--root", tmp_path / "root") == 0
    assert [name for name, _ in server.asked] == ["images.tar.gz"]


def test_no_network_is_one_line_for_all_datasets(tmp_path, table, capsys) -> None:
    for name, entry in table.items():
        closed = tuple(replace(s, url="http://127.0.0.1:9/" + s.file) for s in entry.sources)
        table[name] = replace(entry, sources=closed)
    assert command("all", "--root", tmp_path / "root") == 2
    line = one_error(capsys, "http://127.0.0.1:9/images.tar.gz", "oxford_pets/images.tar.gz'")
    assert line.count("cannot reach http") == 2  # the source and the mirror of the first dataset
    assert not (tmp_path / "root").exists()


def test_what_one_server_refuses_does_not_stop_the_rest(tmp_path, server, table, capsys) -> None:
    for name in ("oxford_pets", "dtd"):
        serve(name, server, table, tmp_path / "made")
    del server.files["images.tar.gz"]
    assert command("dtd", "oxford_pets", "--root", tmp_path / "root") == 2
    one_error(capsys, "images.tar.gz: HTTP Error 404")
    assert command("dtd", "--root", tmp_path / "root", "--check") == 0


def test_an_archive_brought_by_hand(tmp_path, server, table, capsys) -> None:
    serve("dtd", server, table, tmp_path / "made")
    archive = tmp_path / "root" / "dtd" / "dtd-r1.0.1.tar.gz"
    miniatures.put(archive, b"something else")
    assert command("dtd", "--root", tmp_path / "root") == 2
    one_error(capsys, f"the MD5 of '{archive}' is", "delete it")
    archive.write_bytes(server.files[archive.name])
    assert command("dtd", "--root", tmp_path / "root") == 0
    assert archive.exists() and f"'{archive}' has been unpacked" in capsys.readouterr().out
    assert [name for name, _ in server.asked] == ["split_zhou_DescribableTextures.json"]


def test_what_is_there_is_not_fetched_again(tmp_path, server, table, capsys) -> None:
    serve("dtd", server, table, tmp_path / "made")
    miniatures.put(tmp_path / "root" / "dtd" / "images" / "banded" / "image_0001.jpg")
    assert command("dtd", "--root", tmp_path / "root") == 1
    assert "dtd lacks 32 of the images. Existing files are not" in capsys.readouterr().out
    assert len(list((tmp_path / "root" / "dtd" / "images").rglob("*.jpg"))) == 1
    shutil.rmtree(tmp_path / "root" / "dtd" / "images")
    assert command("dtd", "--root", tmp_path / "root") == 0


def test_a_page_in_place_of_a_split_file(tmp_path, server, table, capsys) -> None:
    serve("dtd", server, table, tmp_path / "made")
    server.files["split_zhou_DescribableTextures.json"] = b"<html>quota</html>"
    assert command("dtd", "--root", tmp_path / "root") == 2
    one_error(capsys, "not valid JSON", "place it at")
    assert names_in(tmp_path / "root" / "dtd") == {"images", "imdb", "labels"}


def test_google_drive_is_asked_by_gdown(tmp_path, server, table, capsys, monkeypatch) -> None:
    import gdown

    url = table["dtd"].sources[1].url
    entry = serve("dtd", server, table, tmp_path / "made")
    drive = replace(entry.sources[1], url=url)
    table["dtd"] = replace(entry, sources=(entry.sources[0], drive))
    answers = [None, server.files[drive.file]]

    def fake(url: str, output: str, quiet: bool, resume: bool) -> str | None:
        assert url.startswith("https://drive.google.com/uc?id=") and resume
        content = answers.pop(0)
        if content is not None:
            Path(output).write_bytes(content)
        return content and output

    monkeypatch.setattr(gdown, "download", fake)
    assert command("dtd", "--root", tmp_path / "root") == 2
    one_error(capsys, drive.url, "Google Drive", f"place it at '{tmp_path}/root/dtd/{drive.file}'")
    assert command("dtd", "--root", tmp_path / "root") == 0


def test_gdown_on_a_full_disk_is_no_fault_of_the_network(tmp_path, monkeypatch) -> None:
    import gdown

    def full(url: str, output: str, **options: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gdown, "download", full)
    with pytest.raises(UserError, match="^cannot write '.*/a.zip.part': No space left on device$"):
        download("https://drive.google.com/uc?id=1", str(tmp_path / "a.zip"))


def test_what_needs_a_log_in_is_said(tmp_path, capsys) -> None:
    assert command("imagenet", "--root", tmp_path) == 1
    printed = capsys.readouterr().out
    for name in (
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "devkit_t12",
        "image-net.org",
    ):
        assert name in printed
    assert f"into {tmp_path}/imagenet/images" in printed
    for part, count in (("train", 3), ("val", 2)):
        miniatures.imagenet(tmp_path / "imagenet", f"images/{part}", miniatures.FOLDERS, count)
    assert command("imagenet", "--root", tmp_path, "--check") == 1
    classes = len(miniatures.FOLDERS)
    row = capsys.readouterr().out.splitlines()[-1]
    assert f"{5 * classes} / 1,331,167" in row and f"{classes} / 1000" in row


def test_a_dataset_file_may_download_an_archive_itself(tmp_path, server) -> None:
    server.files["some.zip"] = zip_of({"inner/file.txt": b"text"})
    dataset = DatasetBase.__new__(DatasetBase)
    url, archive = f"{server.url}/some.zip", tmp_path / "new" / "some.zip"
    dataset.download_data(url, str(archive), from_gdrive=False)
    assert (archive.parent / "inner" / "file.txt").read_text() == "text"


# ---------------------------------------------------------------------------------- the mirror


@pytest.mark.parametrize("name", MIRRORED)
def test_the_mirror_gives_what_the_sources_do_not(tmp_path, server, table, capsys, name) -> None:
    entry = serve(name, server, table, tmp_path / "made")
    server.files.clear()
    archive = mirror(name, server, tmp_path / "made")
    assert command(name, "--root", tmp_path / "root") == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "; trying the mirror " in line]
    why = "no address" if name == "stanford_cars" else "HTTP Error 404"
    assert entry.sources[0].file in line and why in line and line.endswith(MIRROR)
    check_images(entry, tmp_path)
    given = {path.split("/")[0] for source in entry.sources for path in source.gives}
    assert names_in(tmp_path / "root" / entry.dataset.dataset_dir) <= given  # no pickles
    first = [entry.sources[0].file] if entry.sources[0].url else []
    assert [name for name, _ in server.asked] == [*first, archive] and server.secrets == []


@pytest.mark.parametrize("top", ["", "data/deep/cars", "images/Stanford Cars"])
def test_the_dataset_is_found_wherever_it_is_in_the_archive(tmp_path, server, table, top) -> None:
    entry = serve("stanford_cars", server, table, tmp_path / "made")
    mirror("stanford_cars", server, tmp_path / "made", top)
    assert command("stanford_cars", "--root", tmp_path / "root") == 0
    check_images(entry, tmp_path)


def test_a_split_file_is_read_without_the_images_beside_it(tmp_path, server, table, capsys) -> None:
    entry = serve("sun397", server, table, tmp_path / "made")
    miniatures.put(tmp_path / "made" / "sun397" / "big.jpg", bytes(25_000_000))
    del server.files[entry.split_file]
    archive = mirror("sun397", server, tmp_path / "made")
    assert command("sun397", "--root", tmp_path / "root") == 0
    assert f"{entry.split_file}: HTTP Error 404" in capsys.readouterr().out
    check_images(entry, tmp_path)
    ranges = [ranged for name, ranged in server.asked if name == archive]
    ends = [ranged.removeprefix("bytes=").split("-") for ranged in ranges]
    assert 0 < sum(int(end) - int(start) for start, end in ends) < 20_000_000
    assert server.secrets == []
    assert not list((tmp_path / "root").rglob("*mirror*"))

    split = tmp_path / "root" / "sun397" / entry.split_file
    split.unlink()
    (tmp_path / "made" / "sun397" / entry.split_file).write_text("<html>")
    mirror("sun397", server, tmp_path / "made")
    HfFileSystem.clear_instance_cache()  # a commit never changes; this one has
    assert command("sun397", "--root", tmp_path / "root") == 2
    one_error(capsys, "HTTP Error 404: Not Found; and from the mirror: ", "not valid JSON")
    (tmp_path / "made" / "sun397" / entry.split_file).unlink()
    mirror("sun397", server, tmp_path / "made")
    HfFileSystem.clear_instance_cache()  # a commit never changes; this one has
    assert command("sun397", "--root", tmp_path / "root") == 2
    one_error(capsys, f"{MIRROR}/sun397.zip has no {entry.split_file}")
    assert not split.exists()


def test_only_what_a_run_lacks_is_taken_from_the_mirror(tmp_path, server, table, capsys) -> None:
    entry = serve("dtd", server, table, tmp_path / "made")
    server.files.clear()
    archive = mirror("dtd", server, tmp_path / "made")
    folder = tmp_path / "root" / "dtd"
    shutil.copytree(tmp_path / "made" / "dtd" / "images", folder / "images")
    missing = folder / "images" / "lined" / "image_0003.jpg"
    missing.unlink()  # an incomplete folder is not replaced, so its archive would be of no use
    assert command("dtd", "--root", tmp_path / "root") == 1
    assert "dtd lacks 1 of the images. Existing files are not" in capsys.readouterr().out
    assert names_in(folder) == {"images", entry.split_file}
    assert all(ranged for name, ranged in server.asked if name == archive)
    asked = len(server.asked)
    assert command("dtd", "--root", tmp_path / "root") == 2
    one_error(capsys, f"{entry.sources[0].file}: HTTP Error 404")
    assert server.asked[asked:] == [(entry.sources[0].file, None)]


def test_a_source_and_the_mirror_that_both_fail_are_one_line(
    tmp_path, server, table, capsys, monkeypatch
) -> None:
    serve("oxford_pets", server, table, tmp_path / "made")
    del server.files["images.tar.gz"]
    assert command("oxford_pets", "--root", tmp_path / "root") == 2
    place = f"place it at '{tmp_path}/root/oxford_pets/images.tar.gz'"
    first = f"{server.url}/images.tar.gz: HTTP Error 404"
    one_error(capsys, first, f"from the mirror: cannot download {server.url}/{HUB_PATH}", place)
    set_hub(monkeypatch, "http://127.0.0.1:9")
    assert command("oxford_pets", "--root", tmp_path / "root") == 2
    one_error(capsys, first, "from the mirror: cannot reach http://127.0.0.1:9/", place)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert command("oxford_pets", "--root", tmp_path / "root") == 2
    one_error(capsys, first, "offline mode is enabled", place)
    assert names_in(tmp_path / "root" / "oxford_pets") == set()


def test_a_download_from_the_mirror_is_resumed(tmp_path, server, table, capsys) -> None:
    entry = serve("dtd", server, table, tmp_path / "made")
    server.files.clear()
    archive = mirror("dtd", server, tmp_path / "made")
    server.cut[archive] = 700
    assert command("dtd", "--root", tmp_path / "root") == 2
    one_error(capsys, "HTTP Error 404: Not Found; and from the mirror: ", "closed after 700 of")
    assert names_in(tmp_path / "root" / "dtd") == {"mirror-dtd.zip.part"}
    assert command("dtd", "--root", tmp_path / "root") == 0
    assert server.asked[-1] == (archive, "bytes=700-")
    check_images(entry, tmp_path)


def test_a_source_that_died_in_the_middle(tmp_path, server, table, capsys) -> None:
    serve("dtd", server, table, tmp_path / "made")
    server.files.clear()
    mirror("dtd", server, tmp_path / "made")
    folder = tmp_path / "root" / "dtd"
    miniatures.put(folder / "dtd-r1.0.1.tar.gz.part", b"half")
    assert command("dtd", "--root", tmp_path / "root") == 0
    assert not list(folder.glob("*.part"))

    shutil.rmtree(folder)
    miniatures.put(folder / "dtd-r1.0.1.tar.gz.part" / "mine", b"a folder of the user's")
    assert command("dtd", "--root", tmp_path / "root") == 0
    assert "is not a plain file" in capsys.readouterr().out
    assert (folder / "dtd-r1.0.1.tar.gz.part" / "mine").exists()


def test_another_archive_than_the_mirror_announces(tmp_path, server, table, capsys) -> None:
    serve("dtd", server, table, tmp_path / "made")
    server.files.clear()
    server.tags[mirror("dtd", server, tmp_path / "made")] = "0" * 64
    assert command("dtd", "--root", tmp_path / "root") == 2
    one_error(capsys, "dtd.zip is not the expected file: the SHA-256", "removed")
    assert names_in(tmp_path / "root" / "dtd") == set()


@pytest.mark.parametrize(
    ("name", "removed", "words"),
    [
        ("dtd", "images/lined/image_0003.jpg", "the archive lacks 1 of the images"),
        ("dtd", "images", "the archive lacks images"),
        ("dtd", "split_zhou_DescribableTextures.json", "lacks split_zhou_DescribableTextures.json"),
        ("stanford_cars", "cars_test", "the archive lacks cars_train, cars_test"),
        ("fgvc_aircraft", "variants.txt", "the archive lacks variants.txt"),
        ("imagenet_r", "imagenet-r/n01443537", "the archive lacks 3 of the images"),
    ],
)
def test_the_mirror_is_held_to_the_same_counts(
    tmp_path, server, table, capsys, name, removed, words
) -> None:
    entry = serve(name, server, table, tmp_path / "made")
    server.files.clear()
    path = tmp_path / "made" / entry.dataset.dataset_dir / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    mirror(name, server, tmp_path / "made")
    assert command(name, "--root", tmp_path / "root") == 2
    one_error(capsys, words)
    left = names_in(tmp_path / "root" / entry.dataset.dataset_dir)
    assert left == {f"mirror-{MIRRORED[name]}"}


def test_an_archive_of_the_mirror_stays_inside_its_folder(tmp_path, server, table, capsys) -> None:
    serve("dtd", server, table, tmp_path / "made")
    server.files.clear()
    server.files[f"{HUB_PATH}/dtd.zip"] = climbing_zip({"dtd": tmp_path / "made" / "dtd"})
    assert command("dtd", "--root", tmp_path / "root") == 2
    one_error(capsys, "its member '../climbed' leads outside")
    assert not list(tmp_path.rglob("climbed"))
    assert names_in(tmp_path / "root" / "dtd") == {"mirror-dtd.zip"}


def test_a_page_in_place_of_an_archive(tmp_path, server, table, capsys) -> None:
    entry = serve("ucf101", server, table, tmp_path / "made")
    server.files["UCF-101-midframes.zip"] = b"<html>too many people</html>"
    assert command("ucf101", "--root", tmp_path / "root") == 2
    one_error(capsys, f"{server.url}/UCF-101-midframes.zip is no archive")
    assert names_in(tmp_path / "root" / "ucf101") == set()
    mirror("ucf101", server, tmp_path / "made")
    assert command("ucf101", "--root", tmp_path / "root") == 0
    check_images(entry, tmp_path)


def test_what_is_there_is_kept_beside_what_the_mirror_gives(tmp_path, server, table) -> None:
    entry = serve("stanford_cars", server, table, tmp_path / "made")
    mirror("stanford_cars", server, tmp_path / "made")
    folder = tmp_path / "root" / "stanford_cars"
    for number in range(1, 25):
        miniatures.put(folder / "cars_train" / f"{number:05d}.jpg", b"mine")
    assert command("stanford_cars", "--root", tmp_path / "root") == 0
    assert (folder / "cars_train" / "00001.jpg").read_bytes() == b"mine"
    check_images(entry, tmp_path)


# ---------------------------------------------------------------------------------- checking


def rows_of(printed: str) -> dict[str, list[str]]:
    rows = [re.split(r" {2,}", line) for line in printed.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_check_of_an_empty_root(tmp_path, capsys) -> None:
    assert command("all", "--root", tmp_path / "root", "--check") == 1
    rows = rows_of(capsys.readouterr().out)
    assert rows.pop("dataset") == ["images", "classes", "split file", "missing"]
    assert set(PUBLIC_SETS) <= set(rows)
    pets = ["0 / 7,349", "- / 37", "absent", "split_zhou_OxfordPets.json, images"]
    assert rows["oxford_pets"] == pets
    assert rows["imagenet_r"] == ["0 / 30,000", "- / 200", "not needed", "imagenet-r"]
    assert not (tmp_path / "root").exists()


def test_check_of_a_half_filled_root(tmp_path, server, table, capsys) -> None:
    root = tmp_path / "root"
    for name in (*CONFIGS, *VERSIONS):
        serve(name, server, table, root)
    (root / "dtd" / "images" / "lined" / "image_0003.jpg").unlink()
    (root / "oxford_pets" / "split_zhou_OxfordPets.json").unlink()
    (root / "caltech-101" / "split_zhou_Caltech101.json").unlink()
    (root / "sun397" / "split_zhou_SUN397.json").unlink()
    (root / "fgvc_aircraft" / "variants.txt").unlink()
    shutil.rmtree(root / "stanford_cars" / "cars_test")
    miniatures.put(root / "eurosat" / "split_zhou_EuroSAT.json", "{}")
    miniatures.put(root / "oxford_pets" / "images" / "more_1.jpg")
    shutil.rmtree(root / "imagenetv2" / VERSIONS["imagenetv2"][1] / "1")
    path = root / "food-101" / "split_zhou_Food101.json"
    split = json.loads(path.read_text())
    path.write_text(json.dumps({**split, "test": split["test"][1:]}))
    before = sorted(root.rglob("*"))
    assert command("all", "--root", root, "--check") == 1
    assert sorted(root.rglob("*")) == before
    rows = rows_of(capsys.readouterr().out)
    for name in ("oxford_flowers", "ucf101", "imagenet_a", "imagenet_r", "imagenet_sketch"):
        count = sum(table[name].images)
        assert rows[name][0] == f"{count} / {count}" and rows[name][-1] == "nothing", name
    expected = {
        "dtd": ["32 / 33", "3 / 3", "present", "1 of the images"],
        "oxford_pets": ["33 / 33", "3 / 3", "absent", "split_zhou_OxfordPets.json"],
        "caltech101": ["55 / 55", "5 / 5", "absent", "split_zhou_Caltech101.json"],
        "sun397": ["33 / 33", "3 / 3", "absent", "split_zhou_SUN397.json"],
        "fgvc_aircraft": ["33 / 33", "3 / 3", "not needed", "variants.txt"],
        "stanford_cars": ["24 / 33", "3 / 3", "present", "cars_test"],
        "imagenetv2": ["3 / 6", "1 / 2", "not needed", "3 of the images"],
    }
    assert {name: rows[name] for name in expected} == expected
    assert rows["eurosat"][-1].endswith("is not a list of [path, label, class name]")
    assert "a split file of 18/6/9 images, not 18/6/8" in rows["food101"][-1]
    assert rows["imagenet"][-1] == "images/train, images/val"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["oxford_pet", "--root", "data"], "got 'oxford_pet'; did you mean 'oxford_pets'"),
        (["all"], "--root: expected the folder of the datasets, got none"),
        (["dtd", "--root", "README.md"], "--root: expected a folder, got '"),
        (["dtd", "--root", "README.md", "--check"], "README.md' is not a folder)"),
        (["imagenet", "--root", "README.md/below"], "README.md' is not a folder)"),
        (["dtd", "--root", "/dev/null"], "'/dev/null' is not a folder)"),
    ],
)
def test_bad_arguments(capsys, monkeypatch, arguments, words) -> None:
    monkeypatch.chdir(CHECKOUT)
    assert command(*arguments) == 2
    one_error(capsys, words)


def test_a_root_that_cannot_be_written(tmp_path, capsys, monkeypatch, server) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert command("dtd", "--root", tmp_path / "root") == 2
    one_error(capsys, f"--root: expected a folder that can be written, got '{tmp_path}/root'")
    assert command("dtd", "--root", tmp_path / "root", "--check") == 1
    assert server.asked == [] and not (tmp_path / "root").exists()


def test_a_root_is_printed_without_its_escape_sequences(tmp_path, capsys) -> None:
    assert command("imagenet", "--root", tmp_path / "red\x1b[31m") == 1
    printed = capsys.readouterr().out
    assert r"red\x1b[31m" in printed and "\x1b" not in printed


def test_the_table_is_of_the_fifteen_datasets_and_the_papers_counts() -> None:
    configs = CHECKOUT / "configs" / "datasets"
    for name, entry in PUBLIC_SETS.items():
        config = yaml.safe_load((configs / f"{name}.yaml").read_text())
        assert config["DATASET"]["NAME"] == entry.dataset.__name__
        assert all(len(source.checksum) in (0, 32, 64) for source in entry.sources)
        if entry.split_file:
            assert entry.split_file in [source.file for source in entry.sources]
    assert {entry.dataset.__name__ for entry in PUBLIC_SETS.values()} == set(DESCRIPTIONS)
    assert len(PUBLIC_SETS) == 15
    assert set(MIRRORED) == set(PUBLIC_SETS) - {"imagenet"} and len(set(MIRRORED.values())) == 14
    assert re.fullmatch("[0-9a-f]{40}", MIRROR_COMMIT)  # what moves is no reference
    # UCF101's publishers list 13,320 videos, 3,783 of them for testing
    assert sum(PUBLIC_SETS["ucf101"].images) == 13_320


# ---------------------------------------------------------------------------------- descriptions


@pytest.fixture
def described(tmp_path, server, monkeypatch) -> Path:
    """Make the folder of the descriptions; the server has all that are public."""
    monkeypatch.setattr(descriptions, "DESCRIPTIONS_URL", server.url + "/{}.json")
    monkeypatch.setattr(descriptions, "DESCRIPTIONS_DIR", str(tmp_path / "descriptions"))
    (tmp_path / "descriptions").mkdir()
    for name in DESCRIPTIONS.values():
        content = {"Sea-or-Lake": [" Blue.", "", "Wet."], "forest": "Green."}
        server.files[f"{name}.json"] = json.dumps(content).encode()
    return tmp_path / "descriptions"


def test_descriptions_are_fetched_and_matched(described, server, capsys) -> None:
    (described / "UCF101.json").write_text('{"mine": ["Not to be overwritten."]}')
    assert command("descriptions") == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["EuroSAT"] == ["2", "3", "present"] and rows["UCF101"] == ["1", "1", "present"]
    assert names_in(described) == {f"{name}.json" for name in DESCRIPTIONS}
    path = described / "EuroSAT.json"
    assert json.loads(path.read_text()) == {"Sea-or-Lake": ["Blue.", "Wet."], "forest": ["Green."]}
    texts = descriptions_of(str(path), ["Forest", "sea_or_lake"], "KEY", "another")
    assert texts == [["Green."], ["Blue.", "Wet."]]
    assert "mine" in json.loads((described / "UCF101.json").read_text())
    asked = len(server.asked)
    assert command("descriptions") == 0 and len(server.asked) == asked


def test_descriptions_in_another_form(described, server, capsys) -> None:
    server.files["dtd_prompt.json"] = b'{"banded": [1, 2]}'
    del server.files["imagenet_a_prompt.json"]
    assert command("descriptions") == 2
    one_error(
        capsys,
        f"'{server.url}/dtd_prompt.json' is not {{class name: [sentences]}}",
        "imagenet_a_prompt.json: HTTP Error 404",
        f"'{described}/ImageNetA.json'",
    )
    absent = {"DescribableTextures.json", "ImageNetA.json"}
    assert names_in(described) == {f"{name}.json" for name in DESCRIPTIONS} - absent
    assert command("descriptions", "--check") == 1
    assert rows_of(capsys.readouterr().out)["ImageNetA"] == ["-", "-", "absent"]


def test_descriptions_without_a_network(described, capsys, monkeypatch) -> None:
    monkeypatch.setattr(descriptions, "DESCRIPTIONS_URL", "http://127.0.0.1:9/{}.json")
    assert command("descriptions") == 2
    one_error(capsys, "cannot reach http://127.0.0.1:9/caltech_prompt.json", "Caltech101.json'")
    assert names_in(described) == set()


def test_descriptions_that_cannot_be_written(described, server, capsys, monkeypatch) -> None:
    monkeypatch.setattr(descriptions, "DESCRIPTIONS_DIR", str(described / "file" / "below"))
    (described / "file").write_text("")
    assert command("descriptions") == 2
    one_error(capsys, f"descriptions: expected a folder, got '{described}/file/below'")
    monkeypatch.setattr(descriptions, "DESCRIPTIONS_DIR", str(described))
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert command("descriptions") == 2
    one_error(capsys, f"expected a folder that can be written, got '{described}'")
    assert server.asked == []


def test_names_of_descriptions_are_printed_without_escape_sequences(described, capsys) -> None:
    (described / "red\x1b[31m\n.json").write_text('{"leaf": ["Green."]}')
    assert command("descriptions", "--check") == 1
    printed = capsys.readouterr().out
    assert r"red\x1b[31m\n" in printed and "\x1b" not in printed


def test_descriptions_are_where_the_config_looks() -> None:
    from dassl.config import get_cfg_default

    default = get_cfg_default().TRAINER[HiCroPL.config_node].DESCRIPTIONS
    assert CHECKOUT / Path(default).parent == Path(descriptions.DESCRIPTIONS_DIR)
    assert sources.DESCRIPTIONS_URL.format("x").endswith("/gpt_file/x.json")


def test_the_documented_file_is_read_as_documented(tmp_path) -> None:
    page = (CHECKOUT / "docs" / "descriptions.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "texts.json"
    path.write_text(example)
    assert read_descriptions(str(path)) == json.loads(example)
    texts = descriptions_of(str(path), ["Annual Crop Land", "Sea_or-Lake"], "KEY", "another")
    assert [len(class_texts) for class_texts in texts] == [1, 2]
