"""Datasets that are drawn on first use and are ordinary image folders afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from PIL import Image
from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase, Datum
from dassl.errors import UserError
from dassl.utils import log
from dassl.utils.tools import keep_random

from ..common import SPLITS, Splits, read_split, save_split
from .drawing import Look, Picture, Random, Sprite, paint, random_state
from .sheets import concepts, sprites


class Example(NamedTuple):
    """A picture to be written as a file of a dataset."""

    split: str  # one of SPLITS
    label: int
    classname: str
    picture: Picture


class EmbeddedDataset(DatasetBase):
    """A dataset whose pictures this repository draws.

    On first use the pictures are written to ``<root>/<folder>/images/<class>/<number>.png``, with a
    split file in CoOp's format; later runs, whatever their shots or classes, read these files. A
    subclass defines its ``folder``, the ``numbers`` of its pictures, which may be test pictures
    only, as in a shifted version of another dataset, ``class_names`` and ``examples``.

    Args:
        cfg: the config; ``DATASET.ROOT`` is used, and what ``DatasetBase`` uses.

    Raises:
        UserError: the root cannot be written, or the dataset's folder is damaged.
    """

    folder: str
    numbers: dict[str, int]  # pictures of each class, by split
    creates_root = True
    is_drawn = True

    def __init__(self, cfg: CfgNode) -> None:
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.folder)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        self.split_path = os.path.join(self.dataset_dir, self._split_name())
        if not os.path.isdir(self.dataset_dir):
            with keep_random():  # few-shot samples are the same whether it was drawn before or not
                self._draw(root)
        train, val, test = self._read_split()
        super().__init__(train_x=train or None, val=val, test=test, cfg=cfg)

    @classmethod
    def class_names(cls) -> Sequence[str]:
        """Name the classes, in label order, without drawing anything."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> Iterable[Example]:
        """Yield ``cls.numbers`` pictures of each class, always the same ones in the same order.

        Other numbers change how many there are of a class and split, not what the first ones show.
        """
        raise NotImplementedError

    @classmethod
    def _split_name(cls) -> str:
        return f"split_zhou_{cls.__name__}.json"

    def _draw(self, root: str) -> None:
        """Draw the dataset into a temporary folder and rename it when it is complete.

        An interrupted run thus leaves no partial dataset, and of several processes that draw it at
        once, one wins.
        """
        log.info(f"Drawing {type(self).__name__} into {self.dataset_dir}")
        workshop = ""
        try:
            os.makedirs(root, exist_ok=True)
            workshop = tempfile.mkdtemp(prefix=f".{self.folder}-", dir=root)
            new = os.path.join(workshop, self.folder)
            images = os.path.join(new, "images")
            splits: Splits = ([], [], [])
            for number, example in enumerate(self.examples()):
                subfolder = os.path.join(images, example.classname.replace(" ", "_"))
                path = os.path.join(subfolder, f"{number:05d}.png")
                os.makedirs(subfolder, exist_ok=True)
                Image.fromarray(example.picture).save(path)
                item = Datum(path, example.label, classname=example.classname)
                splits[SPLITS.index(example.split)].append(item)
            save_split(*splits, os.path.join(new, self._split_name()), images)
            try:
                os.rename(new, self.dataset_dir)
            except OSError:
                if not os.path.isfile(self.split_path):  # otherwise another process was first
                    raise
        except OSError as error:
            raise UserError(
                f"DATASET.ROOT: cannot write {type(self).__name__} into '{root}': {error}"
            ) from error
        finally:
            if workshop:
                shutil.rmtree(workshop, ignore_errors=True)

    def _read_split(self) -> Splits:
        repair = f"delete the folder '{self.dataset_dir}' to have it drawn again"
        if not os.path.isfile(self.split_path):
            raise UserError(f"dataset file '{self.split_path}' is missing; {repair}")
        try:
            splits = read_split(self.split_path, self.image_dir)
        except UserError as error:
            raise UserError(f"{error}; {repair}") from error
        if not splits[0] and "train" in self.numbers:
            raise UserError(
                f"split file '{self.split_path}' is damaged: 'train' is empty; {repair}"
            )
        return splits


class SceneDataset(EmbeddedDataset):
    """A dataset whose pictures are scenes: a sprite of the class among other things.

    A subclass defines the ``seed`` of its pictures, their ``look``, and ``classes``.
    """

    seed: int
    look: Look

    @classmethod
    def _split_name(cls) -> str:
        # another one than that of Shapes and Glyphs as they once were, so that these are not read
        return f"split_scenes_{cls.__name__}.json"

    @classmethod
    def classes(cls) -> Iterable[tuple[str, Callable[[Random], Sprite]]]:
        """Yield each class's name and what makes a sprite of it, in label order."""
        raise NotImplementedError

    @classmethod
    def class_names(cls) -> Sequence[str]:
        return [name for name, _ in cls.classes()]

    @classmethod
    def examples(cls) -> Iterable[Example]:
        for label, (name, make_sprite) in enumerate(cls.classes()):
            for split, number in cls.numbers.items():
                for index in range(number):
                    random = random_state(cls.seed, label, SPLITS.index(split), index)
                    picture = paint(random, make_sprite(random), cls.look)
                    yield Example(split, label, name, picture)


class DrawnByPeople(SceneDataset):
    """Scenes with pictures that people drew: ``concepts`` of a set, in one or more ``styles``."""

    concepts: str  # the set's name
    styles: tuple[str, ...]

    @classmethod
    def classes(cls) -> Iterable[tuple[str, Callable[[Random], Sprite]]]:
        for concept in concepts()[cls.concepts]:
            drawings = [sprites(style)[concept.name] for style in cls.styles]
            yield concept.name, partial(_one_of, drawings)


def _one_of(drawings: Sequence[Sprite], random: Random) -> Sprite:
    return drawings[random.randint(len(drawings))]
