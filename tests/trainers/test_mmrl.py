"""MMRL against a plain computation, and which of its read-outs a class has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dassl.utils import UserError
from tests.plain import assert_same_gradients, image_feature, image_parts, text_feature, unit
from tests.trainers.tiny import NAMES, TEMPLATES, build, check, class_ids, learned, load_public
from trainers.mmrl import MMRL

SMALL = {"REP_LAYERS": (2, 4), "REP_DIM": 10, "N_REP_TOKENS": 3}
OTHERS = ["green_hexagon", NAMES[2], "dog"]  # one was trained


def plain_tower(p, which):
    """Return what is done to the layers: tokens at the second and fourth, none before."""
    tokens, name = p["representation_learner.compound_rep_tokens"], "representation_learner."
    maps = f"{name}compound_rep_tokens_{which}proj"
    rows = [tokens @ p[f"{maps}.{i}.weight"].t() + p[f"{maps}.{i}.bias"] for i in range(2)]
    return [None, rows[0], None, rows[1]]


def plain_features(clip_model, p, images, names=NAMES):
    """Return unit features of the class token, of the tokens, and of the texts."""
    vision, text = plain_tower(p, "r2v"), plain_tower(p, "r2t")
    parts = [image_parts(clip_model, image, vision) for image in images]
    first = torch.stack([unit(part["class"]) for part in parts])
    projection = p["image_encoder.proj_rep"]
    second = torch.stack([unit(part["prompts"] @ projection) for part in parts])
    ids = class_ids(TEMPLATES[0], names)
    return first, second, torch.stack([unit(text_feature(clip_model, i, [], text)) for i in ids])


def plain_mmrl_logits(clip_model, p, images, names=NAMES, alpha=0.7):
    first, second, texts = plain_features(clip_model, p, images, names)
    scale = clip_model.logit_scale.exp()
    one, two = scale * first @ texts.t(), scale * second @ texts.t()
    trained = [name in NAMES for name in names]
    return torch.where(torch.tensor(trained), alpha * one + (1 - alpha) * two, one)


def test_logits_losses_and_gradients_equal_the_plain_computation(clip_model, batch):
    model = build(MMRL, clip_model, ALPHA=0.6, REG_WEIGHT=3.0, **SMALL)
    p, (images, labels) = learned(model), batch
    first, second, texts = plain_features(clip_model, p, images)
    scale = clip_model.logit_scale.exp()
    one, two = scale * first @ texts.t(), scale * second @ texts.t()
    frozen = torch.stack([unit(image_feature(clip_model, image, [])) for image in images])
    plain = [unit(text_feature(clip_model, i, [], [])) for i in class_ids(TEMPLATES[0])]
    expected = {
        "loss_ce": 0.6 * F.cross_entropy(one, labels),
        "loss_ce_second": 0.4 * F.cross_entropy(two, labels),
        "loss_image": 3.0 * (1 - (first * frozen).sum(1)).mean(),
        "loss_text": 3.0 * (1 - (texts * torch.stack(plain)).sum(1)).mean(),
    }
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, 0.6 * one + 0.4 * two, rtol=1e-4, atol=1e-4)
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-4, atol=1e-5)
    assert min(expected.values()) > 1e-3
    assert_same_gradients(p, sum(terms.values()), sum(expected.values()))


def test_new_classes_have_the_class_token_alone(clip_model, batch):
    model = build(MMRL, clip_model, **SMALL).eval()
    images, p = batch[0], learned(model)
    with torch.no_grad():
        for names in (NAMES, OTHERS, ["dog", "cat"], NAMES[::-1]):
            model.set_classes(names)
            expected = plain_mmrl_logits(clip_model, p, images, names)
            torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
            with model.fixed_classes():
                torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def public_state():
    shapes = {
        "representation_learner.compound_rep_tokens": (3, 10),
        "image_encoder.proj_rep": (48, 24),
    }
    for i in range(2):
        name = "representation_learner.compound_rep_tokens_"
        shapes |= {f"{name}r2vproj.{i}.weight": (48, 10), f"{name}r2vproj.{i}.bias": (48,)}
        shapes |= {f"{name}r2tproj.{i}.weight": (32, 10), f"{name}r2tproj.{i}.bias": (32,)}
    torch.manual_seed(3)
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("trained", [[], NAMES, [NAMES[2], "tree"]])
def test_a_checkpoint_decides_by_the_names_that_it_holds(clip_model, batch, trained, caplog):
    model = build(MMRL, clip_model, **SMALL).eval()
    state = public_state()
    assert model.saved().keys() == state.keys()
    copies = {
        "image_encoder.conv1.weight": torch.zeros(1),
        "text_encoder.positional_embedding": torch.zeros(1),
        "prompt_embeddings": torch.zeros(1),
    }
    load_public(model, {**state, **copies}, "model.pth.tar-10", trained)
    first, second, texts = plain_features(clip_model, state, batch[0])
    scale = clip_model.logit_scale.exp()
    one, two = scale * first @ texts.t(), scale * second @ texts.t()
    known = torch.tensor([not trained or name in trained for name in NAMES])
    with torch.no_grad():
        expected = torch.where(known, 0.7 * one + 0.3 * two, one)
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="proj_rep"):
        load_public(model, {**state, "image_encoder.proj_rep": torch.zeros(9, 9)}, "model.pth.tar")


def test_all_maps_of_a_tower_start_as_one(clip_model):
    learner = build(MMRL, clip_model, **SMALL).representation_learner
    for maps in (learner.compound_rep_tokens_r2vproj, learner.compound_rep_tokens_r2tproj):
        assert torch.equal(maps[0].weight, maps[1].weight)
    assert learner.compound_rep_tokens.std().item() == pytest.approx(0.02, rel=0.4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"REP_LAYERS": (3, 5)}, r"REP_LAYERS: expected layers in .* 1\.\.4, got \(3, 5\)"),
        ({"REP_LAYERS": (1, 2)}, r"REP_LAYERS: expected layers from 2 on, got \[1, 2\]"),
        ({"ALPHA": 1.1}, r"ALPHA: expected a number in \[0, 1\], got 1\.1"),
        ({"N_REP_TOKENS": 0}, r"N_REP_TOKENS: expected a whole number in 1\.\.1000, got 0"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=message):
        check(MMRL, clip_model, **{**SMALL, **values})
