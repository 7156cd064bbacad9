"""OxfordFlowers: 102 kinds of flowers."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.errors import UserError
from dassl.utils import log, read_json

from .common import PublicDataset, Splits, image, read_mat, split_class


@DATASET_REGISTRY.register()
class OxfordFlowers(PublicDataset):
    """``jpg/image_<number>.jpg``; labels from 1 in ``imagelabels.mat``, names in
    ``cat_to_name.json``.
    """

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    templates = ["a photo of a {}, a type of flower."]

    def make_split(self) -> Splits:
        label_file = os.path.join(self.dataset_dir, "imagelabels.mat")
        name_file = os.path.join(self.dataset_dir, "cat_to_name.json")
        names = read_json(name_file)
        classes: dict[int, list[Datum]] = {}
        for number, label in enumerate(read_mat(label_file, "labels"), start=1):
            if str(label) not in names:
                raise UserError(f"'{name_file}' has no name for class {label}")
            path = os.path.join(self.image_dir, f"image_{number:05d}.jpg")
            item = image(path, int(label) - 1, names[str(label)], label_file)
            classes.setdefault(int(label), []).append(item)
        log.info("Splitting into 50% train, 20% val, and 30% test")
        splits: Splits = ([], [], [])
        for items in classes.values():
            for part, more in zip(splits, split_class(items), strict=True):
                part.extend(more)
        return splits
