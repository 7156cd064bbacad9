"""ImageNet-Sketch: drawings of the ImageNet classes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVersion


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVersion):
    """``images/<folder>/*``, with ImageNet's folders."""

    dataset_dir = "imagenet-sketch"
    image_dir = "images"
