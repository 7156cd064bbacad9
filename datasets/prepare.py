"""Fetches the public datasets, and says what is there and what is missing.

    python -m datasets.prepare oxford_pets dtd --root DATA
    python -m datasets.prepare all --root DATA --check
    python -m datasets.prepare descriptions

Names are those of the files in configs/datasets; "all" is the fifteen public datasets. What is
there is not fetched again, and the same command goes on with what was interrupted: a download from
its ".part" file, an archive by being unpacked anew. An archive that was fetched is removed once it
is unpacked; one that was there before is used, and kept. --check changes nothing.

"descriptions" fetches CoPrompt's LLM-written descriptions into datasets/descriptions, where
HiCroPL looks for them.

Exit codes: 0 all that was asked for is complete; 1 something is missing that has to be got by hand
(the printed lines say what, and where it goes), with --check: anything; 2 an error (one line on
stderr), which leaves what had been fetched; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dassl.errors import UserError, check_choice
from dassl.utils import listdir_nohidden, read_json, write_json
from dassl.utils.download import NetworkError, check_file, download, extract_archive

from .common import SPLITS, read_fields
from .sources import DESCRIPTIONS, DESCRIPTIONS_URL, PUBLIC_SETS, PublicSet, Source

DESCRIPTIONS_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "descriptions")
IMAGES = (".jpg", ".jpeg", ".png")
ARCHIVES = (".tar", ".tgz", ".gz", ".zip")


# ---------------------------------------------------------------------------------- what is there


@dataclass(frozen=True)
class Status:
    """What of a dataset is there.

    Attributes:
        found: images that a run would use.
        expected: their number in the papers' table.
        classes: number of classes; None where neither a list nor the folders tell.
        split: "there", "absent" or "not needed".
        missing: what a run lacks, for people; empty where the dataset is complete.
    """

    found: int
    expected: int
    classes: int | None
    split: str
    missing: list[str]


def check(entry: PublicSet, folder: str) -> Status:
    """Compares a dataset's folder with the papers' table; writes nothing.

    Images are those that the split file names, else those that the publishers' lists name, else
    the image files that are there.
    """
    there = {path for images in entry.folders for path in _image_files(folder, images)}
    parts, split, missing = entry.images, "not needed", []
    classes: int | None
    lists = [os.path.join(folder, name) for name in entry.lists]
    if entry.split_file:
        split = "there" if os.path.exists(os.path.join(folder, entry.split_file)) else "absent"
    if split == "absent":
        missing.append(entry.split_file)
    try:
        if split == "there":
            named = _read_split(os.path.join(folder, entry.split_file))
            parts = (len(named[0]), len(named[1]), len(named[2]))
            images = {posixpath.join(entry.image_dir, path) for part in named for path, _ in part}
            classes = len({label for part in named for _, label in part})
        elif lists and all(os.path.exists(path) for path in lists):
            listed = [fields for path in lists for fields in _read_list(path)]
            images = {posixpath.join(entry.folders[0], path) for path, _ in listed}
            classes = len({name for _, name in listed})
        else:
            images = {path for path in there if path.split("/")[-2] not in entry.ignored}
            folders = {posixpath.dirname(path) for path in images} - set(entry.folders)
            if len(entry.folders) > 1:  # the same classes in each
                folders = {posixpath.basename(path) for path in folders}
            classes = len(folders) or None
    except UserError as error:
        missing.append(f"a good file: {error}")
        return Status(0, sum(entry.images), None, split, missing)

    found = len(images & there)
    needed = entry.folders if entry.split_file else [*entry.folders, *_gives(entry.sources)]
    absent = [path for path in dict.fromkeys(needed) if not _exists(folder, path)]
    missing += absent
    if parts != entry.images:
        missing.append(f"a split file of {_counts(entry.images)} images, not {_counts(parts)}")
    elif found < sum(parts) and not absent:
        missing.append(f"{sum(parts) - found:,} of the images")
    if classes not in (None, entry.classes) and not missing:
        missing.append(f"{entry.classes} classes, not {classes}")
    return Status(found, sum(entry.images), classes, split, missing)


def _counts(parts: Iterable[int]) -> str:
    return "/".join(f"{count:,}" for count in parts)


def _exists(folder: str, path: str) -> bool:
    return os.path.exists(os.path.join(folder, path))


def _gives(sources: Iterable[Source]) -> list[str]:
    return [path for source in sources for path in source.gives]


def _image_files(folder: str, images: str) -> list[str]:
    """Paths, relative to ``folder``, of the images at any depth of its folder ``images``."""
    found = []
    for parent, _, names in os.walk(os.path.join(folder, images), followlinks=True):
        place = os.path.relpath(parent, folder).replace(os.sep, "/")
        found += [
            f"{place}/{name}"
            for name in names
            if name.lower().endswith(IMAGES) and not name.startswith(".")
        ]
    return found


def _read_split(path: str) -> list[list[tuple[str, int]]]:
    """(path, label) of each image in the three parts of a split file."""
    content = read_json(path)
    try:
        return [[(str(image), int(label)) for image, label, _ in content[part]] for part in SPLITS]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"'{path}' is no split file") from error


def _read_list(path: str) -> list[tuple[str, str]]:
    """(path, what stands for its class) of each image that a publishers' list names."""
    images = []
    for (line,) in read_fields(path, 1):
        name, _, rest = line.partition(" ")
        name = name.lstrip("/")
        images.append(
            (name if name.endswith(".jpg") else f"{name}.jpg", rest or posixpath.dirname(name))
        )
    return images


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def report(names: Sequence[str], root: str) -> bool:
    """Prints the table of these datasets; returns whether all are complete."""
    rows, complete = [], True
    for name in names:
        entry = PUBLIC_SETS[name]
        status = check(entry, _folder(entry, root))
        complete = complete and not status.missing
        classes = "-" if status.classes is None else str(status.classes)
        rows.append(
            (
                name,
                f"{status.found:,} / {status.expected:,}",
                f"{classes} / {entry.classes}",
                status.split,
                ", ".join(status.missing) or "nothing",
            )
        )
    print_table(("dataset", "images", "classes", "split file", "missing"), rows)
    return complete


def _folder(entry: PublicSet, root: str) -> str:
    return os.path.join(root, entry.dataset.dataset_dir)


# ---------------------------------------------------------------------------------- what is not


def prepare(name: str, root: str, fetched: list[str]) -> None:
    """Fetches what a dataset lacks and unpacks it; prints what has to be got by hand.

    Args:
        name: of the dataset.
        root: the folder of the datasets.
        fetched: gets the path of each file that was downloaded.

    Raises:
        UserError: an address cannot be reached, or a file is not the one it should be. What was
            fetched before stays.
    """
    entry = PUBLIC_SETS[name]
    folder = _folder(entry, root)
    if not check(entry, folder).missing:
        print(f"{name}: complete")
        return
    print(f"{name}: into {folder}")
    sources = [
        source
        for source in entry.sources
        if not all(_exists(folder, path) for path in source.gives)
    ]
    by_hand = [s for s in sources if not s.url and not _exists(folder, s.file)]
    if by_hand or not entry.sources:
        for line in entry.by_hand:
            print(line.format(folder=folder))
    for source in by_hand:
        print(
            f"  {source.file} (SHA-256 {source.checksum}), to be placed in {folder}: the same "
            f"command then unpacks it. Or {', '.join(source.gives)} in {folder}."
        )
    for source in sources:
        path = os.path.join(folder, source.file)
        if source.url:
            _fetch(source, path, fetched)
        if source.unpack and os.path.exists(path):
            _unpack(source, path, folder, path in fetched)
    missing = check(entry, folder).missing
    if missing and entry.sources and not by_hand:
        print(
            f"{name} lacks {', '.join(missing)}. What is there is not fetched again: move a folder "
            "that is not whole, or a file that is not right, away first."
        )


def _fetch(source: Source, path: str, fetched: list[str]) -> None:
    if os.path.exists(path):
        return
    try:
        if source.file.endswith(".json"):
            # Google Drive may give a page about the file instead of the file
            download(source.url, path + ".new", source.checksum)
            try:
                read_json(path + ".new")
            except UserError:
                os.unlink(path + ".new")
                raise
            os.replace(path + ".new", path)
        else:
            download(source.url, path, source.checksum)
    except UserError as error:
        raise type(error)(
            f"{error}; get the file by other means, place it at '{path}' and run the same command "
            "again"
        ) from error
    fetched.append(path)


def _unpack(source: Source, path: str, folder: str, was_fetched: bool) -> None:
    """Moves the members of an archive that are missing into the dataset's folder."""
    temporary = os.path.join(folder, ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    try:
        if not was_fetched:
            check_file(path, source.checksum)
        extract_archive(path, temporary)
        moves = []
        for inside, target in source.unpack.items():
            member = os.path.join(temporary, inside)
            if inside.endswith(ARCHIVES) and os.path.isfile(member):
                extract_archive(member, os.path.join(temporary, ".inner"))
                member = os.path.join(temporary, ".inner", target)
            if not os.path.exists(member):
                raise UserError(f"archive '{path}' has no '{inside}'")
            moves.append((member, os.path.join(folder, target)))
        for member, moved in moves:
            if not os.path.exists(moved):
                os.replace(member, moved)
    except UserError as error:
        raise UserError(
            f"{error}; if the file is damaged, delete it and run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if was_fetched:
        os.unlink(path)
    else:
        print(f"'{path}' has been unpacked and is no longer needed")


# ---------------------------------------------------------------------------------- descriptions


def prepare_descriptions(name: str, fetched: list[str]) -> None:
    """Fetches the descriptions of one dataset as {class name: [sentences]}.

    Args:
        name: of the dataset's class.
        fetched: gets the path of the file if it was downloaded.

    Raises:
        UserError: the address cannot be reached, or has something else.
    """
    path = os.path.join(DESCRIPTIONS_DIR, f"{name}.json")
    if os.path.exists(path):
        print(f"{path} is there")
        return
    url = DESCRIPTIONS_URL.format(DESCRIPTIONS[name])
    with tempfile.TemporaryDirectory() as temporary:
        file = os.path.join(temporary, f"{name}.json")
        try:
            download(url, file)
            content = read_descriptions(file)
        except UserError as error:
            raise type(error)(
                f"{str(error).replace(file, url)}; write {{class name: [sentences]}} at '{path}', "
                "or choose TRAINER.HICROPL.FROZEN_TEXT template or templates"
            ) from error
    write_json(content, path)
    fetched.append(path)
    print(f"Saved {path}")


def read_descriptions(path: str) -> dict[str, list[str]]:
    """{class name: [sentences]}, without blank sentences.

    Raises:
        UserError: the file cannot be read, or has another form.
    """
    content = read_json(path)
    described = {}
    for name, texts in content.items() if isinstance(content, dict) else [("", None)]:
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"'{path}' is not {{class name: [sentences]}}")
        described[name] = [text.strip() for text in texts if text.strip()]
    return described


def report_descriptions() -> bool:
    """Prints a table of the descriptions that are there; returns whether the public ones are."""
    names = listdir_nohidden(DESCRIPTIONS_DIR)
    files = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    rows, complete = [], True
    for name in sorted({*DESCRIPTIONS, *files}):
        row = (name, "-", "-", "absent")
        if name in files:
            try:
                content = read_descriptions(os.path.join(DESCRIPTIONS_DIR, f"{name}.json"))
                sentences = sum(map(len, content.values()))
                row = (name, f"{len(content):,}", f"{sentences:,}", "there")
            except UserError as error:
                row = (name, "-", "-", str(error))
        complete = complete and row[-1] == "there"
        rows.append(row)
    print_table(("descriptions", "classes", "sentences", "file"), rows)
    return complete


# ---------------------------------------------------------------------------------- the command


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Fetch public datasets, or the descriptions of their classes.",
        epilog="Exit codes: 0 complete, 1 something has to be got by hand (or, with --check, is "
        "missing), 2 error. The same command goes on with what was interrupted.",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(PUBLIC_SETS)}; all (of these); or descriptions",
    )
    parser.add_argument("--root", default="", help="folder of the datasets (DATASET.ROOT)")
    parser.add_argument("--check", action="store_true", help="download nothing, print a table")
    return parser


def run(names: Sequence[str], root: str, check_only: bool) -> bool:
    """Fetches or checks; returns whether all is complete.

    Raises:
        UserError: bad arguments, or something could not be fetched.
    """
    for name in names:
        check_choice("dataset", name, [*PUBLIC_SETS, "all", "descriptions"])
    datasets = [name for name in PUBLIC_SETS if name in names or "all" in names]
    if datasets and not root:
        raise UserError("--root is missing: the folder of the datasets")
    root = os.path.abspath(os.path.expanduser(root))
    described = "descriptions" in names
    if not check_only:
        _fetch_all(datasets, root, list(DESCRIPTIONS) if described else [])
    complete = [report(datasets, root)] if datasets else []
    if described:
        complete.append(report_descriptions())
    return all(complete)


def _fetch_all(datasets: Sequence[str], root: str, described: Sequence[str]) -> None:
    """Goes on behind a failure, but not where there seems to be no network at all."""
    fetched: list[str] = []
    failures: list[str] = []
    jobs: list[tuple[Any, tuple[str, ...]]] = [(prepare, (name, root)) for name in datasets]
    jobs += [(prepare_descriptions, (name,)) for name in described]
    for job, arguments in jobs:
        try:
            job(*arguments, fetched)
        except UserError as error:
            failures.append(str(error))
            if isinstance(error, NetworkError) and not fetched:
                break
    if failures:
        raise UserError("; ".join(failures))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, the process's own without ``argv``; returns the exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # --help, or a bad argument that argparse has reported
        return int(stop.code or 0)
    try:
        return 0 if run(args.names, args.root, args.check) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
