"""Pictures a second of exported networks against PyTorch, on the CPU.

    python -m benchmarks.export [--backbones ViT-Mini-2 ViT-B/16] [--batch-sizes 1 32]

VPT, as it starts, with ten classes, from pixels to logits. ViT-B/16 has random weights, so that
nothing is downloaded. Each is timed alone, all in one process; medians.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import clip
from benchmarks.cost.measure import random_model
from dassl.command import Parser
from dassl.config import get_cfg_default
from dassl.engine.classes_file import Classes
from dassl.table import print_table
from inference.classifier import Classifier
from inference.classify import network
from inference.export import export
from inference.network import Network
from inference.record import Record
from trainers.vpt import VPT

Run = Callable[[np.ndarray], Any]
NAMES = [f"class {i}" for i in range(10)]
TEMPLATES = ["a photo of a {}."]


def classifier_of(backbone: str) -> Classifier:
    """Make a classifier that has learned nothing."""
    if backbone == "ViT-B/16":
        model = random_model()
    else:
        model = clip.load(backbone, device="cpu")[0].float().eval().requires_grad_(False)
    cfg = get_cfg_default("VPT")
    cfg.INPUT.SIZE = (model.preprocess.size,) * 2
    cfg.INPUT.TRANSFORMS = ("normalize",)
    cfg.VERBOSE = False
    method = VPT(cfg, model, NAMES, TEMPLATES).eval()
    method.keep_classes()
    config = {"TRAINER": {"NAME": "VPT"}, "MODEL": {"BACKBONE": {"NAME": backbone}}}
    return Classifier(method, cfg, Record(config, Classes(NAMES, TEMPLATES, {}), NAMES))


def plain(classifier: Classifier) -> Run:
    """Return the function that computes a batch with PyTorch."""
    module = Network(classifier).eval()
    return lambda batch: module(torch.from_numpy(batch))


def median_time(run: Run, batch: np.ndarray, rounds: int) -> float:
    """Return the median of the seconds that a batch takes, after one that does not count."""
    times = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = Parser(prog="python -m benchmarks.export", description="Time exported networks.")
    parser.add_argument("--backbones", nargs="+", default=["ViT-Mini-2", "ViT-B/16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    header = ["backbone", "network", "MB"]
    header += [f"pictures/s, {n} at once" for n in args.batch_sizes]
    rows = []
    for backbone in args.backbones:
        classifier = classifier_of(backbone)
        size = classifier.method.clip.preprocess.size
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            names = export(classifier, folder, "onnx", int8=True)
            for name in ("PyTorch", *names):
                path = os.path.join(folder, name)
                run = plain(classifier) if name == "PyTorch" else network(path)
                megabytes = "" if name == "PyTorch" else f"{os.path.getsize(path) / 1e6:.1f}"
                speeds = [
                    n / median_time(run, np.zeros((n, size, size, 3), np.uint8), args.rounds)
                    for n in args.batch_sizes
                ]
                rows.append([backbone, name, megabytes, *(f"{speed:.1f}" for speed in speeds)])
                # or its idle threads would take the cores from the next one
                del run
                gc.collect()
    print_table(header, rows)


if __name__ == "__main__":
    main()
