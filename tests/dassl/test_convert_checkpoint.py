"""Conversion of checkpoints: what is kept, and what is never overwritten."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dassl.utils import UserError, convert_checkpoint, load_checkpoint

TENSORS = {"ctx": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


class Leftover:
    """An object of the code that wrote the checkpoint."""


def write(path: Path, content: dict) -> bytes:
    torch.save({**content, "args": Leftover()}, path)
    return path.read_bytes()


def converted(content: dict, folder: Path) -> dict:
    write(folder / "old", content)
    assert convert_checkpoint.main([str(folder / "old"), str(folder / "new")]) == 0
    return torch.load(folder / "new", weights_only=True)


def with_prefix(state: dict, prefix: str = "module.") -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": TENSORS, "epoch": 3},
        {"state_dict": with_prefix(TENSORS), "epoch": 3},
        {"state_dict": with_prefix(TENSORS, "module.module."), "epoch": 3},
        {"model": with_prefix(TENSORS), "epoch": 3},
        {**with_prefix(TENSORS), "epoch": 3},
    ],
)
def test_the_tensors_have_the_names_of_the_model(tmp_path, content):
    found = converted(content, tmp_path)
    assert found["epoch"] == 3 and set(found["state_dict"]) == set(TENSORS)
    assert all(torch.equal(found["state_dict"][name], TENSORS[name]) for name in TENSORS)


def test_a_module_that_is_called_module_keeps_its_name(tmp_path):
    state = {"module.ctx": TENSORS["ctx"], "bias": TENSORS["bias"]}
    assert set(converted({"state_dict": state}, tmp_path)["state_dict"]) == set(state)


def a_folder(new: Path) -> Path:
    new.mkdir()
    return new


def a_file(new: Path) -> Path:
    new.write_text("mine")
    return new


def the_old_file(new: Path) -> Path:
    return new.with_name("old")


def a_link_to_the_old_file(new: Path) -> Path:
    new.symlink_to("old")
    return new


def a_pipe(new: Path) -> Path:
    os.mkfifo(new)
    return new


def below_a_file(new: Path) -> Path:
    return new.with_name("old") / "new"


@pytest.mark.parametrize(
    "place",
    [a_folder, a_file, the_old_file, a_link_to_the_old_file, a_pipe, below_a_file],
)
def test_nothing_is_overwritten(tmp_path, capsys, place: Callable[[Path], Path]):
    content = write(tmp_path / "old", {"state_dict": TENSORS})
    new = place(tmp_path / "new")
    before = sorted(tmp_path.iterdir())
    assert convert_checkpoint.main([str(tmp_path / "old"), str(new)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(new.parent) in line
    assert (tmp_path / "old").read_bytes() == content
    assert sorted(tmp_path.iterdir()) == before
    if place is a_file:
        assert new.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "new/"])
def test_a_new_file_needs_a_name(tmp_path, capsys, name):
    write(tmp_path / "old", {"state_dict": TENSORS})
    target = f"{tmp_path}/{name}" if name else ""
    assert convert_checkpoint.main([str(tmp_path / "old"), target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: NEW_FILE: expected the name of a file, got '{target}'"


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing"])
def test_an_old_file_that_is_none(tmp_path, capsys, kind):
    old = tmp_path / "old"
    if kind == "folder":
        old.mkdir()
    elif kind == "pipe":
        os.mkfifo(old)
    assert convert_checkpoint.main([str(old), str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    reason = "does not exist" if kind == "nothing" else "is not a file"
    assert line == f"error: checkpoint '{old}' {reason}"


def test_a_flipped_bit_is_not_converted(tmp_path, capsys):
    content = bytearray(write(tmp_path / "old", {"state_dict": TENSORS}))
    content[content.index(TENSORS["ctx"].numpy().tobytes())] ^= 1
    (tmp_path / "old").write_bytes(content)
    assert convert_checkpoint.main([str(tmp_path / "old"), str(tmp_path / "new")]) == 2
    assert "checksum" in capsys.readouterr().err and not (tmp_path / "new").exists()


class Calls:
    """Unpickling calls a function."""

    def __reduce__(self):
        return os.system, ("true",)


def test_no_error_advises_to_read_unsafely(tmp_path, capsys):
    for content in ({"state_dict": Calls()}, Leftover(), {"weights": torch.nn.Linear(2, 2)}):
        torch.save(content, tmp_path / "old")
        assert convert_checkpoint.main([str(tmp_path / "old"), str(tmp_path / "new")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be converted" in line
        assert not any(word in line for word in ("weights_only", "allow_pickle", "safe_globals"))


@pytest.mark.parametrize("read", [load_checkpoint, convert_checkpoint.read_without_objects])
def test_what_torch_takes_for_an_old_tar_file_is_no_checkpoint(tmp_path, read):
    (tmp_path / "old").write_bytes(bytes(2000))
    with pytest.raises(UserError, match="old' .* not what torch.save writes") as caught:
        read(str(tmp_path / "old"))
    assert "weights_only" not in str(caught.value)
