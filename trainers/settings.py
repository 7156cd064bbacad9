"""What several methods share about their settings, and checks against the model."""

from __future__ import annotations

from clip import CLIP
from dassl.utils import UserError

MOST_PROMPTS = 1000  # of one layer; more than any tower takes tokens is a typo


def check_vit(clip_model: CLIP) -> int:
    """Return the number of vision layers; raise UserError for a ResNet, which has no tokens."""
    layers = clip_model.config.vision_layers
    if not isinstance(layers, int):
        raise UserError("MODEL.BACKBONE.NAME: expected a ViT for vision prompts, got a ResNet")
    return layers


def deepest_layer(clip_model: CLIP) -> int:
    """Return the number of layers that both towers have; raise UserError for a ResNet."""
    return min(check_vit(clip_model), clip_model.config.text_layers)
