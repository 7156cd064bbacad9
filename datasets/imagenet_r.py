"""ImageNet-R: paintings, toys, tattoos and other renditions of 200 ImageNet classes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVersion


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVersion):
    """``imagenet-r/<folder>/*``; its 200 classes, labeled 0 to 199, are the only candidates."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
