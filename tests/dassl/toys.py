"""A small dataset and trainers, written as such files are for the public toolbox."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import listdir_nohidden, mkdir_if_missing, read_json, write_json

CLASSES = ("ant", "bee", "cat", "dog", "eel")
COUNTS = {"train": 8, "val": 5, "test": 6}


def draw(root: Path) -> Path:
    """Draw root/toys/<split>/<class>/<number>.png, 12 x 10 pixels, and return root."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for split, count in COUNTS.items():
            folder = root / "toys" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(110, 40, (10, 12, 3))
                pixels[..., label % 3] += 30 + 10 * label
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{number}.png")
    return root


def cli(root: Path, output: Path, *options: str) -> list[str]:
    """Return a command line for the toys: 3 epochs, batches of 12 images, on the CPU.

    ``options`` are dashed options followed by KEY VALUE pairs.
    """
    pairs = {
        "DATASET.NAME": "Toys",
        "INPUT.SIZE": "(8, 8)",
        "INPUT.TRANSFORMS": "('random_resized_crop', 'random_flip', 'cutout', 'gaussian_noise')",
        "INPUT.CUTOUT_LEN": "3",
        "DATALOADER.NUM_WORKERS": "0",
        "DATALOADER.TRAIN_X.BATCH_SIZE": "12",
        "OPTIM.NAME": "sgd",
        "OPTIM.LR": "0.02",
        "OPTIM.MAX_EPOCH": "3",
        "OPTIM.LR_SCHEDULER": "cosine",
        "OPTIM.WARMUP_EPOCH": "1",
        "OPTIM.WARMUP_TYPE": "constant",
        "TRAIN.PRINT_FREQ": "1",
        "USE_CUDA": "False",
        "VERBOSE": "False",
    }
    first = next((i for i, option in enumerate(options) if option.isupper()), len(options))
    arguments = ["--root", str(root), "--output-dir", str(output), "--seed", "1"]
    arguments += ["--trainer", "ToyTrainer", *options[:first]]
    for key, value in pairs.items():
        arguments += [key, value]
    return [*arguments, *options[first:]]


@DATASET_REGISTRY.register()
class Toys(DatasetBase):
    dataset_dir = "toys"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.split_path = os.path.join(self.dataset_dir, "split_toys.json")
        mkdir_if_missing(os.path.join(self.dataset_dir, "split_fewshot"))

        if not os.path.exists(self.split_path):
            write_json({split: self.read_folder(split) for split in COUNTS}, self.split_path)
        splits = read_json(self.split_path)
        train, val, test = (
            [Datum(impath=path, label=int(label), classname=name) for path, label, name in items]
            for items in (splits["train"], splits["val"], splits["test"])
        )

        num_shots = cfg.DATASET.NUM_SHOTS
        if num_shots >= 1:
            train = self.generate_fewshot_dataset(train, num_shots=num_shots)
            val = self.generate_fewshot_dataset(val, num_shots=min(num_shots, 4))

        super().__init__(train_x=train, val=val, test=test)

    def read_folder(self, split):
        folder = os.path.join(self.dataset_dir, split)
        return [
            (os.path.join(folder, name, file), label, name)
            for label, name in enumerate(listdir_nohidden(folder, sort=True))
            for file in listdir_nohidden(os.path.join(folder, name), sort=True)
        ]


class ToyNet(nn.Module):
    def __init__(self, num_classes, width=16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(8 * 8 * 3, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(width, num_classes),
        )

    def forward(self, image):
        return self.layers(image)


@TRAINER_REGISTRY.register()
class ToyTrainer(TrainerX):
    stop_at: tuple[int, int] | None = None  # (epoch, batch) at which Ctrl-C is pressed
    nan_at: tuple[int, int] | None = None  # (epoch, batch) of a loss that is not a number
    width = 16

    def build_model(self):
        cfg = self.cfg
        print(f"Building a model for {self.dm.dataset.classnames}")
        self.model = ToyNet(self.num_classes, self.width)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("toy_net", self.model, self.optim, self.sched)
        self.steps = 0

    def loss_and_accuracy(self, batch):
        where = (self.epoch + 1, self.batch_idx + 1)
        if where == self.stop_at:
            raise KeyboardInterrupt
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        if where == self.nan_at:
            loss = loss * float("nan")
        return loss, compute_accuracy(output, label)[0]

    def forward_backward(self, batch):
        loss, accuracy = self.loss_and_accuracy(batch)
        # what the run depends on beyond torch's random numbers
        loss = loss * (1 + 0.01 * random.random() + 0.01 * np.random.rand() + 1e-4 * self.steps)
        self.steps += 1
        self.model_backward_and_update(loss)

        loss_summary = {"loss": loss.item(), "acc": accuracy.item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return loss_summary

    def extra_state(self):
        return {"steps": self.steps}

    def load_extra_state(self, state):
        self.steps = state["steps"]

    def parse_batch_train(self, batch):
        input = batch["img"]
        label = batch["label"]
        input = input.to(self.device)
        label = label.to(self.device)
        return input, label


@TRAINER_REGISTRY.register()
class WideToyTrainer(ToyTrainer):
    width = 24


@TRAINER_REGISTRY.register()
class OwnStepTrainer(ToyTrainer):
    """Steps the optimizer itself and never looks at the loss, as some public trainers do."""

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        if (self.epoch + 1, self.batch_idx + 1) == self.nan_at:
            loss = loss * float("nan")
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return {"loss": loss.item()}


@TRAINER_REGISTRY.register()
class TensorTrainer(ToyTrainer):
    """Gives tensors and reads nothing of the device."""

    def forward_backward(self, batch):
        loss, accuracy = self.loss_and_accuracy(batch)
        self.model_backward_and_update(loss)
        self.steps += 1
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return self.summary(loss, accuracy)

    def summary(self, loss, accuracy):
        return {"loss": loss, "acc": accuracy}


@TRAINER_REGISTRY.register()
class SecretiveTrainer(TensorTrainer):
    """Steps on a loss that it tells nobody."""

    def summary(self, loss, accuracy):
        return None


@TRAINER_REGISTRY.register()
class IterationTrainer(TensorTrainer):
    """Counts iterations: seven, which are two epochs of three batches and one of one."""

    def build_model(self):
        super().build_model()
        self.max_iter = 7
        self.max_epoch = math.ceil(self.max_iter / len(self.train_loader_x))


def weights(folder: Path, epoch: int = 3) -> dict[str, torch.Tensor]:
    path = folder / "toy_net" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]
