"""ImageNetV2: newly collected photos of the ImageNet classes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.datasets.base_dataset import Split
from dassl.errors import UserError

from .common import class_folders, list_images
from .imagenet import ImageNetVersion


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVersion):
    """``imagenetv2-matched-frequency-format-val/<label>/*``: the folders are labels, 0 to 999."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"

    def read_images(self, names: Mapping[str, str]) -> Split:
        by_label = list(names.values())
        items: Split = []
        folders = class_folders(self.image_dir)
        for folder in folders:
            if not folder.isdecimal() or int(folder) >= len(by_label):
                raise UserError(
                    f"class folder '{os.path.join(self.image_dir, folder)}' is not a label of the "
                    f"{len(by_label)} classes"
                )
        for folder in sorted(folders, key=int):
            label = int(folder)
            items += list_images(os.path.join(self.image_dir, folder), label, by_label[label])
        return items
