"""MMA against a plain computation: one image, one class, 77 tokens at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip import Layer
from dassl.utils import UserError
from tests.plain import plain_logits, text_feature
from tests.trainers.tiny import NAMES, build, check, class_ids, learned, load_public
from trainers.mma import MMA

SMALL = {"TEXT_CTX_INIT": "a photo of a", "ADAPTER_START": 3, "ADAPTER_END": 4, "ADAPTER_DIM": 6}
SCALE = 0.05


def plain_layers(p, tower):
    """Return blocks 3 and 4, counted from 1, of a tower."""

    def branch(i):
        def y(h):
            h = (h @ p[f"{tower}.{i}.down.0.weight"].t() + p[f"{tower}.{i}.down.0.bias"]).relu()
            h = h @ p[f"shared_adapter.{i}.0.weight"].t() + p[f"shared_adapter.{i}.0.bias"]
            up = h.relu() @ p[f"{tower}.{i}.up.weight"].t() + p[f"{tower}.{i}.up.bias"]
            return SCALE * up

        return y

    return [None, None, Layer(block=branch(3)), Layer(block=branch(4))]


def plain_mma_logits(clip_model, p, images, names=NAMES):
    text = plain_layers(p, "text_adapter")
    texts = [text_feature(clip_model, i, [], text) for i in class_ids("a photo of a {}.", names)]
    return plain_logits(clip_model, images, texts, plain_layers(p, "visual_adapter"))


def test_logits_and_gradients_equal_the_plain_computation(clip_model, batch):
    model = build(MMA, clip_model, ADAPTER_SCALE=SCALE, **SMALL)
    p = learned(model.adapter_learner)
    with torch.no_grad():  # biases start at zero, which would hide a missing one
        for name, tensor in p.items():
            if name.endswith("bias"):
                tensor.normal_(0, 0.3)
    images, labels = batch
    expected = plain_mma_logits(clip_model, p, images)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    fast = torch.autograd.grad(sum(terms.values()), p.values())
    slow = torch.autograd.grad(F.cross_entropy(expected, labels), p.values())
    for name, a, b in zip(p, fast, slow, strict=True):
        assert b.abs().max() > 0, name
        # The branch learns as if its scale were 1; everything below it gets the true gradient.
        b = b / SCALE
        assert (a - b).abs().max() <= 1e-3 * b.abs().max(), name


def test_names_shapes_and_start_are_those_of_the_released_code(clip_model):
    model = build(MMA, clip_model, **SMALL)
    expected = {}
    for i in (3, 4):
        for tower, width in (("text_adapter", 32), ("visual_adapter", 48)):
            expected |= {
                f"{tower}.{i}.down.0.weight": (6, width),
                f"{tower}.{i}.down.0.bias": (6,),
                f"{tower}.{i}.up.weight": (width, 6),
                f"{tower}.{i}.up.bias": (width,),
            }
        expected |= {f"shared_adapter.{i}.0.weight": (6, 6), f"shared_adapter.{i}.0.bias": (6,)}
    found = {name: tuple(t.shape) for name, t in learned(model.adapter_learner).items()}
    assert found == expected
    assert model.saved().keys() == expected.keys()
    for name, tensor in learned(model.adapter_learner).items():
        if name.endswith("bias"):
            assert tensor.abs().max() == 0
        else:  # kaiming, fan out
            assert tensor.std().item() == pytest.approx((2 / len(tensor)) ** 0.5, rel=0.4), name


def test_a_public_checkpoint_gives_the_logits_of_the_plain_computation(clip_model, batch):
    model = build(MMA, clip_model, ADAPTER_SCALE=SCALE, **SMALL)
    torch.manual_seed(3)
    state = {n: (0.2 * torch.randn(t.shape)).half() for n, t in model.saved().items()}
    expected = plain_mma_logits(clip_model, {n: t.float() for n, t in state.items()}, batch[0])
    state["token_embedding"] = torch.zeros(9, 77, 32)
    state["tokenized_prompts"] = torch.zeros(9, 77, dtype=torch.long)
    load_public(model, state, "model.pth.tar-5")
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    state["text_adapter.2.up.bias"] = torch.zeros(32)
    with pytest.raises(UserError, match=r"this model has no tensor 'text_adapter\.2\.up\.bias'"):
        load_public(model, state, "model.pth.tar-5")


def test_fixed_classes_change_no_logit_and_other_classes_can_be_set(clip_model, batch):
    model = build(MMA, clip_model, ADAPTER_SCALE=SCALE, **SMALL).eval()
    images, _ = batch
    names = [NAMES[2], "green_hexagon"]
    with torch.no_grad():
        free = model(images)
        with model.fixed_classes():
            torch.testing.assert_close(model(images), free)
        model.set_classes(names)
        expected = plain_mma_logits(clip_model, learned(model.adapter_learner), images, names)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ADAPTER_START": 0}, r"ADAPTER_START: expected a whole number >= 1, got 0"),
        ({"ADAPTER_END": 2}, r"ADAPTER_END: expected a whole number in 3\.\.4, got 2"),
        ({"ADAPTER_END": 5}, r"ADAPTER_END: expected a whole number in 3\.\.4, got 5"),
        ({"ADAPTER_DIM": 0}, "ADAPTER_DIM: expected a whole number in 1..10000, got 0"),
        ({"ADAPTER_SCALE": 0.0}, r"ADAPTER_SCALE: expected a number > 0, got 0\.0"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=message):
        check(MMA, clip_model, **{**SMALL, **values})
