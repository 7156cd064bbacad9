"""Faces: fine-grained classes of the embedded benchmark, which differ in expression."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .embedded import DrawnByPeople
from .emoji import LOOK, TEMPLATES


@DATASET_REGISTRY.register()
class Faces(DrawnByPeople):
    """32 training, 8 validation and 225 test pictures of each of 40 faces."""

    folder = "faces"
    concepts = "faces"
    styles = ("fluent_flat",)  # which ViT-Mini-2 has not seen
    seed = 18
    numbers = {"train": 32, "val": 8, "test": 225}
    look = LOOK
    templates = TEMPLATES
