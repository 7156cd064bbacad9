"""IVLP and VPT against plain computations: 77 tokens, one text and one image at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip import CLIP, CLIPConfig, tokenize
from dassl.utils import UserError
from tests.plain import assert_same_gradients, plain_logits, text_feature
from tests.trainers.tiny import NAMES, build, check, class_ids, learned
from trainers.ivlp import IVLP
from trainers.vpt import VPT

SHALLOW = {"PROMPT_DEPTH_TEXT": 1, "PROMPT_DEPTH_VISION": 1}
TEXT_ONLY = {"PROMPT_DEPTH_VISION": 0, "N_CTX_VISION": 0}


def deep(p, tower, depth):
    return [p[f"{tower}.transformer.resblocks.{i}.VPT_shallow"] for i in range(1, depth)]


@pytest.mark.parametrize(
    ("n_text", "n_vision", "depth_text", "depth_vision", "context"),
    [
        (2, 3, 3, 4, "a photo of a"),  # two learned tokens, then "of a"
        (4, 1, 4, 2, "a photo of a"),
        (5, 2, 1, 1, "X X X X X"),  # too many tokens for the words
        (2, 0, 2, 0, "a photo of a"),  # text prompts only
    ],
)
def test_ivlp_equals_the_plain_computation(
    clip_model, batch, n_text, n_vision, depth_text, depth_vision, context
):
    model = build(
        IVLP,
        clip_model,
        N_CTX_TEXT=n_text,
        N_CTX_VISION=n_vision,
        PROMPT_DEPTH_TEXT=depth_text,
        PROMPT_DEPTH_VISION=depth_vision,
    )
    p = learned(model)
    text = [p["prompt_learner.ctx"], *deep(p, "text_encoder", depth_text)]
    vision = [p["image_encoder.VPT"]] if depth_vision else []
    vision += deep(p, "image_encoder", depth_vision)
    assert len(p) == len(text) + len(vision)
    assert {tuple(t.shape) for t in text} == {(n_text, 32)}
    assert {tuple(t.shape) for t in vision} <= {(n_vision, 48)}
    slots = list(range(1, 1 + n_text))
    texts = [text_feature(clip_model, ids, slots, text) for ids in class_ids(context + " {}.")]
    images, labels = batch
    expected = plain_logits(clip_model, images, texts, vision)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients(p, sum(terms.values()), F.cross_entropy(expected, labels))


def test_ivlp_starts_from_words_up_to_four_tokens(clip_model, capsys):
    words = clip_model.token_embedding(tokenize(["a photo of a"])[0, 1:5])
    for n_ctx in (2, 4):
        ctx = build(IVLP, clip_model, N_CTX_TEXT=n_ctx, **SHALLOW).prompt_learner.ctx
        assert torch.equal(ctx, words[:n_ctx])
    assert "ignored" not in capsys.readouterr().out
    random = build(IVLP, clip_model, N_CTX_TEXT=5, **SHALLOW).prompt_learner.ctx
    assert 0.01 < random.std() < 0.03
    assert "CTX_INIT" in capsys.readouterr().out


@pytest.mark.parametrize("depth", [1, 3])
def test_vpt_equals_the_plain_computation(clip_model, batch, depth):
    model = build(VPT, clip_model, N_CTX_VISION=3, PROMPT_DEPTH_VISION=depth)
    p = learned(model)
    vision = [p["image_encoder.VPT"], *deep(p, "image_encoder", depth)]
    assert len(p) == depth and {tuple(t.shape) for t in vision} == {(3, 48)}
    texts = [text_feature(clip_model, ids, [], []) for ids in class_ids("a photo of a {}.")]
    images, labels = batch
    expected = plain_logits(clip_model, images, texts, vision)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients(p, sum(terms.values()), F.cross_entropy(expected, labels))


@pytest.mark.parametrize("trainer", [IVLP, VPT])
def test_fixed_classes_change_no_logit_and_other_classes_can_be_set(clip_model, batch, trainer):
    values = {"PROMPT_DEPTH_VISION": 2}
    model = build(trainer, clip_model, **values | SHALLOW if trainer is IVLP else values).eval()
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
    ("trainer", "values", "message"),
    [
        (
            IVLP,
            {"PROMPT_DEPTH_TEXT": 0},
            r"PROMPT_DEPTH_TEXT: expected a whole number >= 1, got 0",
        ),
        (
            IVLP,
            {"PROMPT_DEPTH_TEXT": 5},
            r"PROMPT_DEPTH_TEXT: expected a whole number in 1\.\.4, got 5",
        ),
        (
            IVLP,
            {"PROMPT_DEPTH_VISION": 5},
            r"IVLP\.PROMPT_DEPTH_VISION: expected a whole number in 0\.\.4, got 5",
        ),
        (
            IVLP,
            {"PROMPT_DEPTH_VISION": -1},
            r"PROMPT_DEPTH_VISION: expected a whole number >= 0, got -1",
        ),
        (IVLP, {"N_CTX_TEXT": 0}, "N_CTX_TEXT: expected a whole number in 1..1000, got 0"),
        (IVLP, {"N_CTX_VISION": 0}, "N_CTX_VISION: expected a whole number >= 1, got 0"),
        (
            VPT,
            {"PROMPT_DEPTH_VISION": 0},
            r"VPT\.PROMPT_DEPTH_VISION: expected a whole number >= 1, got 0",
        ),
        (VPT, {"N_CTX_VISION": 0}, "N_CTX_VISION: expected a whole number in 1..1000, got 0"),
    ],
)
def test_settings_that_cannot_be(clip_model, trainer, values, message):
    fitting = {"PROMPT_DEPTH_TEXT": 2} if trainer is IVLP else {}
    with pytest.raises(UserError, match=message):
        check(trainer, clip_model, **{"PROMPT_DEPTH_VISION": 2, **fitting, **values})


def test_a_resnet_takes_text_prompts_only():
    resnet = CLIP(
        CLIPConfig(
            embed_dim=16,
            image_resolution=32,
            vision_layers=(1, 1, 1, 1),
            vision_width=8,
            vision_patch_size=None,
            context_length=77,
            vocab_size=49408,
            text_width=32,
            text_layers=2,
            head_width=16,
        )
    ).requires_grad_(False)
    with pytest.raises(UserError, match="expected a ViT for vision prompts, got a ResNet"):
        check(IVLP, resnet, **SHALLOW)
    values = {**TEXT_ONLY, "PROMPT_DEPTH_TEXT": 2}
    check(IVLP, resnet, **values)
    model = build(IVLP, resnet.eval(), **values)
    assert set(learned(model)) == {
        "prompt_learner.ctx",
        "text_encoder.transformer.resblocks.1.VPT_shallow",
    }
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
