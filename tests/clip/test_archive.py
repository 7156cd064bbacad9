"""TorchScript archives: read as data, to the bit what torch reads, and no code of theirs runs."""

import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from torch import nn

import clip
from clip import ClipError
from clip.archive import read_archive
from dassl.utils import UserError, load_checkpoint
from tests.clip.weights_files import repacked
from trainers.trainer import load_frozen

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Part(nn.Module):
    """Attributes of all kinds that a state dict has, and of those that it does not have."""

    maybe: Optional[torch.Tensor]  # noqa: UP045 (TorchScript reads it)
    kept_maybe: Optional[torch.Tensor]  # noqa: UP045

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4).half())
        self.register_parameter("bias", None)
        self.register_buffer("context_length", torch.tensor(77))
        self.register_buffer("order", torch.arange(3, dtype=torch.int32), persistent=False)
        self.register_buffer("every_other", torch.randn(4, 6)[1:, ::2])
        self.register_buffer("turned", torch.randn(2, 5).to(torch.bfloat16).t())
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("complex", torch.randn(2, dtype=torch.complex64))
        self.register_buffer("kept_maybe", torch.ones(2))
        self.maybe = torch.ones(2)
        self.plain = torch.randn(4)
        self.several = [torch.ones(2)]
        self.numbers = [1, 2]
        self.words = {"a": 1.5}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.float().sum() + self.plain.sum()


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()
        self.again = self.part
        self.same_weight = self.part.weight
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.BatchNorm1d(2)])
        self.by_name = nn.ModuleDict({"odd-name": nn.Linear(2, 2)})
        self.listed = nn.ParameterList([nn.Parameter(torch.ones(1), requires_grad=False)])
        self.register_buffer("wide", torch.tensor(1.0).expand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.part(x)


def scripted(path: Path) -> Path:
    torch.jit.save(torch.jit.script(Whole()), path)
    return path


def traced_in_fp16(path: Path) -> Path:
    plain = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 1)))
    torch.jit.save(torch.jit.trace(plain.eval(), torch.zeros(3, 2)).half(), path)
    return path


def under_another_folder(path: Path) -> Path:
    scripted(path.with_name("made.pt"))
    with zipfile.ZipFile(path.with_name("made.pt")) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename.replace("made/", "archive/", 1), old.read(info))
    return path


@pytest.mark.parametrize("make", [scripted, traced_in_fp16, under_another_folder])
def test_an_archive_gives_what_torch_reads_to_the_bit(tmp_path, make):
    path = make(tmp_path / "weights.pt")
    expected = torch.jit.load(str(path)).state_dict()
    found = read_archive(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride()), name
        assert torch.equal(found[name], tensor), name
    shapes = read_archive(path, "meta")
    assert {n: (t.shape, t.dtype) for n, t in shapes.items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }
    assert {t.device.type for t in shapes.values()} == {"meta"}


def test_tensors_of_one_storage_share_it(tmp_path):
    found = read_archive(scripted(tmp_path / "weights.pt"))
    assert found["part.weight"].data_ptr() == found["same_weight"].data_ptr()


class Writes(nn.Module):
    """An attack: whoever restores it writes a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = nn.Parameter(torch.zeros(3))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str]:
        return self.weight, self.path

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str]) -> None:
        self.weight, self.path = state
        self.training = False
        torch.save(state[0], state[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Holds(nn.Module):
    """The attack one level down."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.inner = Writes(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("attack", [Writes, Holds])
def test_code_of_an_archive_does_not_run(tmp_path, attack):
    written = tmp_path / "written"
    path = tmp_path / "weights.pt"
    torch.jit.save(torch.jit.script(attack(str(written))), path)
    torch.jit.load(str(path))
    assert written.exists()  # the attack works where it is let
    written.unlink()

    line = r"weights\.pt: .*Writes needs code of its own to read its tensors \(__setstate__\)"
    with pytest.raises(ClipError, match=line):
        clip.load_model(str(path))
    assert clip.preprocess_of(str(path)) is None
    key = "TRAINER.HICROPL.TEACHER_NAME"
    with pytest.raises(UserError, match=f"^{key}: .*{line}"):
        load_frozen(key, str(path))
    with pytest.raises(UserError, match=r"weights\.pt"):
        load_checkpoint(str(path))
    assert not written.exists()


def with_pickle(path: Path, data: bytes) -> Path:
    """Write an archive of one module whose data.pkl is ``data``."""
    scripted(path.with_name("made.pt"))
    path.write_bytes(repacked(path.with_name("made.pt").read_bytes(), {"data.pkl": data}))
    return path


class Calls:
    """Unpickling calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "system": (pickle.dumps(Calls(__import__("os").system, "true"), 2), "posix.system"),
    "eval": (pickle.dumps(Calls(eval, "1"), 2), "builtin"),
    "open": (b"\x80\x02cio\nopen\nX\x01\x00\x00\x00x\x85R.", "io.open"),
    "torch.load": (b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00x\x85R.", "torch.load"),
    "attribute": (b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93.", "torch.hub.load"),
    "instance": (b"(S'true'\nios\nsystem\n.", "os.system"),
    "extension": (b"\x80\x02\x82\x01.", "unregistered extension"),
    "memo of 64 GB": (b"\x80\x02Nr\xff\xff\xff\xff.", "an index is too large"),
    "endless": (b"\x80\x02\x8a\xffN.", "not enough data"),
    "no module": (b"\x80\x02}.", "holds no module"),
    "tensor": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.", "holds no module"),
    "no code": (b"\x80\x02c__torch__\nNone\n)\x81}b.", "no code of __torch__.None"),
    "foreign storage": (b"\x80\x02X\x01\x00\x00\x00xQ.", "storage is not described"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_names_anything_else_is_refused(tmp_path, name):
    data, reason = HOSTILE[name]
    path = with_pickle(tmp_path / "weights.pt", data)
    with pytest.raises(ClipError) as info:
        clip.load_model(str(path))
    assert reason in str(info.value) and str(path) in str(info.value)
    assert "\n" not in str(info.value)


def module_of(attributes: bytes) -> bytes:
    """Pickle a module ``Whole`` with attributes, themselves pickled without a frame."""
    name = f"c__torch__.{Whole.__module__}\nWhole\n".encode()
    return b"\x80\x02" + name + b")\x81q\x00}(" + attributes + b"ub."


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def tensor(key: str, numel: int, size: int, stride: int, offset: int = 0) -> bytes:
    number = [b"J" + struct.pack("<i", n) for n in (numel, offset, size, stride)]
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += number[0] + b"tQ"
    view = storage + number[1] + number[2] + b"\x85" + number[3] + b"\x85\x89"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"ccollections\nOrderedDict\n)RtR"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tensor("0", 6, 1 << 30, 1), "out of bounds"),
        (tensor("0", 6, 2, -1), "Negative strides"),
        (tensor("0", 6, 2, 1, offset=5), "out of bounds"),
        (tensor("0", 1 << 30, 2, 1), "has 24 bytes for 1073741824 numbers of type float32"),
        (tensor("../0", 6, 2, 1), "no member 'data/../0'"),
        (tensor("none", 6, 2, 1), "no member 'data/none'"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, content, reason):
    path = with_pickle(tmp_path / "weights.pt", module_of(text("wide") + content))
    with pytest.raises(ClipError, match=reason):
        clip.load_model(str(path))


def test_a_module_that_holds_itself_is_refused(tmp_path):
    data = module_of(text("part") + b"h\x00")
    with pytest.raises(ClipError, match="too many modules"):
        clip.load_model(str(with_pickle(tmp_path / "weights.pt", data)))


def test_the_other_byte_order_is_refused(tmp_path):
    made = scripted(tmp_path / "made.pt")
    other = {"little": b"big", "big": b"little"}[sys.byteorder]
    path = tmp_path / "weights.pt"
    path.write_bytes(repacked(made.read_bytes(), {"byteorder": other}))
    with pytest.raises(ClipError, match=f"its byte order is '{other.decode()}'"):
        clip.load_model(str(path))


def test_a_compressed_storage_is_refused(tmp_path):
    made = scripted(tmp_path / "made.pt")
    path = tmp_path / "weights.pt"
    path.write_bytes(repacked(made.read_bytes(), {"data/0": bytes(24)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(ClipError, match="member 'data/0' is not stored as torch does"):
        clip.load_model(str(path))


def test_a_flipped_bit_is_found(tmp_path):
    path = scripted(tmp_path / "weights.pt")
    content = bytearray(path.read_bytes())
    weight = read_archive(path)["part.weight"].numpy().tobytes()
    content[content.index(weight)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ClipError, match=r"weights\.pt: Bad CRC-32 for file 'weights/data/"):
        clip.load_model(str(path))
