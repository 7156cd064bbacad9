"""Pictures a second of exported networks against PyTorch, on the CPU.

    python -m benchmarks.export [--backbones ViT-Mini-2 ViT-B/16] [--batch-sizes 1 32]

VPT, as it starts, with ten classes, from pixels to logits. ViT-B/16 has random weights, so that
nothing is downloaded. All are timed in turn, in one process; medians.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import numpy as np
import torch

import clip
from benchmarks.text_features import VIT_B16, random_model
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

NAMES = [f"class {i}" for i in range(10)]
TEMPLATES = ["a photo of a {}."]


def classifier_of(backbone: str) -> Classifier:
    """Make a classifier that has learned nothing."""
    if backbone == "ViT-B/16":
        model = random_model(VIT_B16)
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
        plain = Network(classifier).eval()
        networks = {"PyTorch": lambda batch, plain=plain: plain(torch.from_numpy(batch))}
        sizes = {"PyTorch": ""}
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for name in export(classifier, folder, "onnx", int8=True):
                path = os.path.join(folder, name)
                networks[name], sizes[name] = network(path), f"{os.path.getsize(path) / 1e6:.1f}"
            times: dict[tuple[str, int], list[float]] = {
                (name, n): [] for name in networks for n in args.batch_sizes
            }
            for _ in range(1 + args.rounds):
                for (name, n), found in times.items():
                    batch = np.zeros(
                        (n, *(classifier.method.clip.preprocess.size,) * 2, 3), np.uint8
                    )
                    start = time.perf_counter()
                    networks[name](batch)
                    found.append(time.perf_counter() - start)
        for name, size in sizes.items():
            medians = [statistics.median(times[name, n][1:]) for n in args.batch_sizes]
            speeds = [n / median for n, median in zip(args.batch_sizes, medians, strict=True)]
            rows.append([backbone, name, size, *(f"{speed:.1f}" for speed in speeds)])
    print_table(header, rows)


if __name__ == "__main__":
    main()
