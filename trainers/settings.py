"""Config nodes of the methods and checks of their values."""

from __future__ import annotations

from typing import Any

from clip import CLIP
from dassl.config import register_defaults
from dassl.utils import UserError


def register_node(node: str, **defaults: Any) -> None:
    """Register a method's config node ``TRAINER.<node>``: its keys, and ``PREC`` beside them."""
    register_defaults(f"TRAINER.{node}", {"PREC": "fp16", **defaults})


def check_range(key: str, value: float, low: float, high: float | None = None) -> None:
    """Raise UserError unless ``low <= value <= high``."""
    if value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"{low}..{high}"
        raise UserError(f"{key} is {value}, allowed: {allowed}")


def check_vit(clip_model: CLIP) -> int:
    """Return the number of vision layers; raise UserError for a ResNet, which has no tokens."""
    layers = clip_model.config.vision_layers
    if not isinstance(layers, int):
        raise UserError("MODEL.BACKBONE.NAME is a ResNet, vision prompts need a ViT")
    return layers


def deepest_layer(clip_model: CLIP) -> int:
    """Return the number of layers that both towers have; raise UserError for a ResNet."""
    return min(check_vit(clip_model), clip_model.config.text_layers)
