"""CoCoOp against a plain computation: one image, one class, 77 tokens at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import trainers.base as base
import trainers.cocoop as cocoop
from clip import CLIP, tokenize
from dassl.utils import UserError
from tests.plain import assert_same_gradients
from tests.trainers.plain_methods import plain_cocoop_logits
from tests.trainers.tiny import NAMES, build, check, learned, load_public, tiny_clip
from trainers.cocoop import CoCoOp


@pytest.mark.parametrize("ctx_init", ["", "a photo of a"])
def test_logits_and_gradients_equal_the_plain_computation(clip_model, monkeypatch, ctx_init, batch):
    # A sixteenth of the tiny model's 24 features would be a single unit, which may be dead.
    monkeypatch.setattr(cocoop, "REDUCTION", 4)
    model = build(CoCoOp, clip_model, N_CTX=3, CTX_INIT=ctx_init)
    images, labels = batch
    p = learned(model.prompt_learner)
    expected = plain_cocoop_logits(clip_model, p, images, NAMES, ctx_init or "X X X")
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients(p, sum(terms.values()), F.cross_entropy(expected, labels))


def test_learnable_tensors_have_the_names_and_shapes_of_public_checkpoints():
    model = build(CoCoOp, tiny_clip(), CTX_INIT="a_photo of a")
    shapes = {n: tuple(p.shape) for n, p in learned(model).items()}
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
    p = learned(model.prompt_learner)
    state = {name: torch.full(tensor.shape, 0.25).half() for name, tensor in p.items()}
    state["token_prefix"] = torch.zeros(9, 1, 32)
    state["token_suffix"] = torch.zeros(9, 72, 32)
    load_public(model, state, "model.pth.tar-10")
    assert all((tensor == 0.25).all() for tensor in p.values())


def test_other_classes_with_the_same_context(clip_model, batch):
    model = build(CoCoOp, clip_model, N_CTX=2)
    images, _ = batch
    names = ["cat", "small_red bus", "fern", "pot"]
    model.set_classes(names)
    with model.fixed_classes(), torch.no_grad():
        logits = model(images)
    p = learned(model.prompt_learner)
    expected = plain_cocoop_logits(clip_model, p, images, names, "X X")
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


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
    # One image against one class is the smallest possible case.
    least = model.tokens.ids.shape[1]
    assert max(passes) <= max(limit, least)
    assert len(passes) > 1


def test_settings_that_cannot_be(clip_model):
    with pytest.raises(
        UserError, match="TRAINER.COCOOP.N_CTX: expected a whole number in 1..1000, got 0"
    ):
        check(CoCoOp, clip_model, N_CTX=0)
