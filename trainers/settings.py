"""What several methods share about their settings, and checks against the model."""

from __future__ import annotations

from typing import Any

from clip import CLIP
from dassl.errors import shown
from dassl.utils import UserError

MOST_PROMPTS = 1000  # of one layer; more than any tower takes tokens is a typo


def check_unread(node: str, settings: Any, cause: str, **usual: Any) -> None:
    """Refuse keys of which another value than the usual one would do nothing.

    Args:
        node: of the settings.
        settings: the method's.
        cause: the key and value that leaves them unread.
        usual: the values to leave them at.

    Raises:
        UserError: a key has another value.
    """
    for name, value in usual.items():
        if settings[name] != value:
            got = shown(settings[name])
            raise UserError(f"{node}.{name}: expected {value!r} with {cause}, got {got}")


def check_vit(clip_model: CLIP) -> int:
    """Return the number of vision layers; raise UserError for a ResNet, which has no tokens."""
    layers = clip_model.config.vision_layers
    if not isinstance(layers, int):
        raise UserError("MODEL.BACKBONE.NAME: expected a ViT for vision prompts, got a ResNet")
    return layers


def deepest_layer(clip_model: CLIP) -> int:
    """Return the number of layers that both towers have; raise UserError for a ResNet."""
    return min(check_vit(clip_model), clip_model.config.text_layers)
