"""Weights files of a tiny CLIP, and many ways in which such files are wrong."""

from __future__ import annotations

import io
import json
import math
import struct
import warnings
import zipfile
from typing import Any

import torch
from torch import Tensor

from clip import CLIP, CLIPConfig
from clip.clip import ROWS

TINY = CLIPConfig(
    embed_dim=16,
    image_resolution=16,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=8,
    context_length=8,
    vocab_size=100,
    text_width=64,
    text_layers=1,
)


def tiny_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(TINY).eval()


def repacked(
    content: bytes, replaced: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> bytes:
    """Write a zip file again, with other contents of the members whose names end so."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            ends = [end for end in replaced if info.filename.endswith("/" + end)]
            data = replaced[ends[0]] if ends else old.read(info)
            new.writestr(info.filename, data, compression if ends else info.compress_type)
    return file.getvalue()


def damaged_files(content: bytes) -> dict[str, bytes]:
    """Damage a file's bytes in ways that its format must show."""
    half = len(content) // 2
    return {
        "empty": b"",
        "one byte": content[:1],
        "half": content[:half],
        "last byte missing": content[:-1],
        "last kilobyte zero": content[:-1024] + bytes(1024),
        "first kilobyte zero": bytes(1024) + content[1024:],
        "middle missing": content[: half - 500] + content[half + 500 :],
        "all zero": bytes(len(content)),
        "text": b"not weights\n" * 100,
        "a page": b"<!DOCTYPE html><html>sign in first</html>",
    }


def damaged_safetensors(content: bytes) -> dict[str, bytes]:
    """Damage a safetensors file: eight bytes that give the header's length, JSON, numbers."""
    (length,) = struct.unpack("<Q", content[:8])
    header, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = "visual.conv1.weight"

    def write(changed: dict[str, Any]) -> bytes:
        text = json.dumps({**header, **changed}).encode()
        return struct.pack("<Q", len(text)) + text + numbers

    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "last byte missing": content[:-1],
        "a byte more": content + b"\0",
        "length beyond the file": struct.pack("<Q", 1 << 40) + content[8:],
        "length zero": struct.pack("<Q", 0) + content[8:],
        "not JSON": content[:8] + b"x" * length + numbers,
        "unknown type": write({name: {**header[name], "dtype": "F31"}}),
        "another shape": write({name: {**header[name], "shape": [1 << 40, 1 << 20]}}),
        "offsets backward": write({name: {**header[name], "data_offsets": [8, 4]}}),
        "a list": struct.pack("<Q", 2) + b"[]" + numbers,
    }


def wrong_states(state: dict[str, Tensor]) -> dict[str, tuple[Any, str]]:
    """Return contents that are not the weights of a CLIP, and a word of what must be said."""
    conv, bias = "visual.conv1.weight", "ln_final.bias"
    patches = "visual.positional_embedding"

    def with_(name: str, value: Any) -> dict[str, Any]:
        return {**state, name: value}

    def without(start: str) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if not name.startswith(start)}

    def with_rows(rows: Any, table: Any = state["token_embedding.weight"]) -> dict[str, Any]:
        return {**state, "token_embedding.weight": table, ROWS: rows}

    rows = torch.arange(100, dtype=torch.int32)
    wide = torch.zeros(1).expand(1 << 40)
    number = state[bias].clone()
    number[3] = math.nan
    with warnings.catch_warnings():  # torch is about to give them up
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(state[bias].float(), 0.1, 0, torch.qint8)
    return {
        "None": (None, "no state dict"),
        "list": ([state], "no state dict"),
        "nested None": ({"state_dict": None}, "no state dict"),
        "nested list": ({"state_dict": [1], "epoch": 3}, "no state dict"),
        "empty": ({}, "lacks"),
        "nested empty": ({"state_dict": {}}, "lacks"),
        "scalar conv1": (with_(conv, torch.tensor(1.0)), conv),
        "conv1 of 3 dimensions": (with_(conv, state[conv][0]), conv),
        "empty conv1": (with_(conv, torch.zeros(0, 3, 8, 8)), conv),
        "patches that are not square": (with_(conv, state[conv][..., :4].clone()), conv),
        "gray images": (with_(conv, state[conv][:, :1].clone()), conv),
        "patches in no square": (with_(patches, state[patches][:4].clone()), patches),
        "no patches": (with_(patches, state[patches][:1].clone()), "no patches"),
        "positions missing": (without(patches), patches),
        "no text positions": (without("positional_embedding"), "positional_embedding"),
        "no vision layers": (without("visual.transformer"), "no layers"),
        "no text layers": (without("transformer"), "no layers"),
        "a layer is missing": (without("visual.transformer.resblocks.0"), "lacks"),
        "one tensor more": (with_("more", torch.zeros(2)), "more"),
        "name is a number": ({**state, 3: torch.zeros(2)}, "name 3"),
        "name in two lines": (with_("a\nb", torch.zeros(2)), r"a\nb"),
        "head width 0": (with_("head_width", torch.tensor(0)), "head_width"),
        "head width -16": (with_("head_width", torch.tensor(-16)), "head_width"),
        "head width 48": (with_("head_width", torch.tensor(48)), "head_width"),
        "head width 1e30": (with_("head_width", torch.tensor(1e30)), "head_width"),
        "two head widths": (with_("head_width", torch.tensor([16, 16])), "head_width"),
        "head width in words": (with_("head_width", "sixty-four"), "head_width"),
        "row beyond the table": (with_rows(rows + 1), f"'{ROWS}': expected rows from 0 to 99"),
        "row below 0": (with_rows(rows - 1), f"'{ROWS}': expected rows from 0 to 99, got -1"),
        "too few rows": (with_rows(rows[:0]), "token_embedding.weight"),
        "int64 rows": (with_rows(rows.long()), f"'{ROWS}': expected a list of int32"),
        "rows with a point": (with_rows(rows.float()), f"'{ROWS}': expected a list of int32"),
        "rows in a square": (with_rows(rows.view(10, 10)), f"'{ROWS}': expected a list of int32"),
        "rows in words": (with_rows("0, 1, 2"), f"'{ROWS}': expected a list of int32"),
        "sparse rows": (with_rows(rows.to_sparse()), f"'{ROWS}': expected a list of int32"),
        "meta rows": (with_rows(rows.to("meta")), f"'{ROWS}': expected a list of int32"),
        "repeated rows": (with_rows(rows[:1].expand(1 << 40)), f"'{ROWS}' repeats the same"),
        "rows of no table": ({**without("token_embedding"), ROWS: rows}, "token_embedding.weight"),
        "rows of a list": (with_rows(rows, torch.zeros(64)), "token_embedding.weight"),
        "rows of repeated numbers": (with_rows(rows, wide.view(1, -1)), "repeats the same"),
        "NaN": (with_(bias, number), bias),
        "infinite": (with_("logit_scale", torch.tensor(math.inf)), "logit_scale"),
        "beyond fp32": (with_(bias, torch.full((64,), 1e300, dtype=torch.float64)), bias),
        "text": (with_(bias, "text"), bias),
        "no value": (with_(bias, None), bias),
        "list of numbers": (with_(bias, [0.0] * 64), bias),
        "int": (with_(bias, torch.zeros(64, dtype=torch.int64)), bias),
        "bool": (with_(bias, torch.zeros(64, dtype=torch.bool)), bias),
        "complex": (with_(bias, torch.zeros(64, dtype=torch.complex64)), bias),
        "sparse": (with_(bias, torch.zeros(64).to_sparse()), bias),
        "quantized": (with_(bias, quantized), bias),
        "meta": (with_(bias, torch.zeros(64, device="meta")), bias),
        "repeated": (with_(bias, wide), bias),
    }
