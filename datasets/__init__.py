"""The datasets; importing this registers them all."""

from . import (
    caltech101,
    digits,
    dtd,
    eurosat,
    fgvc_aircraft,
    food101,
    glyphs,
    image_folder,
    imagenet,
    imagenet_a,
    imagenet_r,
    imagenet_sketch,
    imagenetv2,
    oxford_flowers,
    oxford_pets,
    shapes,
    shapes_shifted,
    stanford_cars,
    sun397,
    ucf101,
)
