"""KgCoOp against a plain computation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip import tokenize
from dassl.utils import UserError
from tests.plain import image_feature, text_feature
from tests.trainers.tiny import NAMES, TEMPLATES, build, settings, tiny_clip
from trainers.kgcoop import KgCoOp


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip()


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def batch():
    torch.manual_seed(5)
    return torch.randn(3, 3, 16, 16), torch.tensor([0, 2, 1])


def plain(model, clip_model, images, names, words):
    """Logits, and the mean distance of the learned from the frozen text features."""
    ctx = model.prompt_learner.ctx
    names = [name.replace("_", " ") for name in names]
    learned, frozen = [], []
    for name in names:
        ids = tokenize([f"{words} {name}."])[0]
        learned.append(text_feature(clip_model, ids, list(range(1, 1 + len(ctx))), [ctx]))
        frozen.append(text_feature(clip_model, tokenize([TEMPLATES[0].format(name)])[0], [], []))
    w, w_frozen = unit(torch.stack(learned)), unit(torch.stack(frozen))
    v = unit(torch.stack([image_feature(clip_model, image, []) for image in images]))
    distance = torch.stack([1 - a @ b for a, b in zip(w, w_frozen, strict=True)]).mean()
    return clip_model.logit_scale.exp() * v @ w.t(), distance


def test_logits_losses_and_gradient_equal_the_plain_computation(clip_model):
    model = build(KgCoOp, clip_model, N_CTX=4, W=8.0)
    images, labels = batch()
    expected, distance = plain(model, clip_model, images, NAMES, "X X X X")
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["loss_kg"], 8.0 * distance, rtol=1e-4, atol=1e-5)
    assert distance > 1e-3
    ctx = model.prompt_learner.ctx
    (fast,) = torch.autograd.grad(sum(terms.values()), ctx)
    (slow,) = torch.autograd.grad(F.cross_entropy(expected, labels) + 8.0 * distance, ctx)
    assert (fast - slow).abs().max() <= 1e-3 * slow.abs().max()


def test_a_context_of_the_templates_words_is_at_no_distance(clip_model):
    model = build(KgCoOp, clip_model, CTX_INIT="a photo of a", W=8.0)
    _, terms = model(*batch())
    assert terms["loss_kg"].abs().item() < 1e-5


def test_other_classes_have_frozen_features_of_their_own(clip_model):
    model = build(KgCoOp, clip_model, N_CTX=2, W=1.0)
    images, labels = batch()
    model(images, labels)
    names = ["cat", "small_red bus", "fern", "pot"]
    model.set_classes(names)
    expected, distance = plain(model, clip_model, images, names, "X X")
    with model.fixed_classes():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    _, terms = model(images, labels)
    torch.testing.assert_close(terms["loss_kg"], distance, rtol=1e-4, atol=1e-5)


def test_learns_the_context_alone_with_coops_settings_and_a_weight(clip_model):
    model = build(KgCoOp, clip_model, N_CTX=5)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["prompt_learner.ctx"]
    cfg, node = settings(KgCoOp)
    assert node is cfg.TRAINER.COOP and node.W == 1.0 and node.CLASS_TOKEN_POSITION == "end"


def test_reads_public_checkpoints_with_their_unused_tensors(clip_model):
    trainer = KgCoOp.__new__(KgCoOp)
    model = build(KgCoOp, clip_model, N_CTX=4)
    trainer._models = {"prompt_learner": model.prompt_learner}
    state = {
        "ctx": torch.full((4, 32), 0.25).half(),
        "bias_vectors": torch.zeros(1, 512),
        "meta_net.linear1.weight": torch.zeros(512, 512),
        "meta_net.linear1.bias": torch.zeros(512),
        "token_prefix": torch.zeros(9, 1, 32),
        "token_suffix": torch.zeros(9, 72, 32),
    }
    trainer.load_learned_state_dict("prompt_learner", state, "model.pth.tar-100")
    assert torch.equal(model.prompt_learner.ctx, torch.full((4, 32), 0.25))
    state["meta_net.linear2.weight"] = torch.zeros(32, 2)  # CoCoOp's
    with pytest.raises(UserError, match="meta_net.linear2.weight"):
        trainer.load_learned_state_dict("prompt_learner", state, "model.pth.tar-10")


def test_settings_that_cannot_be(clip_model):
    _, node = settings(KgCoOp, N_CTX=0)
    with pytest.raises(UserError, match="TRAINER.COOP.N_CTX is 0"):
        KgCoOp.check_settings(KgCoOp, node, clip_model)
