"""Animals: fine-grained classes of the embedded benchmark."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .embedded import DrawnByPeople
from .emoji import LOOK, TEMPLATES


@DATASET_REGISTRY.register()
class Animals(DrawnByPeople):
    """32 training, 8 validation and 188 test pictures of each of 48 animals."""

    folder = "animals"
    concepts = "animals"
    styles = ("fluent_flat",)  # which ViT-Mini-2 has not seen
    seed = 16
    numbers = {"train": 32, "val": 8, "test": 188}
    look = LOOK
    templates = TEMPLATES
