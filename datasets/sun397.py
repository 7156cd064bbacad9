"""SUN397: 397 scenes."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.datasets.base_dataset import Split

from .common import PublicDataset, Splits, image, label_of, read_fields, split_trainval


@DATASET_REGISTRY.register()
class SUN397(PublicDataset):
    """``SUN397/<letter>/<scene>/.../*.jpg``, listed in ``Training_01.txt`` and ``Testing_01.txt``.

    Labels follow the lines of ``ClassName.txt``. A class name is the path without the letter, the
    last folder first: "/c/church/indoor" is "indoor church".
    """

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    templates = ["a photo of a {}."]

    def make_split(self) -> Splits:
        scenes = os.path.join(self.dataset_dir, "ClassName.txt")
        labels = {scene[1:]: label for label, (scene,) in enumerate(read_fields(scenes, 1))}
        trainval = self._read("Training_01.txt", labels)
        test = self._read("Testing_01.txt", labels)
        train, val = split_trainval(trainval)
        return train, val, test

    def _read(self, name: str, labels: dict[str, int]) -> Split:
        path = os.path.join(self.dataset_dir, name)
        items = []
        for (line,) in read_fields(path, 1):
            scene, _, _ = line[1:].rpartition("/")
            classname = " ".join(reversed(scene.split("/")[1:]))
            file = os.path.join(self.image_dir, line[1:])
            items.append(image(file, label_of(scene, labels, path), classname, path))
        return items
