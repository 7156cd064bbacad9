"""TaskRes against a plain computation, and its residuals by the names of the classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

from dassl.utils import UserError
from tests.plain import assert_same_gradients, plain_logits, text_feature
from tests.trainers.tiny import NAMES, TEMPLATES, build, class_ids, learned, load_public, settings
from trainers.taskres import TaskRes

OTHERS = ["green_hexagon", NAMES[2], "dog", NAMES[0].replace("_", " ")]  # two were trained


def plain_base(clip_model, names=NAMES, templates=TEMPLATES[:1]):
    """Return the mean over templates of text features of any length: (K, d)."""
    each = [[text_feature(clip_model, i, [], []) for i in class_ids(t, names)] for t in templates]
    return torch.stack([torch.stack(rows) for rows in each]).mean(0)


def with_residuals(model, std=0.5):
    torch.manual_seed(7)
    tensor = model.prompt_learner.text_feature_residuals
    with torch.no_grad():
        tensor.normal_(0, std)
    return tensor


def test_logits_and_gradients_equal_the_plain_computation(clip_model, batch):
    model = build(TaskRes, clip_model, RESIDUAL_SCALE=0.7)
    images, labels = batch
    base = plain_base(clip_model)
    assert model.prompt_learner.text_feature_residuals.abs().max() == 0
    torch.testing.assert_close(model(images), plain_logits(clip_model, images, base))
    x = with_residuals(model)
    expected = plain_logits(clip_model, images, base + 0.7 * x)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    loss = F.cross_entropy(expected, labels)
    assert_same_gradients(learned(model), sum(terms.values()), loss)


def test_trained_classes_keep_their_residuals_and_others_are_as_in_zero_shot_clip(
    clip_model, batch
):
    model = build(TaskRes, clip_model, RESIDUAL_SCALE=1.0)
    x = with_residuals(model).detach()
    model.set_classes(OTHERS)
    base = plain_base(clip_model, OTHERS)
    base[1] += x[2]
    base[3] += x[0]
    with torch.no_grad():
        expected = plain_logits(clip_model, batch[0], base)
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)


def test_imagenet_has_the_mean_over_eight_templates(clip_model, batch):
    cfg, _ = settings(TaskRes)
    cfg.DATASET.NAME = "ImageNetV2"
    model = TaskRes(cfg, clip_model, NAMES, TEMPLATES)
    templates = [TEMPLATES[0], *(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES)]
    assert len(templates) == 8
    with torch.no_grad():
        expected = plain_logits(clip_model, batch[0], plain_base(clip_model, NAMES, templates))
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)


def test_a_public_checkpoint_gives_the_logits_of_the_plain_computation(clip_model, batch):
    model = build(TaskRes, clip_model, RESIDUAL_SCALE=0.5)
    torch.manual_seed(3)
    base, x = plain_base(clip_model).detach(), torch.randn(3, 24)
    state = {"base_text_features": base.half(), "text_feature_residuals": x}
    load_public(model, state, "model.pth.tar-200", [])  # it does not name its classes
    with torch.no_grad():
        expected = plain_logits(clip_model, batch[0], base + 0.5 * x)
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    assert model.saved().keys() == {"text_feature_residuals"}
    tuned = {**state, "base_text_features": base + torch.randn(3, 24)}
    with pytest.raises(UserError, match="'base_text_features' are not those of this backbone"):
        load_public(model, tuned, "model.pth.tar-200", [])


def test_a_checkpoint_of_other_classes_brings_its_rows(clip_model, batch):
    trained = [NAMES[2], "tree", "house", NAMES[0], "car"]
    x = torch.randn(5, 24)
    model = build(TaskRes, clip_model, RESIDUAL_SCALE=0.5)
    load_public(model, {"text_feature_residuals": x}, "model.pth.tar-200", trained)
    base = plain_base(clip_model)
    base[0] += 0.5 * x[3]
    base[2] += 0.5 * x[0]
    with torch.no_grad():
        expected = plain_logits(clip_model, batch[0], base)
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="text_feature_residuals"):
        load_public(model, {"text_feature_residuals": x[:4]}, "model.pth.tar-200", trained)
