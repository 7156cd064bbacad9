"""KgCoOp against a plain computation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dassl.utils import UserError
from tests.plain import assert_same_gradients, plain_logits, text_feature, unit
from tests.trainers.tiny import (
    NAMES,
    TEMPLATES,
    build,
    check,
    class_ids,
    learned,
    load_public,
    settings,
)
from trainers.kgcoop import KgCoOp


def plain_kgcoop(model, clip_model, images, names, words):
    """Return logits, and the mean distance between the learned and the frozen text features."""
    ctx = model.prompt_learner.ctx
    slots = list(range(1, 1 + len(ctx)))
    texts = [text_feature(clip_model, i, slots, [ctx]) for i in class_ids(words + " {}.", names)]
    frozen = [text_feature(clip_model, i, [], []) for i in class_ids(TEMPLATES[0], names)]
    pairs = zip(texts, frozen, strict=True)
    distance = torch.stack([1 - unit(a) @ unit(b) for a, b in pairs]).mean()
    return plain_logits(clip_model, images, texts), distance


def test_logits_losses_and_gradient_equal_the_plain_computation(clip_model, batch):
    model = build(KgCoOp, clip_model, N_CTX=4, W=8.0)
    images, labels = batch
    expected, distance = plain_kgcoop(model, clip_model, images, NAMES, "X X X X")
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["loss_kg"], 8.0 * distance, rtol=1e-4, atol=1e-5)
    assert distance > 1e-3
    loss = F.cross_entropy(expected, labels) + 8.0 * distance
    assert_same_gradients(learned(model), sum(terms.values()), loss)


def test_a_context_of_the_templates_words_is_at_no_distance(clip_model, batch):
    model = build(KgCoOp, clip_model, CTX_INIT="a photo of a", W=8.0)
    _, terms = model(*batch)
    assert terms["loss_kg"].abs().item() < 1e-5


def test_other_classes_have_frozen_features_of_their_own(clip_model, batch):
    model = build(KgCoOp, clip_model, N_CTX=2, W=1.0)
    images, labels = batch
    model(images, labels)
    names = ["cat", "small_red bus", "fern", "pot"]
    model.set_classes(names)
    expected, distance = plain_kgcoop(model, clip_model, images, names, "X X")
    with model.fixed_classes():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    _, terms = model(images, labels)
    torch.testing.assert_close(terms["loss_kg"], distance, rtol=1e-4, atol=1e-5)


def test_learns_the_context_alone_with_coops_settings_and_a_weight(clip_model):
    model = build(KgCoOp, clip_model, N_CTX=5)
    assert list(learned(model)) == ["prompt_learner.ctx"]
    cfg, node = settings(KgCoOp)
    assert node is cfg.TRAINER.COOP and node.W == 1.0 and node.CLASS_TOKEN_POSITION == "end"


def test_reads_public_checkpoints_with_their_unused_tensors(clip_model):
    model = build(KgCoOp, clip_model, N_CTX=4)
    state = {
        "ctx": torch.full((4, 32), 0.25).half(),
        "bias_vectors": torch.zeros(1, 512),
        "meta_net.linear1.weight": torch.zeros(512, 512),
        "meta_net.linear1.bias": torch.zeros(512),
        "token_prefix": torch.zeros(9, 1, 32),
        "token_suffix": torch.zeros(9, 72, 32),
    }
    load_public(model, state, "model.pth.tar-100")
    assert torch.equal(model.prompt_learner.ctx, torch.full((4, 32), 0.25))
    state["meta_net.linear2.weight"] = torch.zeros(32, 2)  # CoCoOp's
    with pytest.raises(UserError, match="meta_net.linear2.weight"):
        load_public(model, state, "model.pth.tar-10")


def test_settings_that_cannot_be(clip_model):
    with pytest.raises(
        UserError, match="TRAINER.COOP.N_CTX: expected a whole number in 1..1000, got 0"
    ):
        check(KgCoOp, clip_model, N_CTX=0)
