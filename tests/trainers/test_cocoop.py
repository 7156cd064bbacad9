"""CoCoOp against a plain computation: one image, one class, 77 tokens at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import trainers.base as base
import trainers.cocoop as cocoop
from clip import CLIP, tokenize
from dassl.utils import UserError
from tests.plain import image_feature, text_feature
from tests.trainers.tiny import NAMES, build, settings, tiny_clip
from trainers.cocoop import CoCoOp


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip()


def unit(x):
    return x / x.norm()


def batch():
    torch.manual_seed(5)
    return torch.randn(3, 3, 16, 16), torch.tensor([0, 2, 1])


def plain_logits(model, clip_model, images, names, words):
    p = dict(model.prompt_learner.named_parameters())
    m = len(p["ctx"])
    rows = []
    for image in images:
        v = unit(image_feature(clip_model, image, []))
        hidden = p["meta_net.linear1.weight"] @ v + p["meta_net.linear1.bias"]
        shift = p["meta_net.linear2.weight"] @ hidden.clamp(min=0) + p["meta_net.linear2.bias"]
        context = torch.stack([token + shift for token in p["ctx"]])
        row = []
        for name in names:
            ids = tokenize([f"{words} {name.replace('_', ' ')}."])[0]
            w = unit(text_feature(clip_model, ids, list(range(1, 1 + m)), [context]))
            row.append(clip_model.logit_scale.exp() * (v @ w))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("ctx_init", ["", "a photo of a"])
def test_logits_and_gradients_equal_the_plain_computation(clip_model, monkeypatch, ctx_init):
    # Of the tiny model's 24 features a sixteenth would be one unit, and that may be a dead one.
    monkeypatch.setattr(cocoop, "REDUCTION", 4)
    model = build(CoCoOp, clip_model, N_CTX=3, CTX_INIT=ctx_init)
    images, labels = batch()
    expected = plain_logits(model, clip_model, images, NAMES, ctx_init or "X X X")
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    learned = dict(model.prompt_learner.named_parameters())
    fast = torch.autograd.grad(sum(terms.values()), learned.values())
    slow = torch.autograd.grad(F.cross_entropy(expected, labels), learned.values())
    for name, a, b in zip(learned, fast, slow, strict=True):
        assert b.abs().max() > 0, name
        assert (a - b).abs().max() <= 1e-3 * b.abs().max(), name


def test_learnable_tensors_have_the_names_and_shapes_of_public_checkpoints():
    model = build(CoCoOp, tiny_clip(), CTX_INIT="a_photo of a")
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert shapes == {
        "prompt_learner.ctx": (4, 32),
        "prompt_learner.meta_net.linear1.weight": (24 // 16, 24),
        "prompt_learner.meta_net.linear1.bias": (24 // 16,),
        "prompt_learner.meta_net.linear2.weight": (32, 24 // 16),
        "prompt_learner.meta_net.linear2.bias": (32,),
    }
    words = model.clip.token_embedding(tokenize(["a photo of a"])[0, 1:5])
    assert torch.equal(model.prompt_learner.ctx, words)


def test_reads_public_checkpoints_of_other_classes(clip_model):
    model = build(CoCoOp, clip_model, N_CTX=4)
    trainer = CoCoOp.__new__(CoCoOp)
    trainer._models = {"prompt_learner": model.prompt_learner}
    learned = dict(model.prompt_learner.named_parameters())
    state = {name: torch.full(p.shape, 0.25).half() for name, p in learned.items()}
    state["token_prefix"] = torch.zeros(9, 1, 32)
    state["token_suffix"] = torch.zeros(9, 72, 32)
    trainer.load_learned_state_dict("prompt_learner", state, "model.pth.tar-10")
    assert all((p == 0.25).all() for p in learned.values())


def test_other_classes_with_the_same_context(clip_model):
    model = build(CoCoOp, clip_model, N_CTX=2)
    images, _ = batch()
    names = ["cat", "small_red bus", "fern", "pot"]
    model.set_classes(names)
    with model.fixed_classes(), torch.no_grad():
        logits = model(images)
    torch.testing.assert_close(
        logits, plain_logits(model, clip_model, images, names, "X X"), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("limit", [1, 12, 40])
def test_text_tower_gets_no_more_tokens_at_once_than_the_limit(clip_model, monkeypatch, limit):
    model = build(CoCoOp, clip_model, N_CTX=2)
    names = [f"thing number {word}" for word in "one two three four five six seven".split()]
    model.set_classes(names)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = model(images)
    passes = []
    encode_text = CLIP.encode_text

    def spy(self, tokens, prompts):
        n_images, n_classes = len(prompts[0]), len(tokens.ids)
        length = tokens.ids.shape[1] - tokens.prefix
        passes.append(n_images * (tokens.prefix + n_classes * length))
        return encode_text(self, tokens, prompts)

    monkeypatch.setattr(CLIP, "encode_text", spy)
    monkeypatch.setattr(base, "TEXT_TOKENS", limit)
    with torch.no_grad():
        torch.testing.assert_close(model(images), whole, rtol=1e-4, atol=1e-4)
    # One image against one class is the least there is.
    least = model.tokens.ids.shape[1]
    assert max(passes) <= max(limit, least)
    assert len(passes) > 1


def test_settings_that_cannot_be(clip_model):
    _, node = settings(CoCoOp, N_CTX=0)
    with pytest.raises(UserError, match="TRAINER.COCOOP.N_CTX is 0"):
        CoCoOp.check_settings(CoCoOp, node, clip_model)
