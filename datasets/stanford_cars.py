"""StanfordCars: 196 models of cars."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.datasets.base_dataset import Split
from dassl.errors import UserError

from .common import PublicDataset, Splits, image, read_mat, split_trainval


@DATASET_REGISTRY.register()
class StanfordCars(PublicDataset):
    """``cars_train`` and ``cars_test``, with MATLAB files of labels and names.

    The year moves to the front of the class name: "Audi TTS Coupe 2012" is "2012 Audi TTS Coupe".
    """

    dataset_dir = "stanford_cars"
    image_dir = ""
    split_file = "split_zhou_StanfordCars.json"
    templates = ["a photo of a {}."]

    def make_split(self) -> Splits:
        trainval = self._read("cars_train", os.path.join("devkit", "cars_train_annos.mat"))
        test = self._read("cars_test", "cars_test_annos_withlabels.mat")
        train, val = split_trainval(trainval)
        return train, val, test

    def _read(self, folder: str, annotations: str) -> Split:
        path = os.path.join(self.dataset_dir, annotations)
        meta = os.path.join(self.dataset_dir, "devkit", "cars_meta.mat")
        names = [str(name[0]) for name in read_mat(meta, "class_names")]
        items = []
        for row in read_mat(path, "annotations"):
            label = int(row["class"][0, 0]) - 1
            if not 0 <= label < len(names):
                raise UserError(f"'{path}' names class {label + 1}, but '{meta}' has {len(names)}")
            model, _, year = names[label].rpartition(" ")
            file = os.path.join(self.dataset_dir, folder, str(row["fname"][0]))
            items.append(image(file, label, f"{year} {model}", path))
        return items
