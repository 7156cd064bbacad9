"""ImageNet-A: pictures that misled a classifier, of 200 classes of ImageNet."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVersion


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVersion):
    """``imagenet-a/<folder>/*``; its 200 classes, labeled 0 to 199, are the only candidates."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
