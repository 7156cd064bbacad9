"""CLIP-Adapter against a plain computation, one image at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dassl.utils import UserError
from tests.plain import assert_same_gradients, image_feature, text_feature, unit
from tests.trainers.tiny import NAMES, TEMPLATES, build, check, class_ids, learned, load_public
from trainers.clip_adapter import CLIPAdapter


def plain_clip_adapter_logits(clip_model, p, images, ratio, names=NAMES):
    """Adapt features as the tower returns them, which have any length."""
    texts = torch.stack(
        [text_feature(clip_model, i, [], []) for i in class_ids(TEMPLATES[0], names)]
    )
    rows = []
    for image in images:
        f = image_feature(clip_model, image, [])
        hidden = (p["fc.0.weight"] @ f).relu()
        f = ratio * (p["fc.2.weight"] @ hidden).relu() + (1 - ratio) * f
        rows.append(clip_model.logit_scale.exp() * unit(texts) @ unit(f))
    return torch.stack(rows)


def test_logits_and_gradients_equal_the_plain_computation(clip_model, batch):
    model = build(CLIPAdapter, clip_model, RATIO=0.6)
    images, labels = batch
    expected = plain_clip_adapter_logits(clip_model, learned(model.adapter), images, 0.6)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    loss = F.cross_entropy(expected, labels)
    assert_same_gradients(learned(model.adapter), sum(terms.values()), loss)


def test_a_public_checkpoint_serves_any_classes(clip_model, batch):
    model = build(CLIPAdapter, clip_model)
    torch.manual_seed(3)
    state = {"fc.0.weight": torch.randn(6, 24), "fc.2.weight": torch.randn(24, 6)}
    load_public(model, state, "model.pth.tar-200")
    names = ["green_hexagon", "dog"]
    for each in (NAMES, names):
        model.set_classes(each)
        expected = plain_clip_adapter_logits(clip_model, state, batch[0], 0.2, each)
        with torch.no_grad():
            torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    assert model.saved().keys() == state.keys()
    with pytest.raises(UserError, match=r"fc\.0\.weight"):
        load_public(model, {**state, "fc.0.weight": torch.randn(256, 1024)}, "model.pth.tar-200")


def test_a_share_above_one_is_refused(clip_model):
    with pytest.raises(
        UserError, match=r"CLIPADAPTER\.RATIO: expected a number in .0, 1., got 1\.5"
    ):
        check(CLIPAdapter, clip_model, RATIO=1.5)
