"""The tensors of a TorchScript archive, read as data: no code of the file ever runs.

``torch.jit.load`` runs a class's ``__setstate__``, which may write any file of the user. Here the
objects of ``data.pkl`` become inert, and the tensors are read from the zip file's members.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
MAX_NAMES = 100_000  # in all modules together; OpenAI's largest model has about 10,000
MAX_DEPTH = 50  # of modules in modules
MAX_CODE = 1 << 26  # bytes, unpacked; the only members that are compressed


class _Object:
    """An instance of any class of the file; holds what would be its state."""

    qualified_name = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    numel: int


class _View(NamedTuple):
    """What a tensor is of its storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _view(storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> _View:
    return _View(storage, offset, size, stride)


def _first(value: Any, *others: Any) -> Any:
    return value


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{
        ("torch.jit._pickle", f"build_{kind}list"): _first
        for kind in ("int", "double", "bool", "tensor")
    },
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Class(NamedTuple):
    """What the code says of a class.

    Attributes:
        is_module: it is an ``nn.Module``.
        sets_state: it has a ``__setstate__``.
        tensors: names of those parameters and buffers that are always tensors.
    """

    is_module: bool
    sets_state: bool
    tensors: list[str]


_NO_MODULE = _Class(False, False, [])


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("_Object", (_Object,), {"qualified_name": f"{module}.{name}"})
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise ValueError(
                f"it names {module}.{name}, which no weights need, so it is refused"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(numel)) if numel >= 0:
                return _Storage(dtype, key, numel)
        raise ValueError("a tensor's storage is not described as torch does")


def _unpickle(data: bytes) -> Any:
    try:
        # the memo grows to the largest index: one damaged byte would make it 64 GB
        for opcode, argument, _ in pickletools.genops(data):
            if "PUT" in opcode.name and isinstance(argument, int) and argument > len(data):
                raise ValueError("an index is too large")
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # pickle raises errors of many kinds
        raise ValueError(f"its data.pkl cannot be read: {error}") from error


class _Archive:
    """An open archive: its members, under the folder that all of them share."""

    def __init__(self, path: Path, device: str):
        self.zip = zipfile.ZipFile(path)
        self.members = {info.filename: info for info in self.zip.infolist()}
        self.folder = self.zip.namelist()[0].partition("/")[0]
        self.device = device
        self.unread = os.path.getsize(path)
        self.unread_code = MAX_CODE
        self.storages: dict[str, Tensor] = {}
        self.classes: dict[str, dict[str, _Class]] = {}

    def member(self, name: str) -> zipfile.ZipInfo:
        """Find an uncompressed member, as torch writes all but the code."""
        file = f"{self.folder}/{name}"
        if file not in self.members:
            raise ValueError(f"it has no member '{name}'")
        info = self.members[file]
        # each is read once, so together they are no larger than the file
        self.unread -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or self.unread < 0:
            raise ValueError(f"its member '{name}' is not stored as torch does")
        return info

    def check_byte_order(self) -> None:
        """Raise ``ValueError`` where the numbers are in the other byte order."""
        if f"{self.folder}/byteorder" in self.members:  # older files do not say
            order = self.zip.read(self.member("byteorder")).decode("ascii", "replace")
            if order != sys.byteorder:
                raise ValueError(f"its byte order is '{order}', and the machine's {sys.byteorder}")

    def tensor(self, view: _View) -> Tensor:
        """Make a tensor; those of one storage share its memory.

        zipfile verifies the checksum of what it reads.
        """
        storage = view.storage
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor has no storage")
        if storage.key not in self.storages:
            info = self.member(f"data/{storage.key}")
            if self.device == "meta":
                content = torch.empty(info.file_size, dtype=torch.uint8, device="meta")
            elif info.file_size == 0:
                content = torch.empty(0, dtype=torch.uint8)
            else:
                content = torch.frombuffer(bytearray(self.zip.read(info)), dtype=torch.uint8)
            self.storages[storage.key] = content
        content = self.storages[storage.key]
        if len(content) != storage.numel * storage.dtype.itemsize:
            raise ValueError(
                f"its member 'data/{storage.key}' has {len(content)} bytes for "
                f"{storage.numel} numbers of type {str(storage.dtype).removeprefix('torch.')}"
            )
        return content.view(storage.dtype).as_strided(view.size, view.stride, view.offset)

    def class_of(self, module: Any) -> _Class:
        """Find what the code says of an object's class."""
        if not isinstance(module, _Object):
            return _NO_MODULE
        place, _, name = module.qualified_name.rpartition(".")
        if place not in self.classes:
            file = f"{self.folder}/code/{place.replace('.', '/')}.py"
            if file not in self.members:
                raise ValueError(f"it has no code of {module.qualified_name}")
            info = self.members[file]
            self.unread_code -= info.file_size
            if self.unread_code < 0:
                raise ValueError("its code is too long")
            self.classes[place] = dict(_classes(self.zip.read(info).decode()))
        return self.classes[place].get(name, _NO_MODULE)


def _classes(code: str) -> Iterator[tuple[str, _Class]]:
    """Yield the name and the description of each class in a file of the archive's code."""
    for name, source in re.findall(r"^class (\w+)(.*(?:\n(?!class |def ).*)*)", code, re.M):
        # a: Tensor, or where the name is not a word: __annotations__["0"] = Tensor
        typed = re.findall(r'^  (?:__annotations__\["([^"]*)"\] = |(\w+) : )Tensor$', source, re.M)
        tensors = {quoted or word for quoted, word in typed}
        lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", source, re.M)
        names = [name for line in lists for name in re.findall(r'"([^"]*)"', line)]
        yield (
            name,
            _Class(
                source.startswith("(Module):"),
                "\n  def __setstate__(" in source,
                [name for name in names if name in tensors],
            ),
        )


def _modules(archive: _Archive, root: Any) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yield prefix, attributes and names of tensors of each module, parents before children."""
    if not archive.class_of(root).is_module:
        raise ValueError("it holds no module")
    waiting = [("", root)]
    n_seen = 0
    while waiting:
        prefix, module = waiting.pop()
        described = archive.class_of(module)
        if not described.is_module:
            continue  # its tensors are not in the state dict
        if described.sets_state or not isinstance(module.state, dict):
            raise ValueError(
                f"{module.qualified_name} needs code of its own to read its tensors "
                "(__setstate__), which is not run"
            )
        yield prefix, module.state, described.tensors
        children = [(k, v) for k, v in module.state.items() if isinstance(v, _Object)]
        waiting += [(f"{prefix}{name}.", child) for name, child in reversed(children)]
        # a module may hold itself, or others twice at each of many levels
        n_seen += 1 + len(module.state) + len(described.tensors)
        if n_seen + len(waiting) > MAX_NAMES or prefix.count(".") > MAX_DEPTH:
            raise ValueError("it has too many modules")


def read_archive(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Return what ``torch.jit.load(path).state_dict()`` does, without running the archive's code.

    On the device "meta" only ``data.pkl`` and the heads of the classes are read.

    Raises:
        Exception: of several families; the file is damaged, or names what no weights need.
    """
    archive = _Archive(path, device)
    with archive.zip:
        archive.check_byte_order()
        root = _unpickle(archive.zip.read(archive.member("data.pkl")))
        return {
            prefix + name: archive.tensor(attributes[name])
            for prefix, attributes, names in _modules(archive, root)
            for name in names
            if isinstance(attributes.get(name), _View)
        }
