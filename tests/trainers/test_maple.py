"""MaPLe against a plain computation: 77 tokens, one text and one image at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip import tokenize
from dassl.utils import UserError
from tests.plain import assert_same_gradients
from tests.trainers.plain_methods import plain_maple_logits
from tests.trainers.tiny import NAMES, build, check, learned
from trainers.maple import MaPLe


@pytest.mark.parametrize(
    ("n_ctx", "depth", "context"),
    [
        (2, 3, "a photo of a"),  # two learned tokens, then "of a"
        (4, 4, "a photo of a"),
        (6, 2, "X X X X X X"),  # too many tokens for the words
        (2, 1, "a photo of a"),  # shallow
    ],
)
def test_maple_equals_the_plain_computation(clip_model, batch, n_ctx, depth, context):
    model = build(MaPLe, clip_model, N_CTX=n_ctx, PROMPT_DEPTH=depth)
    learner = model.prompt_learner
    with torch.no_grad():  # they start equal, which would hide a mix-up
        for i, projection in enumerate(learner.compound_prompt_projections):
            projection.weight.mul_(1 + i)
    p = learned(learner)
    images, labels = batch
    expected = plain_maple_logits(clip_model, p, images, depth, context)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients(p, sum(terms.values()), F.cross_entropy(expected, labels))


def test_learnable_tensors_are_those_of_the_released_code(clip_model):
    model = build(MaPLe, clip_model, PROMPT_DEPTH=3)
    assert {n: tuple(p.shape) for n, p in learned(model).items()} == {
        "prompt_learner.ctx": (2, 32),
        "prompt_learner.proj.weight": (48, 32),
        "prompt_learner.proj.bias": (48,),
        "prompt_learner.compound_prompts_text.0": (2, 32),
        "prompt_learner.compound_prompts_text.1": (2, 32),
        "prompt_learner.compound_prompt_projections.0.weight": (48, 32),
        "prompt_learner.compound_prompt_projections.0.bias": (48,),
        "prompt_learner.compound_prompt_projections.1.weight": (48, 32),
        "prompt_learner.compound_prompt_projections.1.bias": (48,),
    }
    words = clip_model.token_embedding(tokenize(["a photo of a"])[0, 1:3])
    assert torch.equal(model.prompt_learner.ctx, words)
    first, second = model.prompt_learner.compound_prompt_projections
    assert torch.equal(first.weight, second.weight)
    first.weight.data.zero_()
    assert second.weight.abs().max() > 0


def test_fixed_classes_change_no_logit_and_other_classes_can_be_set(clip_model, batch):
    model = build(MaPLe, clip_model, PROMPT_DEPTH=3).eval()
    images, _ = batch
    with torch.no_grad():
        free = model(images)
        with model.fixed_classes():
            torch.testing.assert_close(model(images), free)
        model.set_classes([NAMES[2], "green_hexagon"])
        other = model(images)
    assert other.shape == (3, 2)
    torch.testing.assert_close(other[:, 0], free[:, 2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"PROMPT_DEPTH": 0},
            r"TRAINER\.MAPLE\.PROMPT_DEPTH: expected a whole number >= 1, got 0",
        ),
        ({"PROMPT_DEPTH": 5}, r"PROMPT_DEPTH: expected a whole number in 1\.\.4, got 5"),
        ({"N_CTX": 0}, "N_CTX: expected a whole number in 1..1000, got 0"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=message):
        check(MaPLe, clip_model, **{"PROMPT_DEPTH": 2, **values})


def test_prompts_that_do_not_fit_are_an_error(clip_model):
    with pytest.raises(UserError, match="the model takes 77"):
        build(MaPLe, clip_model, N_CTX=75, PROMPT_DEPTH=2)
    with pytest.raises(UserError, match="'photo' has 1 tokens"):
        build(MaPLe, clip_model, CTX_INIT="photo", PROMPT_DEPTH=2)
