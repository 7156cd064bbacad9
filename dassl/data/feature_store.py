"""Features of images on disk, which runs, processes and machines share.

An entry is a safetensors file with one tensor. Its name is a digest of its key: of all that its
bits depend on, so that an entry is never out of date, and whoever has the same key has the same
bits. It is verified when it is read, written as a whole or not at all, and one that was not used
for the longest time goes first where the folder is full.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import PIL
import torch
from PIL import features as pillow
from torch import Tensor

from dassl.data.shared_files import locked
from dassl.errors import UserError
from dassl.utils.logger import log
from dassl.utils.tools import atomic_write, package_versions

FOLDER = ".features"  # in the folder of the datasets
TENSOR = "features"  # its name in a file
_ENTRY, _CONTENTS = ".safetensors", ".contents"
# Names of this folder's files, and those of their locks and of what a killed process has left.
_OWN = re.compile(r"\.?[0-9a-f]{64}\.(safetensors|contents)(\.lock|\.tmp-[a-z0-9_]{8})?")
_ABANDONED_S = 24 * 3600.0  # age of a temporary file that nobody is writing any more
# Variables that choose how matrices are multiplied.
_ARITHMETIC = ("DNNL_", "MKL_", "ONEDNN_")


class Entry(NamedTuple):
    """A file of the folder; ``about`` is what its writer said of it, {} for a digest of files."""

    path: str
    size: int  # bytes
    used: float  # seconds since 1970
    about: dict[str, str]


class FeatureStore:
    """The entries in a folder.

    Args:
        folder: made when something is kept. One that cannot be written keeps nothing.
        budget: bytes that its files may take; 0 leaves the folder alone.
    """

    def __init__(self, folder: str, budget: int) -> None:
        self.folder, self.budget = folder, budget

    def read_or_make(
        self, key: Mapping[str, Any], about: Mapping[str, str], make: Callable[[], Tensor]
    ) -> Tensor:
        """Return the tensor of a key; of several processes one makes it, the others read.

        Args:
            key: plain values, all that the tensor's bits depend on.
            about: what to say of the entry in a list.
            make: returns the tensor, on the CPU.
        """
        if self.budget == 0:
            return make()
        found = self._read(key)
        if found is not None:
            return found
        with locked(self.path(key)):
            found = self._read(key)  # another process may have been first
            if found is None:
                found = make()
                self._write(key, about, found)
        return found

    def path(self, key: Mapping[str, Any]) -> str:
        return os.path.join(self.folder, digest_of(key) + _ENTRY)

    def contents(self, paths: Sequence[str]) -> str | None:
        """Return a digest of files, in their order; None where one cannot be read.

        Files of the same path, size and time as before are not read again.
        """
        try:
            marks = [_mark(path) for path in paths]
            file = os.path.join(self.folder, digest_of(marks) + _CONTENTS)
            known = _line_of(file)
            if re.fullmatch("[0-9a-f]{64}", known):
                return known
            with ThreadPoolExecutor(8) as pool:  # the time is spent waiting for the disk
                found = digest_of(list(pool.map(_file_digest, paths)))
        except OSError:
            return None
        with suppress(UserError), atomic_write(file) as target:
            target.write(found)
        return found

    def _read(self, key: Mapping[str, Any]) -> Tensor | None:
        path = self.path(key)
        if not os.path.isfile(path):
            return None
        try:
            tensor = _verified(path, digest_of(key))
        except FileNotFoundError:  # another process makes room
            return None
        except Exception as error:  # whatever the bytes of another file lead to
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning(f"'{path}' is damaged and removed, its features are new: {reason}")
            with suppress(OSError):
                os.unlink(path)
            return None
        with suppress(OSError):  # a read-only folder
            os.utime(path)
        log.info(f"Image features are those of {path}")
        return tensor

    def _write(self, key: Mapping[str, Any], about: Mapping[str, str], tensor: Tensor) -> None:
        from safetensors.torch import save

        path, tensor = self.path(key), tensor.contiguous()
        facts = {"key": digest_of(key), "sha256": _sum(tensor), "about": json.dumps(dict(about))}
        content = save({TENSOR: tensor}, facts)
        if len(content) > self.budget:
            log.info(
                f"Image features are not kept: they take {len(content) / 2**20:.1f} MB, "
                f"DATALOADER.FEATURES_MB allows {self.budget / 2**20:g}"
            )
            return
        try:
            with atomic_write(path, "wb") as file:
                file.write(content)
        except UserError as error:
            log.info(f"Image features are not kept: {error}")
            return
        log.info(f"Image features are kept in {path}")
        self._make_room(path)

    def _make_room(self, new: str) -> None:
        """Remove what was not used for the longest time, but not the entry just written."""
        entries = entries_in(self.folder)
        total = sum(entry.size for entry in entries)
        for entry in sorted(entries, key=lambda entry: entry.used):
            if total <= self.budget:
                return
            if entry.path != new:
                with suppress(OSError):
                    os.unlink(entry.path)
                total -= entry.size


def entries_in(folder: str) -> list[Entry]:
    """List what a store has in a folder; temporary files that nobody writes any more go."""
    found = []
    for name in _own_names(folder):
        path = os.path.join(folder, name)
        try:
            status = os.stat(path)
            if not name.startswith("."):
                entry = Entry(path, status.st_size, status.st_mtime, {})
                found.append(entry)
            elif ".tmp-" in name and time.time() - status.st_mtime > _ABANDONED_S:
                os.unlink(path)
        except OSError:  # removed at this moment
            continue
    return found


def about(entry: Entry) -> Entry:
    """Return the entry with what its file says of it; {} where that cannot be read."""
    try:
        said = json.loads(_facts(entry.path)["about"])
        return entry._replace(about={str(name): str(value) for name, value in said.items()})
    except Exception:  # a damaged file
        return entry


def empty(folder: str) -> None:
    """Remove all that a store has in a folder, and the folder where nothing else is in it.

    Raises:
        OSError: something cannot be removed.
    """
    for name in _own_names(folder):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    with suppress(OSError):
        os.rmdir(folder)


def machine_of(device: torch.device) -> dict[str, Any]:
    """Return what the bits of a computation depend on besides its code and its numbers.

    On two threads matrix products of this torch have other bits than on one.
    """
    versions = package_versions()
    found: dict[str, Any] = {
        **{name: versions[name] for name in ("torch", "torchvision", "numpy")},
        "pillow": PIL.__version__,
        "jpeg": [pillow.version("libjpeg_turbo"), pillow.version("jpg")],
        "processor": _processor(),
        "environment": sorted(
            f"{name}={value}" for name, value in os.environ.items() if name.startswith(_ARITHMETIC)
        ),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "device": device.type,
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        backends = torch.backends
        tf32 = [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32]
        parts = [gpu.name, gpu.major, gpu.minor, torch.version.cuda, backends.cudnn.version()]
        return {**found, "gpu": [*parts, *tf32]}
    return {**found, "threads": torch.get_num_threads()}


@cache
def _processor() -> list[str]:
    """Name the processor and what it can do; of a Linux machine also what the kernel says of it."""
    said = ""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        first = file.read().partition("\n\n")[0]
        varying = ("apicid", "core id", "cpu MHz", "initial apicid", "microcode", "bogomips")
        lines = [line for line in first.splitlines() if not line.startswith(varying)]
        said = digest_of(lines)
    capability = torch.backends.cpu.get_cpu_capability()
    return [platform.machine(), platform.processor(), capability, said]


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a plain value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of named tensors, their types and shapes included."""
    parts = {
        name: [str(tensor.dtype), list(tensor.shape), _sum(tensor.detach().cpu().contiguous())]
        for name, tensor in tensors.items()
    }
    return digest_of(parts)


def _own_names(folder: str) -> list[str]:
    try:
        return sorted(filter(_OWN.fullmatch, os.listdir(folder)))
    except OSError:  # there is none
        return []


def _facts(path: str) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _verified(path: str, key: str) -> Tensor:
    """Read the tensor of an entry.

    Raises:
        ValueError: it is another one's, or its bytes are not those that were written.
    """
    from safetensors.torch import load

    if (facts := _facts(path)).get("key") != key:
        raise ValueError("it was written for another key")
    with open(path, "rb") as file:
        tensor = load(file.read())[TENSOR]
    if _sum(tensor) != facts.get("sha256"):
        raise ValueError("its checksum differs")
    return tensor


def _sum(tensor: Tensor) -> str:
    """Return the SHA-256 of the bytes of a contiguous tensor on the CPU."""
    data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data).hexdigest()


def _mark(path: str) -> str:
    status = os.stat(path)
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}"


def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _line_of(path: str) -> str:
    with suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
        return file.read().strip()
    return ""
