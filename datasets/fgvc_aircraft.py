"""FGVCAircraft: 100 variants of aircraft."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.datasets.base_dataset import Split

from .common import PublicDataset, Splits, image, label_of, read_fields


@DATASET_REGISTRY.register()
class FGVCAircraft(PublicDataset):
    """``images/<number>.jpg``, listed in ``images_variant_{train,val,test}.txt``.

    The publishers' lists are the split. Labels follow the lines of ``variants.txt``.
    """

    dataset_dir = "fgvc_aircraft"
    templates = ["a photo of a {}, a type of aircraft."]

    def make_split(self) -> Splits:
        variants = os.path.join(self.dataset_dir, "variants.txt")
        labels = {name: label for label, (name,) in enumerate(read_fields(variants, 1))}
        return self._read("train", labels), self._read("val", labels), self._read("test", labels)

    def _read(self, part: str, labels: dict[str, int]) -> Split:
        path = os.path.join(self.dataset_dir, f"images_variant_{part}.txt")
        items = []
        for number, name in read_fields(path, 2, " "):
            file = os.path.join(self.image_dir, number + ".jpg")
            items.append(image(file, label_of(name, labels, path), name, path))
        return items
