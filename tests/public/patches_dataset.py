"""A dataset as researchers write it for the public toolbox."""

import os
import random

import numpy as np
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import listdir_nohidden, mkdir_if_missing, read_json, write_json


@DATASET_REGISTRY.register()
class PublicPatches(DatasetBase):
    dataset_dir = "public_patches"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        self.split_path = os.path.join(self.dataset_dir, "split.json")
        mkdir_if_missing(self.dataset_dir)
        if not os.path.exists(self.image_dir):
            self.paint()
        if not os.path.exists(self.split_path):
            self.make_split()
        split = read_json(self.split_path)
        train, val, test = (self.convert(split[part]) for part in ("train", "val", "test"))
        num_shots = cfg.DATASET.NUM_SHOTS
        if num_shots >= 1:
            train = self.generate_fewshot_dataset(train, num_shots=num_shots)
            val = self.generate_fewshot_dataset(val, num_shots=min(num_shots, 4))
        super().__init__(train_x=train, val=val, test=test)

    def paint(self):
        rng = np.random.RandomState(0)
        colors = {"red": (200, 70, 40), "orange": (190, 95, 45), "yellow": (195, 120, 50)}
        for name, color in colors.items():
            mkdir_if_missing(os.path.join(self.image_dir, name))
            for i in range(20):
                pixels = np.clip(np.array(color) + rng.randint(-60, 60, (32, 32, 3)), 0, 255)
                path = os.path.join(self.image_dir, name, f"{i:02d}.jpg")
                Image.fromarray(pixels.astype(np.uint8)).save(path)

    def make_split(self):
        split = {"train": [], "val": [], "test": []}
        for label, name in enumerate(sorted(listdir_nohidden(self.image_dir))):
            images = sorted(listdir_nohidden(os.path.join(self.image_dir, name)))
            random.shuffle(images)
            for i, image in enumerate(images):
                part = "train" if i < 8 else "val" if i < 10 else "test"
                split[part].append((os.path.join(name, image), label, name))
        write_json(split, self.split_path)

    def convert(self, items):
        return [
            Datum(impath=os.path.join(self.image_dir, path), label=int(label), classname=name)
            for path, label, name in items
        ]
