"""TCP against a plain computation: one image, one class, 77 tokens at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip import tokenize
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
from trainers.tcp import TCP

SMALL = {"N_CTX": 3, "CLASS_LAYER": 3}


def plain_tcp(clip_model, p, images, names=NAMES, frozen=TEMPLATES[0], prompt="a photo of a {}."):
    """Return logits, and the mean distance between the learned and the frozen text features."""
    texts, distances = [], []
    pairs = zip(class_ids(frozen, names), class_ids(prompt, names), strict=True)
    for frozen_ids, ids in pairs:
        w = unit(text_feature(clip_model, frozen_ids, [], []))
        h = p["meta_net.linear1.weight"] @ w + p["meta_net.linear1.bias"]
        h = h * torch.sigmoid(1.702 * h)
        own = p["meta_net.linear2.weight"] @ h + p["meta_net.linear2.bias"]
        own = torch.stack(own.split(32))
        slots = list(range(1, 1 + len(own)))
        texts.append(text_feature(clip_model, ids, slots, [p["ctx"], None, own]))
        distances.append(1 - unit(texts[-1]) @ w)
    return plain_logits(clip_model, images, texts), sum(distances) / len(distances)


def test_logits_losses_and_gradients_equal_the_plain_computation(clip_model, batch):
    model = build(TCP, clip_model, W=5.0, **SMALL)
    p = learned(model.prompt_learner)
    images, labels = batch
    expected, distance = plain_tcp(clip_model, p, images)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["loss_kg"], 5.0 * distance, rtol=1e-4, atol=1e-5)
    loss = F.cross_entropy(expected, labels) + 5.0 * distance
    assert_same_gradients(p, sum(terms.values()), loss)


def test_names_shapes_and_start_are_those_of_the_released_code(clip_model):
    model = build(TCP, clip_model, N_CTX=4, CLASS_LAYER=4)
    found = {name: tuple(t.shape) for name, t in model.saved().items()}
    assert found == {
        "ctx": (4, 32),
        "meta_net.linear1.weight": (6, 24),  # a quarter of the joint width
        "meta_net.linear1.bias": (6,),
        "meta_net.linear2.weight": (4 * 32, 6),
        "meta_net.linear2.bias": (4 * 32,),
    }
    assert 0.01 < model.prompt_learner.ctx.std() < 0.03
    for layer, inputs in (("linear1", 24), ("linear2", 6)):  # as nn.Linear starts
        weight = model.saved()[f"meta_net.{layer}.weight"]
        assert 0.8 * inputs**-0.5 < weight.abs().max() <= inputs**-0.5
    assert settings(TCP)[1].W == 8.0 and settings(TCP)[1].CLASS_LAYER == 9


def test_a_public_checkpoint_gives_the_logits_of_the_plain_computation(clip_model, batch):
    model = build(TCP, clip_model, **SMALL)
    torch.manual_seed(3)
    state = {n: (0.2 * torch.randn(t.shape)).half() for n, t in model.saved().items()}
    expected, _ = plain_tcp(clip_model, {n: t.float() for n, t in state.items()}, batch[0])
    state["token_prefix"] = torch.zeros(9, 1, 32).half()
    state["token_suffix"] = torch.zeros(9, 72, 32).half()
    load_public(model, state, "model.pth.tar-50")
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    state["bias_vectors"] = torch.zeros(1, 512)  # KgCoOp's
    with pytest.raises(UserError, match="this model has no tensor 'bias_vectors'"):
        load_public(model, state, "model.pth.tar-50")


def test_fixed_classes_change_no_logit_and_other_classes_can_be_set(clip_model, batch):
    model = build(TCP, clip_model, **SMALL).eval()
    images, _ = batch
    names = [NAMES[2], "green_hexagon"]
    with torch.no_grad():
        free = model(images)
        with model.fixed_classes():
            torch.testing.assert_close(model(images), free)
        model.set_classes(names)
        expected, _ = plain_tcp(clip_model, learned(model.prompt_learner), images, names)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dataset", "template", "frozen", "prompt"),
    [
        ("Own", "a photo of a {}, a type of pet.", None, "X X X X {}, a type of pet."),
        ("Own", "a photo of a person doing {}.", None, "X X X X person doing {}."),
        ("Own", "a centered satellite photo of {}.", None, "X X X X of {}."),
        ("Own", "{}", None, "X X X X {}"),
        # in the released code
        ("EuroSAT", "any {}", "a centered satellite photo of {}.", "X X X X {}."),
        ("FGVCAircraft", "any {}", "a photo of an aircraft {}.", "X X X X {}, a type of aircraft."),
        (
            "DescribableTextures",
            "any {}",
            "a photo of a {}, a type of texture.",
            "X X X X {} texture.",
        ),
        ("StanfordCars", "any {}", "a photo of a {}.", "X X X X {}, a type of car"),
        ("Food101", "any {}", "a photo of a {}, a type of food.", "X X X X {}, a type of food."),
    ],
)
def test_the_words_around_prompts_and_class_names(
    clip_model, batch, dataset, template, frozen, prompt
):
    cfg, node = settings(TCP, N_CTX=4, CLASS_LAYER=3)
    cfg.DATASET.NAME = dataset
    model = TCP(cfg, clip_model, NAMES, [template, "a drawing of a {}."])
    p = learned(model.prompt_learner)
    expected, _ = plain_tcp(clip_model, p, batch[0], frozen=frozen or template, prompt=prompt)
    torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)


def test_words_to_start_from_say_how_many_prompts_there_are(clip_model):
    model = build(TCP, clip_model, CTX_INIT="a fine drawing", CLASS_LAYER=2)
    words = clip_model.token_embedding(tokenize(["a fine drawing"])[0, 1:4])
    assert torch.equal(model.prompt_learner.ctx, words)
    assert model.saved()["meta_net.linear2.bias"].shape == (3 * 32,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"CLASS_LAYER": 1}, r"CLASS_LAYER: expected a whole number >= 2, got 1"),
        ({"CLASS_LAYER": 5}, r"CLASS_LAYER: expected a whole number in 2\.\.4, got 5"),
        ({"CSC": True}, r"CSC: expected False with TCP, got True"),
        ({"CLASS_TOKEN_POSITION": "front"}, r"CLASS_TOKEN_POSITION: expected one of end, got"),
        ({"W": -1.0}, r"W: expected a number >= 0, got -1\.0"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=f"TRAINER.COOP.{message}"):
        check(TCP, clip_model, **{**SMALL, **values})
