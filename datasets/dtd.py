"""DescribableTextures: 47 textures."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .common import PublicDataset, Splits
from .common import read_and_split_data as split_folders


@DATASET_REGISTRY.register()
class DescribableTextures(PublicDataset):
    """``images/<texture>/*.jpg``."""

    dataset_dir = "dtd"
    split_file = "split_zhou_DescribableTextures.json"
    templates = ["{} texture."]

    # Dataset files written for CoOp's public code look for this here.
    read_and_split_data = staticmethod(split_folders)

    def make_split(self) -> Splits:
        return self.read_and_split_data(self.image_dir)
