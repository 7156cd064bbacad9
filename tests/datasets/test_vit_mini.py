"""The models in this repository: their files, and what they recognize without any training."""

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
from clip.clip import OF_DRAWINGS, ROWS
from clip.model import CLIP
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from tests.embedded import BACKBONE, WEIGHTS

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
REPOSITORY = Path(train.__file__).parent
N_TOKENS = 49408  # of CLIP's vocabulary


@pytest.fixture(scope="module")
def model() -> CLIP:
    return clip.load_model(BACKBONE, "cpu").eval()


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


@pytest.mark.parametrize("name", OF_DRAWINGS)
def test_file(name: str) -> None:
    state = torch.load(OF_DRAWINGS[name], weights_only=True)
    assert OF_DRAWINGS[name].stat().st_size <= 16 * 2**20
    assert all(t.dtype == torch.float16 for t in state.values() if t.is_floating_point())
    blocks = [name for name in state if name.endswith("ln_1.weight")]
    assert sum(name.startswith("visual.") for name in blocks) == 12
    assert len(blocks) == 24


def test_every_token_has_an_embedding(model: CLIP) -> None:
    state = torch.load(WEIGHTS, weights_only=True)
    table, rows = state["token_embedding.weight"].float(), state[ROWS]
    assert rows.shape == (N_TOKENS,) and len(table) < N_TOKENS
    assert len(rows.unique()) == len(table) and (table != 0).any(-1).all()
    assert torch.equal(model.token_embedding.weight, table[rows.long()])


def test_a_bottleneck_of_a_sixteenth_of_the_width_is_not_tiny(model: CLIP) -> None:
    assert min(model.config.vision_width, model.config.text_width) // 16 >= 8


def test_vit_mini_is_there_for_old_checkpoints(root: Path) -> None:
    """It knows handwriting, and gives words that it has not learned no embedding."""
    old = clip.load_model("ViT-Mini", "cpu").eval()
    assert zero_shot(old, root, "Digits", "all") > 60
    known, unknown = clip.tokenize(["a red striped circle", "zebra"])[:, 1:5]
    assert (old.token_embedding.weight[known] != 0).any(-1).all()
    assert (old.token_embedding.weight[unknown[0]] == 0).all()


def test_zero_shot_needs_no_config_file(model: CLIP, root: Path, tmp_path: Path) -> None:
    arguments = ["--trainer", "ZeroshotCLIP", "--backbone", BACKBONE, "--eval-only"]
    arguments += ["--root", str(root), "--output-dir", str(tmp_path / "run")]
    arguments += ["--dataset-config-file", f"{REPOSITORY}/configs/datasets/emoji.yaml"]
    assert train.main([*arguments, "DATASET.SUBSAMPLE_CLASSES", "base"]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["warnings"] == []
    expected = zero_shot(model, root, "Emoji", "base")
    assert results["accuracy"] == pytest.approx(expected, abs=1e-4)
