"""CLIP's two towers computed plainly: all positions, one sequence at a time, nothing shared.

Written from the definition, on a state dict with OpenAI's names: the reference for the fast paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import CLIP, Layer


def norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, state[f"{name}.bias"])


def adapters_of(entry: Any) -> Layer:
    """Return the adapters of an entry of a tower's layers; none for prompts alone."""
    return entry if isinstance(entry, Layer) else Layer()


def prompts_of(entry: Any, before: Tensor | None) -> Tensor | None:
    """Return the prompts (m, width) of an entry; a function is applied to those ``before`` it."""
    prompts: Any = entry.prompts if isinstance(entry, Layer) else entry
    return prompts if prompts is None or isinstance(prompts, Tensor) else prompts(before)


def block(
    state: Mapping[str, Tensor],
    name: str,
    x: Tensor,
    heads: int,
    causal: bool,
    layer: Layer | None = None,
) -> Tensor:
    """Compute a pre-norm layer over a single sequence (T, width), with a method's adapters."""
    layer = layer or Layer()
    length, width = x.shape
    normed = h = norm(state, f"{name}.ln_1", x)
    qkv = h @ state[f"{name}.attn.in_proj_weight"].t() + state[f"{name}.attn.in_proj_bias"]
    if layer.qkv is not None:
        qkv = qkv + layer.qkv(h)
    out = []
    for q, k, v in zip(*(part.chunk(heads, dim=1) for part in qkv.chunk(3, dim=1)), strict=True):
        scores = q @ k.t() / (width / heads) ** 0.5
        if causal:
            scores = scores + torch.full((length, length), float("-inf")).triu(1)
        out.append(scores.softmax(dim=1) @ v)
    h = torch.cat(out, dim=1)
    x = x + h @ state[f"{name}.attn.out_proj.weight"].t() + state[f"{name}.attn.out_proj.bias"]
    if layer.out is not None:
        x = x + layer.out(h)
    g = h = norm(state, f"{name}.ln_2", x)
    h = h @ state[f"{name}.mlp.c_fc.weight"].t() + state[f"{name}.mlp.c_fc.bias"]
    h = h * torch.sigmoid(1.702 * h)
    x = x + h @ state[f"{name}.mlp.c_proj.weight"].t() + state[f"{name}.mlp.c_proj.bias"]
    if layer.mlp is not None:
        x = x + layer.mlp(g)
    if layer.block is not None:
        x = x + layer.block(normed)
    return x


def text_feature(model: CLIP, ids: Tensor, slots: list[int], layers: Sequence[Any]) -> Tensor:
    """Encode ``context_length`` token ids, prompts (m, width) per layer at ``slots``: (d,).

    Without slots, prompts that begin after the first layer are inserted after the start token.
    """
    state = dict(model.named_parameters())
    config = model.config
    x = state["token_embedding.weight"][ids]
    end = int(ids.argmax())
    for i in range(config.text_layers):
        entry = layers[i] if i < len(layers) else None
        prompt = prompts_of(entry, x[slots] if slots else None)
        if prompt is not None and not slots and i > 0:
            x = torch.cat([x[:1], prompt, x[1:]])
            slots, end = list(range(1, 1 + len(prompt))), end + len(prompt)
        elif prompt is not None:
            rows = list(x)
            for slot, token in zip(slots, prompt, strict=True):
                rows[slot] = token
            x = torch.stack(rows)
        if i == 0:
            x = x + state["positional_embedding"]
        heads = config.text_width // config.head_width
        layer = adapters_of(entry)
        x = block(state, f"transformer.resblocks.{i}", x, heads, True, layer)
    return norm(state, "ln_final", x[end]) @ state["text_projection"]


def image_feature(model: CLIP, image: Tensor, layers: Sequence[Any]) -> Tensor:
    """Encode one image (3, R, R), with prompts (m, width) per layer: (d,)."""
    return image_parts(model, image, layers)["class"]


def image_parts(
    model: CLIP, image: Tensor, layers: Sequence[Any], through_ln_pre: bool = True
) -> dict[str, Tensor]:
    """Compute everything that can be read of one image (3, R, R)."""
    state = {k.removeprefix("visual."): v for k, v in model.named_parameters() if "visual" in k}
    config = model.config
    patch, width = config.vision_patch_size, config.vision_width
    assert patch is not None and isinstance(config.vision_layers, int)
    kernel = state["conv1.weight"].reshape(width, -1)
    grid = config.image_resolution // patch
    tokens: list[Tensor] = [state["class_embedding"]]
    for row in range(grid):
        for column in range(grid):
            piece = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(kernel @ piece.reshape(-1))
    x = torch.stack(tokens) + state["positional_embedding"]
    n_own = len(x)
    for i in range(config.vision_layers):
        entry = layers[i] if i < len(layers) else None
        if i == 0 and not through_ln_pre:
            x = norm(state, "ln_pre", x)
        prompt = prompts_of(entry, x[n_own:])
        if prompt is not None:
            x = torch.cat([x[:n_own], prompt])
        if i == 0 and through_ln_pre:
            x = norm(state, "ln_pre", x)
        heads = width // (config.vision_head_width or config.head_width)
        layer = adapters_of(entry)
        x = block(state, f"transformer.resblocks.{i}", x, heads, False, layer)
    x = norm(state, "ln_post", x)
    return {"class": x[0] @ state["proj"], "prompts": x[n_own:].mean(0), "patches": x[1:n_own]}


def unit(x: Tensor) -> Tensor:
    """Scale each vector of the last axis to length 1."""
    return x / x.norm(dim=-1, keepdim=True)


def plain_logits(
    model: CLIP,
    images: Tensor,
    texts: Sequence[Tensor],
    vision: Sequence[Tensor | None] = (),
) -> Tensor:
    """Score images (B, 3, R, R) with vision prompts per layer against K text features: (B, K).

    The text features need not have unit length.
    """
    v = torch.stack([unit(image_feature(model, image, list(vision))) for image in images])
    return model.logit_scale.exp() * v @ unit(torch.stack(list(texts))).t()


def assert_same_gradients(
    tensors: Mapping[str, Tensor], fast: Tensor, slow: Tensor, rtol: float = 1e-3, atol: float = 0.0
) -> None:
    """Compare two losses' gradients; without ``atol`` no tensor's may be zero throughout."""
    found = torch.autograd.grad(fast, list(tensors.values()))
    expected = torch.autograd.grad(slow, list(tensors.values()))
    for name, a, b in zip(tensors, found, expected, strict=True):
        assert atol or b.abs().max() > 0, name
        assert (a - b).abs().max() <= rtol * b.abs().max() + atol, name
