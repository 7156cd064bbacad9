"""Caltech101: 100 kinds of objects."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .common import PublicDataset, Splits, read_and_split_data

IGNORED = ("BACKGROUND_Google", "Faces_easy")
CLASS_NAMES = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}


@DATASET_REGISTRY.register()
class Caltech101(PublicDataset):
    """``101_ObjectCategories/<class>/*.jpg``, without background and second set of faces."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    templates = ["a photo of a {}."]

    def make_split(self) -> Splits:
        return read_and_split_data(self.image_dir, ignored=IGNORED, new_cnames=CLASS_NAMES)
