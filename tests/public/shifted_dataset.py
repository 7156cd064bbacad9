"""A test set as researchers write it for the public toolbox: its images also serve for training."""

import os

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import listdir_nohidden
from datasets.oxford_pets import OxfordPets


@DATASET_REGISTRY.register()
class PublicPatchesShifted(DatasetBase):
    dataset_dir = "public_patches"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        data = self.read_data()
        subsample = cfg.DATASET.SUBSAMPLE_CLASSES
        (data,) = OxfordPets.subsample_classes(data, subsample=subsample)
        super().__init__(train_x=data, test=data)

    def read_data(self):
        items = []
        for label, name in enumerate(listdir_nohidden(self.image_dir, sort=True)):
            for image in listdir_nohidden(os.path.join(self.image_dir, name), sort=True):
                path = os.path.join(self.image_dir, name, image)
                items.append(Datum(impath=path, label=label, classname=name))
        return items
