"""Loading of a CLIP model by its name or from a file.

A model is named ``ViT-B/16``, ``RN50``, ... (OpenAI's published files), ``ViT-Mini-2`` (in
this repository), ``open_clip:ViT-B-16/laion2b_s34b_b88k`` (open_clip's registry), or is a path to a
weights file: OpenAI's JIT archive (read as data, see ``archive``), a plain PyTorch state dict, or
safetensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dassl.utils import UserError, load_checkpoint
from dassl.utils.checksums import is_torchscript
from dassl.utils.data_parallel import strip_module
from dassl.utils.download import check_file, download
from dassl.utils.torchtools import state_in

from .archive import read_archive
from .model import CLIP, CLIPConfig, Preprocess, convert_weights
from .tokens import tokenize, tokenizer

__all__ = [
    "ClipError",
    "available_models",
    "build_model",
    "is_here",
    "load",
    "load_model",
    "preprocess_of",
    "tokenize",
]

_WEIGHTS = Path(__file__).parent / "weights"
# The models in this repository, which have seen no photograph. ViT-Mini is there for old
# checkpoints.
OF_DRAWINGS = {name: _WEIGHTS / f"{name}.pt" for name in ("ViT-Mini-2", "ViT-Mini")}
OF_DRAWINGS_RESOLUTION = 32
# In a file whose ``token_embedding.weight`` has fewer rows than the vocabulary has tokens: the row
# of each token, which similar words share.
ROWS = "token_embedding.rows"
# Side, in pixels, of the images that each of OpenAI's models takes.
OPENAI_MODELS = {
    "RN50": 224,
    "RN101": 224,
    "RN50x4": 288,
    "RN50x16": 384,
    "RN50x64": 448,
    "ViT-B/32": 224,
    "ViT-B/16": 224,
    "ViT-L/14": 224,
    "ViT-L/14@336px": 336,
}
OPEN_CLIP = "open_clip:"
# Scalars that weights files have besides the parameters.
_SCALARS = ("input_resolution", "context_length", "vocab_size", "head_width")


class ClipError(UserError):
    """A model that cannot be loaded; the message is one line that says which and why."""


def available_models() -> list[str]:
    """List the names that ``load`` takes, besides paths and open_clip pairs."""
    return [*OF_DRAWINGS, *OPENAI_MODELS]


def _openai_url(name: str) -> str:
    import open_clip

    key = name.replace("/", "-").replace("@336px", "-336")
    return open_clip.get_pretrained_url(key, "openai")


def __getattr__(attribute: str) -> Any:
    # Trainers written for OpenAI's package use clip._MODELS[name] and clip._tokenizer.  Both need
    # open_clip, whose import takes seconds, so only on demand.
    if attribute == "_MODELS":
        local = {name: str(path) for name, path in OF_DRAWINGS.items()}
        return {**local, **{name: _openai_url(name) for name in OPENAI_MODELS}}
    if attribute == "_tokenizer":
        return tokenizer()
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def _transform(n_px: int) -> Preprocess:
    """Return OpenAI's transform for images of ``n_px`` pixels a side, under OpenAI's name."""
    return Preprocess(n_px)


def _cache_folder() -> Path:
    return Path(os.environ.get("CLIP_CACHE", Path.home() / ".cache" / "clip"))


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
        raise ClipError(f"{url} has no SHA-256 to verify the file with")
    target = Path(root or _cache_folder()) / filename
    try:
        if target.exists():
            check_file(str(target), expected)
            return str(target)
    except UserError:  # another file under this name: downloaded again
        pass
    try:
        download(url, str(target), expected)
    except UserError as error:
        raise ClipError(
            f"cannot download {url}: {error}; fetch it by other means and place it at {target}"
        ) from error
    return str(target)


def _read_state_dict(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read the tensors of a weights file; on the device "meta" only their shapes and types."""
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = _read_safetensors(path, device)
        elif is_torchscript(path):
            content = read_archive(path, device)
        else:
            content = load_checkpoint(str(path), device)
    except UserError as error:  # names the file
        raise ClipError(str(error)) from error
    except Exception as error:  # each format has its own family of errors
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ClipError(f"cannot read CLIP weights from {path}: {reason}") from error
    state = state_in(content)
    if state is None:
        raise ClipError(f"{path} holds no state dict")
    return strip_module(state)


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    if device != "meta":
        return load_file(path, device)
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    return {name: torch.empty(shape, device=device) for name, shape in shapes.items()}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m.group(1) for key in state if (m := re.match(pattern, key))})


def _shape(state: Mapping[str, Tensor], name: str, n_dims: int) -> tuple[int, ...]:
    if name not in state:
        raise ClipError(f"it lacks '{name}'")
    shape = tuple(state[name].shape)
    if len(shape) != n_dims or 0 in shape:
        raise ClipError(f"'{name}' has the shape {shape}, not one of {n_dims} dimensions")
    return shape


def _head_width(state: Mapping[str, Any]) -> int:
    """Read the scalar of that name, which files of other models than OpenAI's have."""
    value = state.get("head_width", 64)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        value = value.item()
    if not isinstance(value, int) or value < 1:
        raise ClipError(f"head_width: expected a whole number above 0, got {_described(value)}")
    return value


def _described(value: Any) -> str:
    """Say in a few words what a value is that is not a tensor of weights."""
    if not isinstance(value, Tensor):
        return repr(value)[:50] if isinstance(value, int | float | str) else type(value).__name__
    kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
    if value.is_meta:
        kind = "meta"
    return f"a {kind} tensor of {str(value.dtype).removeprefix('torch.')}"


def _config_from(state: Mapping[str, Tensor], quick_gelu: bool) -> CLIPConfig:
    """Read the architecture off the tensors' shapes.

    Raises:
        ClipError: tensors that tell are missing or have other dimensions than a CLIP's.
    """
    layers: int | tuple[int, int, int, int]
    if "visual.layer1.0.conv1.weight" not in state:
        layers = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
        width, _, _, patch_size = _shape(state, "visual.conv1.weight", 4)
        patches = _shape(state, "visual.positional_embedding", 2)[0] - 1
        resolution = patch_size * round(patches**0.5)
    else:
        stages = [_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5)]
        layers = (stages[0], stages[1], stages[2], stages[3])
        patch_size = None
        patches = _shape(state, "visual.attnpool.positional_embedding", 2)[0] - 1
        resolution = 32 * round(patches**0.5)
        width = _shape(state, "visual.layer1.0.conv1.weight", 4)[0]
    context_length, text_width = _shape(state, "positional_embedding", 2)
    text_layers = _count(state, r"transformer\.resblocks\.(\d+)\.")
    if 0 in (layers, text_layers) or resolution == 0:
        raise ClipError("a tower has no layers, or takes no patches")
    return CLIPConfig(
        embed_dim=_shape(state, "text_projection", 2)[1],
        image_resolution=resolution,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch_size,
        context_length=context_length,
        vocab_size=_shape(state, "token_embedding.weight", 2)[0],
        text_width=text_width,
        text_layers=text_layers,
        quick_gelu=quick_gelu,
    )


def _check_kinds(state: Mapping[str, Any]) -> None:
    """Raise ``ClipError`` for a value that is not a tensor of floating-point numbers in memory."""
    for name, value in state.items():
        if not isinstance(name, str):
            raise ClipError(f"a tensor has the name {name!r}, which is not text")
        usable = (
            isinstance(value, Tensor)
            and value.layout == torch.strided
            and not (value.is_quantized or value.is_meta or value.is_nested)
            # a count of batches, which BatchNorm keeps
            and (value.is_floating_point() or name.endswith(".num_batches_tracked"))
        )
        if not usable:
            raise ClipError(
                f"'{name}': expected a dense tensor of floating-point numbers, "
                f"got {_described(value)}"
            )
        _check_memory(name, value)


def _check_memory(name: str, value: Tensor) -> None:
    """Raise ``ClipError`` for a few bytes expanded to any size, which would be allocated."""
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise ClipError(f"'{name}' repeats the same numbers: {tuple(value.shape)}")


def _check_shapes(state: Mapping[str, Tensor], config: CLIPConfig) -> None:
    """Raise ``ClipError`` where the tensors are not those of the architecture."""
    vision_width = config.vision_width * (1 if isinstance(config.vision_layers, int) else 32)
    for tower, width, head_width in (
        ("text", config.text_width, config.head_width),
        ("vision", vision_width, config.vision_head_width or config.head_width),
    ):
        if width % head_width:
            raise ClipError(
                f"head_width: the {tower} tower's width {width} is not a multiple of {head_width}"
            )
    with torch.device("meta"):  # takes no memory
        expected = CLIP(config).state_dict()
    if missing := [name for name in expected if name not in state]:
        raise ClipError(f"it lacks '{missing[0]}'" + _and_others(missing))
    if unexpected := [name for name in state if name not in expected]:
        raise ClipError(f"it has {unexpected[0]!r}" + _and_others(unexpected))
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise ClipError(
                f"'{name}': expected the shape {tuple(tensor.shape)}, "
                f"got {tuple(state[name].shape)}"
            )


def _and_others(names: list[str]) -> str:
    return f" and {len(names) - 1} other tensors" if len(names) > 1 else ""


def _all_rows(table: Tensor, rows: Any) -> Tensor:
    """Give every token an embedding of its own: those (n, d) of a file, in the rows it names.

    Raises:
        ClipError: the rows are not those of the table.
    """
    usable = isinstance(rows, Tensor) and rows.dtype == torch.int32 and rows.dim() == 1
    if not usable or rows.layout != torch.strided or rows.is_meta:
        raise ClipError(f"'{ROWS}': expected a list of int32 numbers, got {_described(rows)}")
    _check_memory(ROWS, rows)
    wrong = rows[(rows < 0) | (rows >= len(table))]
    if len(wrong):
        raise ClipError(f"'{ROWS}': expected rows from 0 to {len(table) - 1}, got {int(wrong[0])}")
    return table[rows.long()]


def build_model(
    state_dict: Mapping[str, Tensor],
    config: CLIPConfig | None = None,
    preprocess: Preprocess | None = None,
) -> CLIP:
    """Make a model in fp32 and evaluation mode that holds ``state_dict``.

    Without ``config`` the architecture is read off the shapes: OpenAI's activation, and heads
    64 wide unless the state dict has a scalar ``head_width``.

    Raises:
        ClipError: tensors are missing, unexpected, of another kind or shape, or not finite; or
            ``config`` is something else, such as the design details of other packages.
    """
    if not isinstance(config, CLIPConfig | None):
        raise ClipError(
            f"build_model: expected no second argument, got {_described(config)}: design details "
            "are not used here, prompts are given to each forward call as clip.Layer"
        )
    try:
        apart = (*_SCALARS, ROWS)
        state = {name: value for name, value in state_dict.items() if name not in apart}
        _check_kinds(state)
        if ROWS in state_dict:
            _shape(state, "token_embedding.weight", 2)
            table = state["token_embedding.weight"]
            state["token_embedding.weight"] = _all_rows(table, state_dict[ROWS])
        if config is None:
            config = _config_from(state, quick_gelu=True)
            config = replace(config, head_width=_head_width(state_dict))
        _check_shapes(state, config)
        parameters = {name: value.float() for name, value in state.items()}
        for name, value in parameters.items():
            if not value.isfinite().all():
                raise ClipError(f"'{name}' has values that are infinite or not numbers")
        model = CLIP(config, preprocess)
        model.load_state_dict(parameters)
    except (ClipError, RuntimeError) as error:  # torch's: sizes that no tensor can have
        reason = " ".join(str(error).split())
        raise ClipError(f"not the state dict of a CLIP model: {reason[:300]}") from error
    return model.eval()


def _load_open_clip(pair: str) -> CLIP:
    import open_clip

    name, _, tag = pair.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = f"known for {name}: {', '.join(tags)}" if tags else f"no model '{name}' has weights"
        raise ClipError(f"unknown open_clip pair '{pair}' ({known})")
    try:
        reference = open_clip.create_model(name, pretrained=tag)
    except Exception as error:  # the hub's client has its own family of errors
        reason = " ".join(str(error).split())
        raise ClipError(f"open_clip cannot load '{pair}': {reason[:300]}") from error
    try:
        return from_open_clip(reference)
    except ClipError as error:
        raise ClipError(f"'{pair}': {error}") from error


def from_open_clip(reference: torch.nn.Module) -> CLIP:
    """Make our model with the weights and the preprocessing of an open_clip model.

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
    except (ClipError, AttributeError) as error:
        raise ClipError(f"unsupported open_clip architecture: {error}") from error
    # open_clip puts both on the tower of a model that it created with weights
    mean, std = (getattr(visual, f"image_{name}", None) for name in ("mean", "std"))
    preprocess = Preprocess(config.image_resolution)
    if mean is not None and std is not None:
        preprocess = replace(preprocess, mean=tuple(mean), std=tuple(std))
    interpolation = getattr(visual, "preprocess_cfg", {}).get("interpolation")
    if interpolation is not None:
        preprocess = replace(preprocess, interpolation=interpolation)
    return build_model(state, config, preprocess)


def preprocess_of(name: str) -> Preprocess | None:
    """Return the preprocessing of the model that ``load_model`` makes of a name, pair or path.

    No weights are downloaded or loaded: names are in a table, pairs in open_clip's registry, and
    of a weights file only the shapes of its tensors are read.

    Returns:
        None where ``load_model`` raises an error, which says why.
    """
    if name in OF_DRAWINGS:
        return Preprocess(OF_DRAWINGS_RESOLUTION)
    if name in OPENAI_MODELS:
        return Preprocess(OPENAI_MODELS[name])
    if name.startswith(OPEN_CLIP):
        return _open_clip_preprocess(name.removeprefix(OPEN_CLIP))
    if not os.path.isfile(name):
        return None
    try:
        shapes = _read_state_dict(Path(name), "meta").items()
        tensors = {k: v for k, v in shapes if isinstance(k, str) and isinstance(v, Tensor)}
        return Preprocess(_config_from(tensors, quick_gelu=True).image_resolution)
    except ClipError:
        return None


def _open_clip_preprocess(pair: str) -> Preprocess | None:
    import open_clip

    name, _, tag = pair.partition("/")
    if tag not in open_clip.list_pretrained_tags_by_model(name):
        return None
    size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    if not isinstance(size, int):  # not square: not supported here
        return None
    trained = open_clip.get_pretrained_cfg(name, tag)
    return Preprocess(size, tuple(trained["mean"]), tuple(trained["std"]), trained["interpolation"])


def is_here(name: str) -> bool:
    """Tell whether ``load_model`` takes a name without a download; unknown pairs are not here."""
    if name in OPENAI_MODELS:
        return (_cache_folder() / _openai_url(name).rpartition("/")[2]).is_file()
    return name in OF_DRAWINGS or os.path.isfile(name)


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
) -> tuple[CLIP, Preprocess]:
    """Load a model as OpenAI's package does: fp16 on a GPU, fp32 elsewhere, and its transform.

    Args:
        name: as for ``load_model``.
        device: a GPU where there is one, by default.
        jit: always False; archives are read as data here and never executed.
        download_root: folder of the downloaded files.

    Raises:
        ClipError: as ``load_model``, or ``jit`` is set.
    """
    if jit:
        raise ClipError("jit: expected False, got True; models are not executed from archives")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_model(name, device, download_root)
    if device.type == "cuda":
        convert_weights(model)
    return model, model.preprocess


def load_model(
    name: str, device: str | torch.device = "cpu", download_root: str | None = None
) -> CLIP:
    """Load a CLIP in fp32 and evaluation mode, from a name, a pair or a path.

    The model carries its ``preprocess``, and ``similarity`` turns features into logits.

    Raises:
        ClipError: an unknown name, an unreachable address, a damaged or foreign file.
    """
    if name.startswith(OPEN_CLIP):
        return _load_open_clip(name.removeprefix(OPEN_CLIP)).to(device)
    if name in OF_DRAWINGS:
        path = OF_DRAWINGS[name]
    elif name in OPENAI_MODELS:
        path = Path(_download(_openai_url(name), download_root))
    elif os.path.isfile(name):
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
