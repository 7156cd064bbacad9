"""What the image tower attends to, as a map over the picture."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clip.layer import Layers
from clip.vision import VisionTransformer
from trainers.base import Method


def rollout(weights: Tensor, n_patches: int) -> Tensor:
    """Return each patch's share in the class token, by attention rollout: (B, patches).

    Abnar & Zuidema (2020): R = M_L ... M_1, where M_l = I/2 + A_l/2 and A_l is the mean of layer l
    over its heads. The result is R's row of the class token over the patches, with the sum 1.

    Args:
        weights: (B, layers, heads, T, T) of the class token, the patches and then any prompts, as
            the tower's ``read`` gives them.
        n_patches: their number; prompts are left out of the result.
    """
    means = weights.float().mean(dim=2)
    row = torch.zeros_like(means[:, 0, :1])  # (B, 1, T), times the last layer first
    row[..., 0] = 1
    for mean in means.flip(1).unbind(1):
        row = row / 2 + row @ mean / 2
    patches = row[:, 0, 1 : 1 + n_patches]
    return patches / patches.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


@torch.no_grad()
def attention_maps(method: Method, pictures: Tensor) -> Tensor | None:
    """Return the rollout over the patches of pictures; None for a ResNet, which has none.

    Where a method encodes a picture more than once, it is that of the last time, which is the
    prompted one.

    Args:
        method: in evaluation mode.
        pictures: preprocessed (B, 3, R, R).

    Returns:
        Maps (B, side, side) on the CPU, each with the sum 1.
    """
    tower = method.clip.visual
    if not isinstance(tower, VisionTransformer):
        return None
    found: list[Tensor] = []

    def encode_and_keep(images: Tensor, layers: Layers = ()) -> Tensor:
        read = method.clip.read_image(
            images, layers, ("class", "attention"), method.prompts_through_ln_pre
        )
        found.append(read["attention"])
        return F.normalize(read["class"].float(), dim=-1)

    observed: Any = copy.copy(method)  # other threads use the method itself
    observed.encode_image = encode_and_keep
    with method.autocast():
        observed.features(pictures.to(method.device))
    n_patches = len(tower.positional_embedding) - 1
    side = round(n_patches**0.5)
    return rollout(found[-1], n_patches).unflatten(1, (side, side)).cpu()


def overlay(picture: Image.Image, attention: Tensor) -> Image.Image:
    """Color a picture from dark (least attended to) to bright (most).

    Args:
        picture: RGB, the square that the map is of.
        attention: (side, side).
    """
    from matplotlib import colormaps

    low, high = attention.aminmax()
    heat = (attention - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    size = (picture.height, picture.width)
    smooth = F.interpolate(heat[None, None], size, mode="bicubic")[0, 0].clamp(0, 1).numpy()
    grey = np.asarray(picture.convert("L"))[..., None] / 255
    mixed = 0.4 * grey + 0.6 * colormaps["inferno"](smooth)[..., :3]
    return Image.fromarray(np.round(255 * mixed).astype(np.uint8))
