"""ImageNet-A: photos of 200 ImageNet classes that misled a classifier."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVersion


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVersion):
    """``imagenet-a/<folder>/*``; its 200 classes, labeled 0 to 199, are the only candidates."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
