"""ViT-Mini: its file, and what it recognizes without any training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import clip
import datasets  # noqa: F401  (registers the datasets)
import train
from clip.model import CLIP
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
REPOSITORY = Path(train.__file__).parent
WEIGHTS = Path(clip.__file__).parent / "weights" / "ViT-Mini.pt"


@pytest.fixture(scope="module")
def model() -> CLIP:
    return clip.load_model("ViT-Mini", "cpu").float().eval()


def zero_shot(model: CLIP, root: Path, name: str, subset: str) -> float:
    """Return the accuracy in percent on the test pictures, with the dataset's first template."""
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.NAME", name, "DATASET.ROOT", str(root), "VERBOSE", False])
    cfg.merge_from_list(["DATASET.SUBSAMPLE_CLASSES", subset])
    dataset = build_dataset(cfg)
    template = DATASET_REGISTRY.get(name).templates[0]
    pixels = np.stack([np.asarray(Image.open(item.impath)) for item in dataset.test])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    texts = clip.tokenize([template.format(classname) for classname in dataset.classnames])
    with torch.no_grad():
        of_images = F.normalize(model.encode_image(images), dim=-1)
        of_texts = F.normalize(model.encode_text(texts), dim=-1)
    labels = torch.tensor([item.label for item in dataset.test])
    return 100 * ((of_images @ of_texts.T).argmax(1) == labels).float().mean().item()


def test_file() -> None:
    state = torch.load(WEIGHTS, weights_only=True)
    assert WEIGHTS.stat().st_size <= 12e6
    assert all(t.dtype == torch.float16 for t in state.values() if t.is_floating_point())
    blocks = [name for name in state if name.endswith("ln_1.weight")]
    assert sum(name.startswith("visual.") for name in blocks) == 12
    assert len(blocks) == 24
    assert state["token_embedding.weight"].shape[0] == 49408
    known, unknown = clip.tokenize(["a red striped circle", "zebra"])[:, 1:5]
    assert (state["token_embedding.weight"][known] != 0).any(-1).all()
    assert (state["token_embedding.weight"][unknown[0]] == 0).all()


@pytest.mark.parametrize("subset", ["all", "base", "new"])
@pytest.mark.parametrize("name", ["Shapes", "Glyphs"])
def test_something_is_left_to_learn(model: CLIP, root: Path, name: str, subset: str) -> None:
    assert 45 <= zero_shot(model, root, name, subset) <= 80


def test_shifts_and_handwriting_are_recognized(model: CLIP, root: Path) -> None:
    for name in ("ShapesV2", "ShapesSketch", "ShapesNoise", "ShapesRendition"):
        assert zero_shot(model, root, name, "all") > 10 * 100 / 32
    assert zero_shot(model, root, "Digits", "all") > 60


def test_zero_shot_needs_no_config_file(model: CLIP, root: Path, tmp_path: Path) -> None:
    arguments = ["--trainer", "ZeroshotCLIP", "--backbone", "ViT-Mini", "--eval-only"]
    arguments += ["--root", str(root), "--output-dir", str(tmp_path / "run")]
    arguments += ["--dataset-config-file", f"{REPOSITORY}/configs/datasets/shapes.yaml"]
    assert train.main([*arguments, "DATASET.SUBSAMPLE_CLASSES", "base"]) == 0
    accuracy = json.loads((tmp_path / "run/results.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(zero_shot(model, root, "Shapes", "base"), abs=1e-4)
