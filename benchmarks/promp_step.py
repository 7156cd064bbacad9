"""Cost of a ProMPT training step: shared prefix against all tokens for every image and class.

    python -m benchmarks.promp_step

Forward and backward at the size of ViT-B/16 (random weights, fp32, CPU), each way in a process of
its own, one after the other: ratio of the times, ratio of the memory that a step takes in addition
to the model, largest relative difference of a gradient.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import trainers  # noqa: F401
from benchmarks.text_features import NAMES, VIT_B16, plain_features, random_model
from clip import PromptTokens, tokenize
from clip.layer import Layers
from dassl.command import Parser
from dassl.config import get_cfg_default
from trainers.promp import ProMPT


class PlainProMPT(ProMPT):
    """ProMPT that encodes every class with all its tokens for every image."""

    def set_classes(self, class_names: Any) -> None:
        super().set_classes(class_names)
        texts = [f"{self.context.words} {name}." for name in self.class_names]
        self.ids = tokenize(texts, self.clip.context_length)

    def encode_text(self, layers: Layers, tokens: PromptTokens | None = None) -> Tensor:
        (context,) = layers
        assert isinstance(context, Tensor)
        n, k = len(context), len(self.ids)
        prompts = context.expand(-1, k, -1, -1).flatten(0, 1)
        features = plain_features(self.clip, self.ids.repeat(n, 1), [prompts])
        return F.normalize(features, dim=-1).unflatten(0, (n, k))


PATHS = {"plain": PlainProMPT, "shared": ProMPT}


def peak_bytes() -> int:
    """Return the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(path: str, batch: int, classes: int, repeats: int, gradients: str) -> dict[str, float]:
    """Return the seconds of the fastest step and the bytes that steps add; save one's gradients."""
    cfg = get_cfg_default()
    names = [NAMES[i % len(NAMES)] for i in range(classes)]
    model = PATHS[path](cfg, random_model(VIT_B16), names, ["a photo of a {}."])
    size = model.clip.visual.input_resolution
    images, labels = torch.randn(batch, 3, size, size), torch.arange(batch) % classes
    before = peak_bytes()
    seconds = []
    for _ in range(repeats):
        model.zero_grad()
        start = time.perf_counter()
        _, terms = model(images, labels)
        torch.stack(list(terms.values())).sum().backward()
        seconds.append(time.perf_counter() - start)
    learned = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    torch.save(learned, gradients)
    return {"seconds": min(seconds), "bytes": peak_bytes() - before}


def measure_apart(path: str, args: argparse.Namespace, gradients: Path) -> dict[str, float]:
    """Call ``measure`` in a new process, because a process's peak memory never falls."""
    command = [sys.executable, "-m", "benchmarks.promp_step", "--path", path]
    for key in ("batch", "classes", "repeats"):
        command += [f"--{key}", str(getattr(args, key))]
    done = subprocess.run(
        [*command, "--gradients", str(gradients)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference over all tensors, relative to each tensor's largest value."""
    first, second = (torch.load(path, weights_only=True) for path in (one, other))
    return max(
        float((first[name] - second[name]).abs().max() / first[name].abs().max()) for name in first
    )


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--path", choices=PATHS, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.path:
        print(
            json.dumps(measure(args.path, args.batch, args.classes, args.repeats, args.gradients))
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {path: Path(folder) / path for path in PATHS}
        plain, shared = (measure_apart(path, args, files[path]) for path in PATHS)
        difference = largest_difference(*files.values())
    print(f"batch {args.batch}, {args.classes} classes")
    for name, found in (("plain", plain), ("shared prefix", shared)):
        print(f"{name}: {found['seconds']:.1f} s, {found['bytes'] / 2**30:.2f} GiB")
    print(f"times faster: {plain['seconds'] / shared['seconds']:.1f}")
    print(f"times less memory: {plain['bytes'] / shared['bytes']:.1f}")
    print(f"largest relative difference of a gradient: {difference:.1e}")


if __name__ == "__main__":
    main()
