"""CoOp and zero-shot CLIP against plain computations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip import tokenize
from dassl.utils import UserError
from tests.plain import image_feature, text_feature
from tests.trainers.tiny import NAMES, TEMPLATES, build, settings, tiny_clip
from trainers.coop import CoOp
from trainers.zsclip import ZeroshotCLIP, ZeroshotCLIP2


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip()


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def batch():
    torch.manual_seed(5)
    return torch.randn(3, 3, 16, 16), torch.tensor([0, 2, 1])


def plain_logits(clip_model, images, texts):
    """``texts``: (ids, prompt positions, prompts) of each class."""
    w = torch.stack([unit(text_feature(clip_model, *text)) for text in texts])
    v = torch.stack([unit(image_feature(clip_model, image, [])) for image in images])
    return clip_model.logit_scale.exp() * v @ w.t()


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_coop_equals_the_plain_computation(clip_model, position, csc):
    model = build(CoOp, clip_model, N_CTX=4, CSC=csc, CLASS_TOKEN_POSITION=position)
    ctx = model.prompt_learner.ctx
    assert ctx.shape == ((3, 4, 32) if csc else (4, 32))
    assert 0.01 < ctx.std() < 0.03
    images, labels = batch()
    texts = []
    for k, name in enumerate(n.replace("_", " ") for n in NAMES):
        n = len(name.split())
        text, slots = {
            "end": (f"X X X X {name}.", [1, 2, 3, 4]),
            "middle": (f"X X {name} X X.", [1, 2, 3 + n, 4 + n]),
            "front": (f"{name} X X X X.", [1 + n, 2 + n, 3 + n, 4 + n]),
        }[position]
        texts.append((tokenize([text])[0], slots, [ctx[k] if csc else ctx]))
    expected = plain_logits(clip_model, images, texts)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    (fast,) = torch.autograd.grad(sum(terms.values()), ctx)
    (slow,) = torch.autograd.grad(F.cross_entropy(expected, labels), ctx)
    assert slow.abs().max() > 0
    assert (fast - slow).abs().max() <= 1e-3 * slow.abs().max()


def test_coop_takes_the_number_of_tokens_from_its_words(clip_model):
    model = build(CoOp, clip_model, N_CTX=16, CTX_INIT="a_photo of a")
    words = clip_model.token_embedding(tokenize(["a photo of a"])[0, 1:5])
    assert torch.equal(model.prompt_learner.ctx, words)
    images, _ = batch()
    texts = [(tokenize([f"a photo of a {n.replace('_', ' ')}."])[0], [], []) for n in NAMES]
    # Untrained, it is zero-shot CLIP with these words.
    torch.testing.assert_close(
        model(images), plain_logits(clip_model, images, texts), rtol=1e-4, atol=1e-4
    )


def test_zero_shot_uses_the_first_template(clip_model):
    model = build(ZeroshotCLIP, clip_model)
    images, _ = batch()
    texts = [(tokenize([TEMPLATES[0].format(n.replace("_", " "))])[0], [], []) for n in NAMES]
    expected = plain_logits(clip_model, images, texts)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert not [p for p in model.parameters() if p.requires_grad]


def test_coop_settings_that_cannot_be(clip_model):
    for values, message in (
        ({"CLASS_TOKEN_POSITION": "back"}, "allowed: end, middle, front"),
        ({"N_CTX": 0}, "N_CTX is 0"),
    ):
        _, node = settings(CoOp, **values)
        with pytest.raises(UserError, match=message):
            CoOp.check_settings(CoOp, node, clip_model)


def test_zero_shot_2_averages_over_the_templates(clip_model):
    from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

    model = build(ZeroshotCLIP2, clip_model)
    images, _ = batch()
    weights = []
    for name in (n.replace("_", " ") for n in NAMES):
        texts = [t.format(name) for t in TEMPLATES] + [t(name) for t in SIMPLE_IMAGENET_TEMPLATES]
        each = [unit(text_feature(clip_model, tokenize([t])[0], [], [])) for t in texts]
        weights.append(unit(torch.stack(each).mean(0)))
    features = torch.stack([unit(image_feature(clip_model, image, [])) for image in images])
    expected = clip_model.logit_scale.exp() * features @ torch.stack(weights).t()
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
