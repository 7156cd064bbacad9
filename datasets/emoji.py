"""Emoji, the embedded benchmark's counterpart of ImageNet, and four shifted versions of it.

The classes are things that people drew: plants, places, vehicles, tools.
"""

from __future__ import annotations

from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY

from .embedded import DrawnByPeople
from .embedded.drawing import Look

# Smaller, among more clutter and in stronger light than ViT-Mini-2 has seen things.
LOOK = Look(size=(15.0, 25.0), clutter=5, occlusion=0.3, cast=(0.2, 0.7))
TEMPLATES = [
    "a photo of a {}.",
    "a picture of the {}.",
    "a blurry photo of a {}.",
    "this is a {}.",
]


# For styles of drawing that are hard enough by themselves.
GENTLE_LOOK = Look(size=(20.0, 30.0), clutter=2, cast=(0.1, 0.4))


@DATASET_REGISTRY.register()
class Emoji(DrawnByPeople):
    """Things among clutter, in colored light, drawn in two styles, the second of which ViT-Mini-2
    has not seen: 32 training, 8 validation and 113 test pictures of each of 80 classes."""

    folder = "emoji"
    concepts = "emoji"
    styles: tuple[str, ...] = ("noto", "fluent_flat")
    seed = 11
    numbers = {"train": 32, "val": 8, "test": 113}
    look = LOOK
    templates = TEMPLATES


class _Shifted(Emoji):
    """Test pictures only."""

    numbers = {"test": 56}


@DATASET_REGISTRY.register()
class EmojiV2(_Shifted):
    """New pictures taken like those of Emoji, a little harder. The counterpart of ImageNetV2."""

    folder = "emoji_v2"
    seed = 12
    look = replace(LOOK, size=(14.0, 22.0), rotation=30.0, noise=(0.0, 0.07))


@DATASET_REGISTRY.register()
class EmojiSketch(_Shifted):
    """Drawings in one color. The counterpart of ImageNet-Sketch."""

    folder = "emoji_sketch"
    styles = ("fluent_contrast",)
    seed = 13
    look = GENTLE_LOOK


@DATASET_REGISTRY.register()
class EmojiNoise(_Shifted):
    """Small, half-hidden things, in noise. The counterpart of ImageNet-A."""

    folder = "emoji_noise"
    seed = 14
    look = replace(LOOK, size=(13.0, 22.0), occlusion=0.7, noise=(0.04, 0.1), clutter=8)


@DATASET_REGISTRY.register()
class EmojiRendition(_Shifted):
    """The same things drawn by others, with thick outlines. The counterpart of ImageNet-R."""

    folder = "emoji_rendition"
    styles = ("openmoji",)
    seed = 15
    look = GENTLE_LOOK
