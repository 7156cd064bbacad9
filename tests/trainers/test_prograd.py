"""ProGrad against a plain computation: two gradients, and what is left of one."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from dassl.engine.optimize import Update
from dassl.utils import UserError
from tests.plain import plain_logits, text_feature
from tests.trainers.tiny import NAMES, build, class_ids, load_public, settings
from trainers.prograd import ProGrad, words_of

LR = 0.3


def plain_prograd(model, clip_model, images, words):
    """Return the logits, and those of the frozen texts."""
    ctx = model.prompt_learner.ctx
    slots = list(range(1, 1 + len(ctx)))
    texts = [text_feature(clip_model, i, slots, [ctx]) for i in class_ids(words + " {}.")]
    frozen = [text_feature(clip_model, i, [], []) for i in class_ids("a photo of a {}.")]
    return plain_logits(clip_model, images, texts), plain_logits(clip_model, images, frozen)


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu")])
@pytest.mark.parametrize("conflicts", [False, True])
def test_a_step_leaves_out_what_conflicts_with_the_frozen_logits(
    clip_model, batch, conflicts, scaler
):
    model = build(ProGrad, clip_model, N_CTX=6)
    model.loss.T, model.loss.LAMBDA = 2.0, 0.75
    images, _ = batch
    ctx = model.prompt_learner.ctx
    logits, frozen = plain_prograd(model, clip_model, images, "X X X X X X")
    target = (frozen / 2).softmax(1)
    distance = -4 * (target * (logits / 2).log_softmax(1)).sum(1).mean()
    (known,) = torch.autograd.grad(distance, ctx, retain_graph=True)
    d = known / known.norm()
    for labels in map(torch.tensor, product(range(len(NAMES)), repeat=len(images))):
        (g,) = torch.autograd.grad(F.cross_entropy(logits, labels), ctx, retain_graph=True)
        along = (g * d).sum()
        if (along < -0.1) if conflicts else (along > 0.1):
            break
    assert (along < -0.1) if conflicts else (along > 0.1)
    expected = g - 0.75 * along * d if conflicts else g

    start = ctx.detach().clone()
    update = Update(torch.optim.SGD([ctx], lr=LR), scaler)
    found, terms = model.step(images, labels, update)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["loss_kd"], distance, rtol=1e-4, atol=1e-5)
    moved = (start - ctx) / LR
    assert (moved - expected).abs().max() <= 1e-3 * expected.abs().max()
    update(model(images, labels)[1]["loss_ce"])  # a later step of another kind is whole again
    assert not ctx._backward_hooks


def test_a_context_of_the_template_s_words_ends_with_them(clip_model):
    cfg, _ = settings(ProGrad, N_CTX=9, CTX_INIT=True)
    model = ProGrad(cfg, clip_model, NAMES, ["a photo of a {}, a type of pet."])
    words = clip_model.token_embedding.weight[class_ids("a type of pet, a photo of a {}.")[0][1:10]]
    assert torch.equal(model.prompt_learner.ctx, words)
    model = build(ProGrad, clip_model, N_CTX=6, CTX_INIT=True)
    words = clip_model.token_embedding.weight[class_ids("a photo of a {}.")[0][1:5]]
    assert torch.equal(model.prompt_learner.ctx[2:], words)
    assert model.prompt_learner.ctx[:2].abs().max() == 0
    with pytest.raises(UserError, match=r"COOP\.N_CTX: expected at least 4, .* got 3"):
        build(ProGrad, clip_model, N_CTX=3, CTX_INIT=True)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a photo of a {}.", "a photo of a"),
        ("a photo of {}, a type of food.", "a type of food, a photo of"),
        ("{} texture.", "a texture of"),
        ("a centered satellite photo of {}.", "a centered satellite photo of"),
        ("{}", ""),
    ],
)
def test_words_stand_in_front_of_the_class(template, words):
    assert words_of(template) == words


def test_a_public_checkpoint_gives_the_logits_of_the_plain_computation(clip_model, batch):
    model = build(ProGrad, clip_model, N_CTX=6, CTX_INIT=True)
    torch.manual_seed(3)
    state = {
        "ctx": 0.2 * torch.randn(6, 32),
        "token_prefix": torch.zeros(9, 1, 32),
        "token_suffix": torch.zeros(9, 70, 32),
    }
    load_public(model, state, "model.pth.tar-100")
    expected, _ = plain_prograd(model, clip_model, batch[0], "X X a photo of a")
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
