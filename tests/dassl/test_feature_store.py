"""The store of features: keys, damage, several processes, a bounded size."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

import train
from dassl.data.feature_store import FeatureStore, about, empty, entries_in, machine_of
from tests.dassl import toys

KEY = {"weights": "a", "batch": 32}
ROWS = torch.arange(12.0).reshape(4, 1, 3) / 7


def never() -> torch.Tensor:
    raise AssertionError("made again")


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(str(tmp_path / "features"), 10_000)


def test_an_entry_is_made_once_and_read_with_the_same_bits(store):
    assert store.read_or_make(KEY, {"images": "4 of Toys"}, lambda: ROWS) is ROWS
    same = dict(reversed(KEY.items()))
    found = store.read_or_make(same, {}, never)
    assert torch.equal(found, ROWS) and found.dtype == ROWS.dtype
    (entry,) = entries_in(store.folder)
    assert entry.path == store.path(KEY)
    assert about(entry).about == {"images": "4 of Toys"}
    for other in ({**KEY, "batch": 33}, {**KEY, "batch": "32"}, {"weights": "a"}, {}):
        assert torch.equal(store.read_or_make(other, {}, lambda: ROWS + 1), ROWS + 1), other
    assert len(entries_in(store.folder)) == 5
    names = os.listdir(store.folder)
    assert all(name.endswith(".safetensors") for name in names)  # no locks, nothing half-written


def flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def clear(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path, other: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save({"features": ROWS + 5}))


@pytest.mark.parametrize("damage", [flip, cut, swap, clear, foreign])
def test_a_damaged_or_foreign_file_is_named_removed_and_made_again(store, capsys, damage):
    other = {**KEY, "batch": 1}
    store.read_or_make(KEY, {}, lambda: ROWS)
    store.read_or_make(other, {}, lambda: ROWS + 1)
    path = Path(store.path(KEY))
    damage(path, Path(store.path(other)))
    capsys.readouterr()
    assert torch.equal(store.read_or_make(KEY, {}, lambda: ROWS.clone()), ROWS)
    said = capsys.readouterr()
    assert f"'{path}' is damaged and removed, its features are new: " in said.out + said.err
    assert torch.equal(store.read_or_make(KEY, {}, never), ROWS)


def test_the_least_recently_used_entries_make_room(store):
    keys = [{"number": number} for number in range(5)]
    rows = torch.zeros(600, 1, 1)
    for time, key in enumerate(keys[:3]):
        store.read_or_make(key, {}, lambda: rows)
        os.utime(store.path(key), (time, time))
    store.read_or_make(keys[0], {}, never)  # which uses it
    store.read_or_make(keys[3], {}, lambda: rows)
    assert sum(entry.size for entry in entries_in(store.folder)) <= store.budget
    there = [os.path.exists(store.path(key)) for key in keys]
    assert there == [True, False, True, True, False]
    # what does not fit at all is used and not kept, and displaces nothing
    assert len(store.read_or_make(keys[4], {}, lambda: torch.zeros(9000, 1, 1))) == 9000
    assert [os.path.exists(store.path(key)) for key in keys] == there


def test_without_a_budget_or_a_folder_nothing_is_kept(store, tmp_path):
    off = FeatureStore(store.folder, 0)
    assert off.read_or_make(KEY, {}, lambda: ROWS) is ROWS
    assert not os.path.exists(store.folder)
    (tmp_path / "file").write_text("")
    nowhere = FeatureStore(str(tmp_path / "file" / "features"), 10_000)
    assert nowhere.read_or_make(KEY, {}, lambda: ROWS) is ROWS
    assert nowhere.contents([str(tmp_path / "file")]) is not None


def test_two_processes_at_once_make_an_entry_once(store, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, made = context.Barrier(2), tmp_path / "made"

    def make() -> torch.Tensor:
        with made.open("a") as file:
            file.write("x")
        return ROWS

    def work() -> None:
        barrier.wait()
        for number in range(20):
            assert torch.equal(store.read_or_make({"number": number}, {}, make), ROWS)

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert made.read_text() == 20 * "x"


def test_the_digest_of_files_is_that_of_their_contents_in_order(store, tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text(path.name)
    names = list(map(str, paths))
    first = store.contents(names)
    assert store.contents(names) == first != store.contents(names[::-1])
    moved = tmp_path / "c"
    moved.write_text("a")
    assert store.contents([str(moved), names[1]]) == first  # wherever they are
    times = paths[0].stat()
    paths[0].write_text("z")
    os.utime(paths[0], ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert store.contents(names) != first
    assert store.contents([str(tmp_path / "missing")]) is None
    (Path(store.folder) / f"{'0' * 64}.contents").write_text("not a digest")
    for file in Path(store.folder).glob("*.contents"):
        file.write_text("damaged")
    assert store.contents([str(moved), names[1]]) == first


def test_what_a_damaged_entry_says_of_itself_is_nothing(store):
    from safetensors.torch import save_file

    store.read_or_make(KEY, {}, lambda: ROWS)
    for said in ("[]", "3", "{"):
        save_file({"features": ROWS}, store.path(KEY), {"about": said})
        (entry,) = entries_in(store.folder)
        assert about(entry) == entry


def test_emptying_leaves_what_is_not_the_store_s(store):
    store.read_or_make(KEY, {}, lambda: ROWS)
    own = Path(store.path(KEY))
    (own.parent / f".{own.name}.tmp-abcdefgh").write_text("half")
    (own.parent / "notes.txt").write_text("mine")
    empty(store.folder)
    assert os.listdir(store.folder) == ["notes.txt"]
    (own.parent / "notes.txt").unlink()
    empty(store.folder)
    assert not os.path.exists(store.folder)
    empty(store.folder)


def test_what_a_killed_process_left_goes_after_a_day(store):
    store.read_or_make(KEY, {}, lambda: ROWS)
    own = Path(store.path(KEY))
    old, new = (own.parent / f".{own.name}.tmp-abcdefg{end}" for end in "hi")
    old.write_text("half")
    new.write_text("half")
    os.utime(old, (1, 1))
    assert [entry.path for entry in entries_in(store.folder)] == [str(own)]
    assert not old.exists() and new.exists()


def test_a_machine_is_its_processor_threads_and_libraries(monkeypatch):
    machine = machine_of(torch.device("cpu"))
    assert {"torchvision", "pillow", "jpeg", "numpy", "matmul", "threads"} <= machine.keys()
    assert torch.backends.cpu.get_cpu_capability() in machine["processor"]
    assert machine_of(torch.device("cpu")) == machine
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert machine_of(torch.device("cpu")) != machine


def test_a_trainer_of_one_s_own_keeps_nothing_and_refuses_the_keys(tmp_path, capsys):
    root = toys.draw(tmp_path / "data")
    for key, value in (("VIEWS", "2"), ("FEATURES_MB", "0"), ("FEATURES_DIR", "there")):
        assert train.main(toys.cli(root, tmp_path / "out", f"DATALOADER.{key}", value)) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith(f"error: DATALOADER.{key}: expected ") and "does not use it" in line
    assert train.main(toys.cli(root, tmp_path / "out")) == 0
    assert not (root / ".features").exists()
