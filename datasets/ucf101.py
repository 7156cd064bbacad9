"""UCF101: 101 actions, the middle frame of each video."""

from __future__ import annotations

import os
import re

from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.datasets.base_dataset import Split
from dassl.errors import UserError

from .common import (
    PublicDataset,
    Splits,
    image,
    label_from_1,
    label_of,
    read_fields,
    split_trainval,
)


@DATASET_REGISTRY.register()
class UCF101(PublicDataset):
    """``UCF-101-midframes/<Some_Action>/*.jpg``, split by the publishers' lists of videos.

    The class "SomeAction" in the lists of ``ucfTrainTestlist`` is named "Some_Action".
    """

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    templates = ["a photo of a person doing {}."]

    def make_split(self) -> Splits:
        classes = self._path("classInd.txt")
        labels = {name: label_from_1(number, classes) for number, name in read_fields(classes, 2)}
        trainval = self._read("trainlist01.txt", labels)
        test = self._read("testlist01.txt", labels)
        train, val = split_trainval(trainval)
        return train, val, test

    def _path(self, name: str) -> str:
        return os.path.join(self.dataset_dir, "ucfTrainTestlist", name)

    def _read(self, name: str, labels: dict[str, int]) -> Split:
        path = self._path(name)
        items = []
        for (line,) in read_fields(path, 1):
            video = line.split()[0]  # trainlist01.txt appends the label
            action, slash, file = video.partition("/")
            if not slash:
                raise UserError(f"'{path}': '{line}' is not <action>/<video>")
            classname = "_".join(re.findall("[A-Z][^A-Z]*", action))
            frame = os.path.join(self.image_dir, classname, file.replace(".avi", ".jpg"))
            items.append(image(frame, label_of(action, labels, path), classname, path))
        return items
