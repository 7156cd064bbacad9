"""ImageNet, and what its four versions share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from dassl.data.datasets.base_dataset import Split
from dassl.errors import UserError

from .common import class_folders, dataset_folder, list_images, read_fields


@DATASET_REGISTRY.register()
class ImageNet(DatasetBase):
    """``images/train/<folder>/*`` and ``images/val/<folder>/*``.

    As is customary, the validation images also serve as test images, so nothing is selected by
    them. Labels follow the sorted folders of ``train``. ``templates`` of an instance are the 80 of
    CLIP's authors, "a photo of a {}." first.

    Args:
        cfg: the config; ``DATASET.ROOT`` is used, and what ``DatasetBase`` uses.

    Raises:
        UserError: a folder or a class name is missing.
    """

    dataset_dir = "imagenet"
    templates = ["a photo of a {}."]

    def __init__(self, cfg: CfgNode) -> None:
        self.dataset_dir = dataset_folder(cfg, type(self))
        self.image_dir = os.path.join(self.dataset_dir, "images")
        self.templates = imagenet_templates()
        train_dir, val_dir = (os.path.join(self.image_dir, part) for part in ("train", "val"))
        folders = class_folders(train_dir)
        names = class_names(self.dataset_dir)
        for folder in class_folders(val_dir):
            if folder not in folders:
                raise UserError(
                    f"class folder '{folder}' is in '{val_dir}' but not in '{train_dir}'"
                )
        train = read_folders(train_dir, folders, names)
        test = read_folders(val_dir, folders, names)
        classnames = [names[folder] for folder in folders]
        super().__init__(train_x=train, val=test, test=test, cfg=cfg, classnames=classnames)

    @staticmethod
    def read_classnames(text_file: str) -> dict[str, str]:
        """Return {folder: class name} from lines such as "n01440764 tench", in their order."""
        return {folder: name for folder, name in read_fields(text_file, 2, " ")}


class ImageNetVersion(DatasetBase):
    """A version of ImageNet for testing a model trained on ImageNet.

    It has no training images, so ``DATASET.NUM_SHOTS`` is ignored. A subclass defines
    ``dataset_dir`` and ``image_dir`` (relative paths in the class, absolute ones in an instance).

    Args:
        cfg: the config; ``DATASET.ROOT`` is used, and what ``DatasetBase`` uses.

    Raises:
        UserError: a folder or a class name is missing.
    """

    image_dir: str
    templates = ImageNet.templates

    def __init__(self, cfg: CfgNode) -> None:
        self.dataset_dir = dataset_folder(cfg, type(self))
        self.image_dir = os.path.join(self.dataset_dir, self.image_dir)
        self.templates = imagenet_templates()
        super().__init__(test=self.read_images(class_names(self.dataset_dir)), cfg=cfg)

    def read_images(self, names: Mapping[str, str]) -> Split:
        """Return all images, labeled by the sorted folders.

        Args:
            names: ImageNet's {folder: class name}, in the order of ImageNet's labels.
        """
        return read_folders(self.image_dir, class_folders(self.image_dir), names)


def read_folders(image_dir: str, folders: Sequence[str], names: Mapping[str, str]) -> Split:
    """Return the images of class folders; a folder's index in ``folders`` is its label.

    Raises:
        UserError: a folder is missing or has no class name.
    """
    items: Split = []
    for label, folder in enumerate(folders):
        path = os.path.join(image_dir, folder)
        if folder not in names:
            raise UserError(f"no class name for class folder '{path}'")
        if not os.path.isdir(path):
            raise UserError(f"class folder '{path}' is missing")
        items.extend(list_images(path, label, names[folder]))
    return items


def class_names(dataset_dir: str) -> dict[str, str]:
    """Return {folder: class name}, such as "n01440764": "tench", in the order of the labels.

    The names come from ``classnames.txt`` in the dataset's folder if it exists, else from
    open_clip, which has CLIP's names with later corrections.
    """
    path = os.path.join(dataset_dir, "classnames.txt")
    if os.path.exists(path):
        return ImageNet.read_classnames(path)
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo  # open_clip depends on timm, which knows the folders

    folders = ImageNetInfo("imagenet-1k").label_names()
    return dict(zip(folders, IMAGENET_CLASSNAMES, strict=True))


def imagenet_templates() -> list[str]:
    """Return the 80 templates of CLIP's authors, "a photo of a {}." first."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return list(dict.fromkeys([*ImageNet.templates, *templates]))
