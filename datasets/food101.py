"""Food101: 101 dishes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .common import PublicDataset, Splits, read_and_split_data


@DATASET_REGISTRY.register()
class Food101(PublicDataset):
    """``images/<dish>/*.jpg``; the publishers' own lists, in ``meta``, are not used."""

    dataset_dir = "food-101"
    split_file = "split_zhou_Food101.json"
    templates = ["a photo of {}, a type of food."]

    def make_split(self) -> Splits:
        return read_and_split_data(self.image_dir)
