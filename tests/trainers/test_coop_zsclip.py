"""CoOp and zero-shot CLIP against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clip import tokenize
from dassl.utils import UserError
from tests.plain import assert_same_gradients, plain_logits, text_feature, unit
from tests.trainers.tiny import NAMES, TEMPLATES, build, check, class_ids, learned
from trainers.coop import CoOp
from trainers.zsclip import StandardizedCLIP, ZeroshotCLIP, ZeroshotCLIP2


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_coop_equals_the_plain_computation(clip_model, position, csc, batch):
    model = build(CoOp, clip_model, N_CTX=4, CSC=csc, CLASS_TOKEN_POSITION=position)
    ctx = model.prompt_learner.ctx
    assert ctx.shape == ((3, 4, 32) if csc else (4, 32))
    assert 0.01 < ctx.std() < 0.03
    images, labels = batch
    texts = []
    for k, name in enumerate(n.replace("_", " ") for n in NAMES):
        n = len(name.split())
        text, slots = {
            "end": (f"X X X X {name}.", [1, 2, 3, 4]),
            "middle": (f"X X {name} X X.", [1, 2, 3 + n, 4 + n]),
            "front": (f"{name} X X X X.", [1 + n, 2 + n, 3 + n, 4 + n]),
        }[position]
        prompts = [ctx[k] if csc else ctx]
        texts.append(text_feature(clip_model, tokenize([text])[0], slots, prompts))
    expected = plain_logits(clip_model, images, texts)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients({"ctx": ctx}, sum(terms.values()), F.cross_entropy(expected, labels))


def test_coop_takes_the_number_of_tokens_from_its_words(clip_model, batch):
    model = build(CoOp, clip_model, N_CTX=16, CTX_INIT="a_photo of a")
    words = clip_model.token_embedding(tokenize(["a photo of a"])[0, 1:5])
    assert torch.equal(model.prompt_learner.ctx, words)
    images, _ = batch
    texts = [text_feature(clip_model, ids, [], []) for ids in class_ids("a photo of a {}.")]
    # Before training, it is zero-shot CLIP with these words.
    torch.testing.assert_close(
        model(images), plain_logits(clip_model, images, texts), rtol=1e-4, atol=1e-4
    )


def test_class_specific_contexts_start_from_the_words_of_each_class(clip_model, batch):
    model = build(CoOp, clip_model, CSC=True, CTX_INIT="a photo of a")
    shared = build(CoOp, clip_model, CTX_INIT="a photo of a")
    words = clip_model.token_embedding(tokenize(["a photo of a"])[0, 1:5])
    assert torch.equal(model.prompt_learner.ctx, words.expand(len(NAMES), -1, -1))
    images, labels = batch
    torch.testing.assert_close(model(images), shared(images), rtol=1e-4, atol=1e-4)
    _, terms = model(images, labels)
    (gradient,) = torch.autograd.grad(sum(terms.values()), model.prompt_learner.ctx)
    assert not torch.allclose(gradient[0], gradient[1])  # each class learns its own


def test_zero_shot_uses_the_first_template(clip_model, batch):
    model = build(ZeroshotCLIP, clip_model)
    images, _ = batch
    texts = [text_feature(clip_model, ids, [], []) for ids in class_ids(TEMPLATES[0])]
    expected = plain_logits(clip_model, images, texts)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert not learned(model)


def test_coop_settings_that_cannot_be(clip_model):
    for values, message in (
        ({"CLASS_TOKEN_POSITION": "back"}, "expected one of end, middle, front, got 'back'"),
        ({"N_CTX": 0}, "N_CTX: expected a whole number in 1..1000, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            check(CoOp, clip_model, **values)


def test_zero_shot_2_averages_over_the_templates(clip_model, batch):
    from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

    model = build(ZeroshotCLIP2, clip_model)
    images, _ = batch
    weights = []
    for name in (n.replace("_", " ") for n in NAMES):
        texts = [t.format(name) for t in TEMPLATES] + [t(name) for t in SIMPLE_IMAGENET_TEMPLATES]
        each = [unit(text_feature(clip_model, tokenize([t])[0], [], [])) for t in texts]
        weights.append(torch.stack(each).mean(0))
    expected = plain_logits(clip_model, images, weights)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_standardized_equals_zero_shot_with_the_training_images_own_normalization(run, tmp_path):
    save = ("TEST.SAVE_LOGITS", "True")
    base, new = (("DATASET.SUBSAMPLE_CLASSES", part) for part in ("base", "new"))
    code, out = run("StandardizedCLIP", "base", *base, *save)
    assert code == 0, out
    flags = ["--eval-only", "--model-dir", f"{tmp_path}/base"]
    assert run("StandardizedCLIP", "new", *new, *save, flags=flags)[0] == 0
    # of the base classes' training pictures, which have the model's size
    paths = [path for name in ("red", "green") for path in (tmp_path / "train" / name).iterdir()]
    pixels = np.concatenate([np.array(Image.open(path)).reshape(-1, 3) / 255 for path in paths])
    assert pixels.shape == (8 * 16 * 16, 3)
    own = ("INPUT.PIXEL_MEAN", str(pixels.mean(axis=0).tolist()))
    own += ("INPUT.PIXEL_STD", str(pixels.std(axis=0).tolist()))
    for part, folder in ((base, "base"), (new, "new")):
        assert run("ZeroshotCLIP", f"{folder}_own", *part, *save, *own)[0] == 0
        assert run("ZeroshotCLIP", f"{folder}_clip", *part, *save)[0] == 0
        found, expected, usual = (
            np.load(tmp_path / place / "logits.npz")["logits"]
            for place in (folder, f"{folder}_own", f"{folder}_clip")
        )
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        assert np.abs(found - usual).max() > 0.01
    saved = torch.load(tmp_path / "base/standardization/model.pth.tar-2", weights_only=True)
    assert {name: tuple(t.shape) for name, t in saved["state_dict"].items()} == {
        "mean": (3,),
        "std": (3,),
    }


def test_standardization_refuses_images_of_one_value(clip_model):
    model = build(StandardizedCLIP, clip_model)
    images = torch.rand(2, 3, 16, 16)
    images[:, 1] = 0.3
    with pytest.raises(UserError, match="a color channel that is the same everywhere"):
        model.fit([{"img": images[:1]}, {"img": images[1:]}], None)
