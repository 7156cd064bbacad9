"""From a name or a file to a CLIP model.

A model is named ``ViT-B/16``, ``RN50``, ... (OpenAI's published files), ``ViT-Mini`` (in this
repository), ``open_clip:ViT-B-16/laion2b_s34b_b88k`` (open_clip's registry), or is a path to a
weights file: OpenAI's JIT archive, a plain PyTorch state dict, or safetensors.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .model import CLIP, CLIPConfig
from .tokens import tokenize

__all__ = ["ClipError", "available_models", "build_model", "load", "tokenize"]

VIT_MINI = Path(__file__).parent / "weights" / "ViT-Mini.pt"
OPENAI_MODELS = (
    "RN50",
    "RN101",
    "RN50x4",
    "RN50x16",
    "RN50x64",
    "ViT-B/32",
    "ViT-B/16",
    "ViT-L/14",
    "ViT-L/14@336px",
)
OPEN_CLIP = "open_clip:"
# Scalars that weights files carry beside the parameters.
_SCALARS = ("input_resolution", "context_length", "vocab_size", "head_width")


class ClipError(ValueError):
    """A model that cannot be loaded; the message is one line that says which and why."""


def available_models() -> list[str]:
    """Names that ``load`` takes, besides paths and open_clip pairs."""
    return ["ViT-Mini", *OPENAI_MODELS]


def _openai_url(name: str) -> str:
    import open_clip

    key = name.replace("/", "-").replace("@336px", "-336")
    return open_clip.get_pretrained_url(key, "openai")


def __getattr__(attribute: str) -> Any:
    # Trainers written for OpenAI's package look their model up as clip._MODELS[name].  The
    # addresses are in open_clip's registry, whose import takes seconds: only on demand.
    if attribute == "_MODELS":
        return {"ViT-Mini": str(VIT_MINI), **{n: _openai_url(n) for n in OPENAI_MODELS}}
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def _cache_folder() -> Path:
    return Path(os.environ.get("CLIP_CACHE", Path.home() / ".cache" / "clip"))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _download(url: str, root: str | os.PathLike | None = None) -> str:
    """Fetch one of OpenAI's files and return its path; a local path is returned as it is.

    The address holds the file's SHA-256.  An interrupted download is resumed from its
    ``.part`` file; a file with another hash is refused and removed.

    Raises:
        ClipError: the address cannot be reached, or the hash differs.
    """
    if "://" not in url:
        return url
    expected, filename = url.split("/")[-2:]
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise ClipError(f"{url} names no SHA-256 to verify the file with")
    target = Path(root or _cache_folder()) / filename
    if target.exists() and _sha256(target) == expected:
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(filename + ".part")
    try:
        _fetch(url, part)
    except (urllib.error.URLError, OSError) as error:
        raise ClipError(
            f"cannot download {url}: {error}; fetch it by other means and place it at {target}"
        ) from error
    found = _sha256(part)
    if found != expected:
        part.unlink()
        raise ClipError(f"{url} has SHA-256 {found}, expected {expected}; removed")
    part.replace(target)
    return str(target)


def _fetch(url: str, part: Path) -> None:
    """Download ``url`` to ``part``, appending to what is there if the server allows it."""
    from tqdm import tqdm

    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise
    with response:
        resumed = response.status == 206
        size = int(response.headers.get("Content-Length", 0)) + (done if resumed else 0)
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(
                total=size or None,
                initial=done if resumed else 0,
                unit="B",
                unit_scale=True,
                desc=part.stem,
            ) as bar,
        ):
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
    if size and part.stat().st_size < size:
        raise OSError(f"connection closed after {part.stat().st_size} of {size} bytes")


def _is_jit(path: Path) -> bool:
    return zipfile.is_zipfile(path) and any(
        "/code/" in name for name in zipfile.ZipFile(path).namelist()
    )


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if _is_jit(path):
            with warnings.catch_warnings():  # OpenAI's files are archives, deprecated or not
                warnings.simplefilter("ignore", FutureWarning)
                return torch.jit.load(str(path), map_location="cpu").state_dict()
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own family of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClipError(f"cannot read CLIP weights from {path}: {reason}") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ClipError(f"{path} holds no state dict")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m.group(1) for key in state if (m := re.match(pattern, key))})


def _config_from(state: Mapping[str, Tensor], quick_gelu: bool) -> CLIPConfig:
    """Read the architecture off the tensors' shapes."""
    head_width = int(state["head_width"]) if "head_width" in state else 64
    width = state["visual.conv1.weight"].shape[0]
    layers: int | tuple[int, int, int, int]
    if "visual.proj" in state:
        layers = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
        patch_size = state["visual.conv1.weight"].shape[-1]
        patches = state["visual.positional_embedding"].shape[0] - 1
        resolution = patch_size * round(patches**0.5)
    else:
        stages = [_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5)]
        layers = (stages[0], stages[1], stages[2], stages[3])
        patch_size = None
        patches = state["visual.attnpool.positional_embedding"].shape[0] - 1
        resolution = 32 * round(patches**0.5)
        width = state["visual.layer1.0.conv1.weight"].shape[0]
    return CLIPConfig(
        embed_dim=state["text_projection"].shape[1],
        image_resolution=resolution,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch_size,
        context_length=state["positional_embedding"].shape[0],
        vocab_size=state["token_embedding.weight"].shape[0],
        text_width=state["ln_final.weight"].shape[0],
        text_layers=_count(state, r"transformer\.resblocks\.(\d+)\."),
        head_width=head_width,
        quick_gelu=quick_gelu,
    )


def build_model(state_dict: Mapping[str, Tensor], config: CLIPConfig | None = None) -> CLIP:
    """A model in fp32 and evaluation mode that holds ``state_dict``.

    Without ``config`` the architecture is read off the shapes: OpenAI's activation, and heads
    64 wide unless the state dict has a scalar ``head_width``.

    Raises:
        ClipError: tensors are missing, left over or of another shape.
    """
    try:
        model = CLIP(config or _config_from(state_dict, quick_gelu=True))
        parameters = {k: v.float() for k, v in state_dict.items() if k not in _SCALARS}
        model.load_state_dict(parameters)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ClipError(f"not the state dict of a CLIP model: {reason[:300]}") from error
    return model.eval()


def _load_open_clip(pair: str) -> CLIP:
    import open_clip

    name, _, tag = pair.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = ", ".join(tags) if tags else "no such model; see open_clip.list_pretrained()"
        raise ClipError(f"unknown open_clip pair '{pair}' (known for {name}: {known})")
    try:
        reference = open_clip.create_model(name, pretrained=tag)
    except Exception as error:  # the hub's client has its own family of errors
        reason = " ".join(str(error).split())
        raise ClipError(f"open_clip cannot load '{pair}': {reason[:300]}") from error
    return from_open_clip(reference)


def from_open_clip(reference: torch.nn.Module) -> CLIP:
    """Our model with the weights of an open_clip model.

    Raises:
        ClipError: its towers are not CLIP's own ViT or ResNet and text transformer.
    """
    state = {key.removeprefix("text."): tensor for key, tensor in reference.state_dict().items()}
    try:
        text: Any = getattr(reference, "text", reference)  # a tower of its own in newer models
        visual: Any = reference.visual
        block = text.transformer.resblocks[0]
        config = _config_from(state, quick_gelu=type(block.mlp.gelu).__name__ == "QuickGELU")
        if isinstance(config.vision_layers, int):
            vision_head_width = (
                config.vision_width // visual.transformer.resblocks[0].attn.num_heads
            )
        else:
            vision_head_width = config.vision_width * 32 // visual.attnpool.num_heads
        config = replace(
            config,
            head_width=config.text_width // block.attn.num_heads,
            vision_head_width=vision_head_width,
        )
    except (KeyError, AttributeError) as error:
        raise ClipError(f"unsupported open_clip architecture: {error}") from error
    return build_model(state, config)


def load(name: str, device: str | torch.device = "cpu") -> CLIP:
    """A frozen-ready CLIP in fp32 and evaluation mode, from a name, a pair or a path.

    Raises:
        ClipError: an unknown name, an unreachable address, a damaged or foreign file.
    """
    if name.startswith(OPEN_CLIP):
        return _load_open_clip(name.removeprefix(OPEN_CLIP)).to(device)
    if name == "ViT-Mini":
        path = VIT_MINI
    elif name in OPENAI_MODELS:
        path = Path(_download(_openai_url(name)))
    elif Path(name).is_file():
        path = Path(name)
    else:
        raise ClipError(
            f"unknown backbone '{name}': not a file, not '{OPEN_CLIP}<model>/<tag>', "
            f"not one of {', '.join(available_models())}"
        )
    try:
        return build_model(_read_state_dict(path)).to(device)
    except ClipError as error:
        raise ClipError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
