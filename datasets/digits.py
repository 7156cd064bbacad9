"""Digits: the real handwriting that ships with scikit-learn, classes "zero" to "nine"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY

from .common import SPLITS
from .embedded import EmbeddedDataset, Example
from .embedded.drawing import SIZE, random_state
from .embedded.wording import NUMBERS


@DATASET_REGISTRY.register()
class Digits(EmbeddedDataset):
    """The 1,797 digits of ``sklearn.datasets.load_digits``, smoothly enlarged from 8 x 8 pixels.

    Half of each class is for training, a fifth for validation, the rest for testing. The label is
    the digit, so 0 to 4 are the base classes and 5 to 9 the novel ones.
    """

    folder = "digits"
    numbers = {"train": 92, "val": 37, "test": 55}  # of the largest class
    templates = [
        "a photo of the number {}.",
        "a written {}.",
        "a photo of a {}.",
        "a handwritten {}.",
    ]

    @classmethod
    def class_names(cls) -> Sequence[str]:
        return NUMBERS

    @classmethod
    def examples(cls) -> Iterable[Example]:
        from sklearn.datasets import load_digits  # imported here because it takes seconds

        digits = load_digits()
        for label, classname in enumerate(NUMBERS):
            images = digits.images[digits.target == label]
            order = random_state(7, label).permutation(len(images))
            ends = (round(0.5 * len(images)), round(0.7 * len(images)))
            parts = dict(zip(SPLITS, np.split(order, ends), strict=True))
            for split, number in cls.numbers.items():
                for index in parts[split][:number]:
                    small = Image.fromarray(np.round(images[index] * (255 / 16)).astype(np.uint8))
                    large = small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")
                    yield Example(split, label, classname, np.asarray(large))
