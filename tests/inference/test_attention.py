"""Attention rollout: the paper's product of matrices, and the pass that it is read from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clip.vision import ModifiedResNet
from inference import Classifier
from inference.attention import attention_maps, overlay, rollout


def random_pictures(classifier: Classifier, count: int) -> torch.Tensor:
    pixels = np.random.RandomState(5).randint(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    return torch.stack([classifier.preprocess(each) for each in pixels])


def test_rollout_is_the_product_of_all_layers():
    weights = torch.rand(2, 3, 4, 8, 8).softmax(dim=-1)
    for picture, found in zip(weights, rollout(weights, n_patches=5), strict=True):
        product = torch.eye(8)
        for layer in picture:
            product = (0.5 * torch.eye(8) + 0.5 * sum(layer) / 4) @ product
        share = product[0, 1:6]  # the last two tokens are prompts
        torch.testing.assert_close(found, share / share.sum())


def test_uniform_attention_gives_every_patch_the_same_share():
    found = rollout(torch.full((1, 6, 2, 12, 12), 1 / 12), n_patches=9)
    torch.testing.assert_close(found, torch.full((1, 9), 1 / 9))


def test_attention_is_followed_down_the_layers():
    upper, lower = torch.eye(4), torch.eye(4)
    upper[0] = torch.tensor([0.0, 1, 0, 0])  # the class token reads the first patch,
    lower[1] = torch.tensor([0.0, 0, 0, 1])  # which has read the third
    weights = torch.stack([lower, upper])[None, :, None]
    torch.testing.assert_close(rollout(weights, 3), torch.tensor([[0.5, 0, 0.5]]))


def test_half_precision_and_a_class_token_that_reads_itself_alone():
    weights = torch.eye(5).expand(1, 2, 3, 5, 5).half()
    assert torch.equal(rollout(weights, 4), torch.zeros(1, 4))


# The second encodes a picture twice, and the third makes its prompts while it encodes.
@pytest.mark.parametrize(
    "trainer, n_prompts",
    [
        ("VPT", 2),
        pytest.param("HiCroPL", 2, marks=pytest.mark.slow),
        pytest.param("ProMPT", 2, marks=pytest.mark.slow),
        pytest.param("CoCoOp", 0, marks=pytest.mark.slow),
        pytest.param("LinearProbe", 0, marks=pytest.mark.slow),
        pytest.param("CLIPLoRA", 0, marks=pytest.mark.slow),
    ],
)
def test_maps_are_those_of_the_pass_that_a_prediction_takes(runs, trainer, n_prompts, monkeypatch):
    classifier = Classifier.from_run(runs.trained(trainer))
    pictures = random_pictures(classifier, 3)
    before = classifier.logits(pictures)
    read = []
    method = classifier.method
    read_image = method.clip.read_image

    def keep(*args):
        found = read_image(*args)
        read.append((args[1], found))
        return found

    monkeypatch.setattr(method.clip, "read_image", keep)
    maps = attention_maps(method, pictures)
    monkeypatch.undo()
    layers, found = read[-1]
    side = maps.shape[1]
    assert found["attention"].shape[-1] == 1 + side**2 + n_prompts
    with torch.no_grad():
        expected = method.clip.read_image(
            pictures.to(method.device), layers, ("attention",), method.prompts_through_ln_pre
        )["attention"]
    torch.testing.assert_close(maps.flatten(1), rollout(expected.cpu(), side**2))
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(3))
    assert torch.equal(classifier.logits(pictures), before)  # nothing is left behind
    assert "encode_image" not in vars(method)


def test_a_resnet_has_no_map(classifier, monkeypatch):
    tower = ModifiedResNet((1, 1, 1, 1), output_dim=24, heads=4, input_resolution=32, width=8)
    monkeypatch.setattr(classifier.method.clip, "visual", tower)
    assert attention_maps(classifier.method, torch.zeros(1, 3, 32, 32)) is None


def test_an_overlay_is_brightest_where_most_is_attended_to():
    attention = torch.full((4, 4), 0.01)
    attention[0, 3] = 0.85
    drawn = overlay(Image.new("RGB", (64, 64), "grey"), attention)
    brightness = np.asarray(drawn.convert("L"), int)
    assert drawn.size == (64, 64) and brightness[:16, 48:].mean() > brightness[16:].max() + 40
    flat = np.asarray(overlay(Image.new("RGB", (64, 64), "grey"), torch.full((4, 4), 1 / 16)))
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
