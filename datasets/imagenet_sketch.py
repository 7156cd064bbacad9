"""ImageNet-Sketch: drawings of the classes of ImageNet."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVersion


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVersion):
    """``images/<folder>/*``, with ImageNet's folders."""

    dataset_dir = "imagenet-sketch"
    image_dir = "images"
