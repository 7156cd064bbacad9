"""Classify pictures with an exported network: python classify.py model.onnx photo.jpg ..."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def pixels(image, size, interpolation, upright):
    """Return the middle of a picture, resized: (size, size, 3), whole numbers of 8 bits, RGB."""
    image = ImageOps.exif_transpose(image) if upright else image
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    short = min(image.size)
    shape = [int(size * side / short) for side in image.size]
    image = image.convert("RGB").resize(shape, Image.Resampling[interpolation.upper()])
    left, top = (round((side - size) / 2) for side in image.size)
    return np.array(image.crop((left, top, left + size, top + size)))


def network(path):
    """Return the function from pixels (N, size, size, 3) to logits and probabilities (N, K)."""
    if path.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda batch: session.run(["logits", "probabilities"], {"pixels": batch})
    import torch

    module = torch.export.load(path).module()
    return lambda batch: [each.numpy() for each in module(torch.from_numpy(batch))]


if __name__ == "__main__":
    about = json.loads(Path(sys.argv[1]).with_name("model.json").read_text(encoding="utf-8"))
    run = network(sys.argv[1])
    for name in sys.argv[2:]:
        _, (row,) = run(pixels(Image.open(name), **about["preprocessing"])[None])
        print(name, about["labels"][row.argmax()], f"{row.max():.3f}")
