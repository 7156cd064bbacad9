"""OxfordPets: 37 breeds of cats and dogs."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY, subsample_classes
from dassl.data.datasets.base_dataset import Split

from .common import PublicDataset, Splits, image, label_from_1, read_fields, read_split, save_split
from .common import split_trainval as split_off_val


@DATASET_REGISTRY.register()
class OxfordPets(PublicDataset):
    """``images/<Breed>_<number>.jpg``, listed in ``annotations/trainval.txt`` and ``test.txt``.

    The class name is the breed as spelled in the file name, in lower case.
    """

    dataset_dir = "oxford_pets"
    split_file = "split_zhou_OxfordPets.json"
    templates = ["a photo of a {}, a type of pet."]

    # Dataset files written for CoOp's public code look for these here.
    read_split = staticmethod(read_split)
    save_split = staticmethod(save_split)
    split_trainval = staticmethod(split_off_val)
    subsample_classes = staticmethod(subsample_classes)

    def make_split(self) -> Splits:
        train, val = self.split_trainval(self._read("trainval.txt"))
        return train, val, self._read("test.txt")

    def _read(self, name: str) -> Split:
        path = os.path.join(self.dataset_dir, "annotations", name)
        items = []
        for stem, label, _ in read_fields(path, 3):  # then species and breed within it
            breed = stem.rpartition("_")[0].lower()
            file = os.path.join(self.image_dir, stem + ".jpg")
            items.append(image(file, label_from_1(label, path), breed, path))
        return items
