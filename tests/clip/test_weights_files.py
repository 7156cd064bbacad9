"""Wrong weights files: one line that names the file, before anything large is made."""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

import clip
import train
from clip import ClipError
from dassl.utils import UserError
from tests.clip.weights_files import (
    TINY,
    damaged_files,
    damaged_safetensors,
    tiny_clip,
    wrong_states,
)
from trainers.trainer import load_frozen

STATE = dict(tiny_clip().state_dict())
FAST = ("half", "middle missing", "text")  # of the damages, one of each kind


def mostly_slow(names: Iterable[str]) -> list[Any]:
    """Mark what is not among ``FAST`` as slow."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


@cache
def plain() -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file)
    return file.getvalue()


@cache
def archive() -> bytes:
    class Holder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    holder = Holder()
    for name, child in tiny_clip().named_children():
        holder.add_module(name, child)
    for name, parameter in tiny_clip().named_parameters(recurse=False):
        holder.register_parameter(name, parameter)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(holder, torch.zeros(1)), file)
    return file.getvalue()


def one_line(path: Path) -> str:
    """Load a wrong file; return the one line of the error, which names the file."""
    with pytest.raises(ClipError) as info:
        clip.load_model(str(path))
    line = str(info.value)
    assert str(path) in line and "\n" not in line and len(line) < 700
    for advice in ("weights_only=False", "allow_pickle", "add_safe_globals", "Traceback"):
        assert advice not in line
    return line


def same_or_refused(path: Path) -> None:
    """Check that a file that may be damaged gives the right numbers or one line."""
    try:
        loaded = clip.load_model(str(path)).state_dict()
    except ClipError:
        one_line(path)
        return
    assert all(torch.equal(loaded[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("kind", wrong_states(STATE))
def test_what_is_not_the_weights_of_a_clip(tmp_path, kind):
    content, word = wrong_states(STATE)[kind]
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    assert word in one_line(path)
    known = clip.preprocess_of(str(path))  # asks for the shapes of images alone
    assert known in (None, clip.Preprocess(16)) or kind == "patches that are not square"


class Settings(dict):
    """An object of the code that trained the model."""


def test_pickled_objects_are_refused_without_advice_to_run_them(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": STATE, "args": Settings()}, path)
    line = one_line(path)
    assert "Settings" in line and "holds a pickled object" in line
    assert line.endswith(f"python -m dassl.utils.convert_checkpoint {path} NEW_FILE")


@pytest.mark.parametrize("damage", mostly_slow(damaged_files(plain())))
@pytest.mark.parametrize("make", [plain, archive])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_file_with_damaged_bytes(tmp_path, make, damage):
    path = tmp_path / "weights.pt"
    path.write_bytes(damaged_files(make())[damage])
    one_line(path)
    assert clip.preprocess_of(str(path)) in (None, clip.Preprocess(16))  # numbers are not read


@pytest.mark.parametrize("damage", damaged_safetensors(save(STATE)))
def test_a_damaged_safetensors_file(tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(damaged_safetensors(save(STATE))[damage])
    one_line(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_numbers_that_are_not_finite_in_a_format_without_checksums(tmp_path, suffix):
    state = {**STATE, "ln_final.bias": torch.full((64,), float("nan"))}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        save_file(state, path)
    assert "'ln_final.bias' has values that are infinite or not numbers" in one_line(path)


def test_a_flipped_bit_of_a_plain_file_is_found(tmp_path):
    content = bytearray(plain())
    content[content.index(STATE["text_projection"].numpy().tobytes())] ^= 1
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert "checksum" in one_line(path)


@pytest.mark.slow
@pytest.mark.parametrize("make", [plain, archive])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_random_damage_gives_the_right_numbers_or_one_line(tmp_path, make: Callable[[], bytes]):
    draw, content = random.Random(0), make()
    places = len(content)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        (index,) = [i for i in file.infolist() if i.filename.endswith("/data.pkl")]
    path = tmp_path / "weights.pt"
    for trial in range(300):
        changed = bytearray(content)
        # half of them where the structure is
        start = (index.header_offset, 0)[trial % 2]
        stop = (index.header_offset + index.file_size + 100, places)[trial % 2]
        for _ in range(draw.choice((1, 1, 4))):
            changed[draw.randrange(start, stop)] = draw.randrange(256)
        path.write_bytes(changed)
        same_or_refused(path)


def test_names_of_data_parallel_and_nesting(tmp_path):
    wrapped = {f"module.{name}": tensor for name, tensor in STATE.items()}
    for content in (wrapped, {"model": wrapped}, {"state_dict": wrapped, "epoch": 1}):
        torch.save(content, tmp_path / "weights.pt")
        same_or_refused(tmp_path / "weights.pt")
        assert clip.load_model(str(tmp_path / "weights.pt")).config == TINY
    save_file(wrapped, tmp_path / "weights.safetensors")
    assert clip.load_model(str(tmp_path / "weights.safetensors")).config == TINY
    torch.save({**wrapped, "visual.proj": STATE["visual.proj"]}, tmp_path / "weights.pt")
    assert "lacks" in one_line(tmp_path / "weights.pt")  # two answers to one question


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "unreadable", "name"])
def test_what_is_not_a_file(tmp_path, kind, monkeypatch):
    path = tmp_path / "weights.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to nothing":
        path.symlink_to("nothing")
    elif kind == "unreadable":
        torch.save(STATE, path)

        def refuse(*arguments: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(clip.clip, "is_torchscript", refuse)
    else:
        path = tmp_path / ("x" * 300)
    one_line(path)
    assert clip.preprocess_of(str(path)) is None or kind == "unreadable"
    with pytest.raises(UserError, match="^TRAINER.HICROPL.TEACHER_NAME: "):
        load_frozen("TRAINER.HICROPL.TEACHER_NAME", str(path))


@pytest.mark.parametrize("pair", ["", "/", "/x", "ViT-B-16", "ViT-B-16/", "a/b/c", "../x/openai"])
def test_an_odd_open_clip_pair(pair):
    name = f"open_clip:{pair}"
    with pytest.raises(ClipError, match=f"^unknown open_clip pair '{pair}'"):
        clip.load_model(name)
    assert clip.preprocess_of(name) is None


def test_train_names_the_key_and_the_file(tmp_path, capsys):
    path = tmp_path / "weights.pt"
    torch.save({**STATE, "head_width": torch.tensor(0)}, path)
    root = Path(train.__file__).parent / "configs"
    code = train.main(
        [
            *("--trainer", "CoOp", "--root", str(tmp_path / "data"), "--backbone", str(path)),
            *("--output-dir", str(tmp_path / "out")),
            *("--dataset-config-file", str(root / "datasets/digits.yaml")),
            *("--config-file", str(root / "trainers/CoOp/vit_mini.yaml")),
        ]
    )
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: MODEL.BACKBONE.NAME: {path}: ") and "head_width" in line
