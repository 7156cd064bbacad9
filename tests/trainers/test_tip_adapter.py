"""Tip-Adapter and Tip-Adapter-F against their closed form, and the files of the public code."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl.utils import UserError
from tests.plain import image_feature, text_feature, unit
from tests.trainers.tiny import NAMES, TEMPLATES, bare_trainer, build, class_ids, load_public
from trainers.tip_adapter import TipAdapter, TipAdapterF, one_in_four

VIEWS = 3
LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 2])
GRID = {"SEARCH_SCALE": (5.1, 4.1), "SEARCH_STEP": (5, 4), "INIT_BETA": 2.0, "INIT_ALPHA": 1.5}


class Augmented:
    """Training images in batches, other views of them in each pass."""

    def __init__(self, passes):
        self.passes = passes  # (views, N, 3, R, R)
        self.count = 0

    def __iter__(self):
        images = self.passes[self.count % len(self.passes)]
        self.count += 1
        for rows in torch.arange(len(images)).split(3):
            yield {"img": images[rows], "label": LABELS[rows]}


@pytest.fixture
def images():
    torch.manual_seed(4)
    return torch.randn(VIEWS, len(LABELS), 3, 16, 16)


@pytest.fixture
def validation():
    torch.manual_seed(6)
    return [{"img": torch.randn(5, 3, 16, 16), "label": torch.tensor([0, 1, 2, 1, 0])}]


def plain_features(clip_model, images):
    return torch.stack([unit(image_feature(clip_model, image, [])) for image in images])


def plain_texts(clip_model):
    ids = class_ids(TEMPLATES[0])
    return torch.stack([unit(text_feature(clip_model, each, [], [])) for each in ids])


def plain_keys(clip_model, images):
    return unit(torch.stack([plain_features(clip_model, view) for view in images]).mean(0))


def plain_tip_logits(clip_model, x, keys, labels, beta, alpha):
    """Score one image and one key at a time: s f w_k + alpha sum of exp(-beta (1 - f k))."""
    logits = clip_model.logit_scale.exp() * x @ plain_texts(clip_model).t()
    for i, feature in enumerate(x):
        for key, label in zip(keys, labels, strict=True):
            logits[i, label] += alpha * torch.exp(-beta * (1 - feature @ key))
    return logits


def plain_search(clip_model, x, y, keys, labels):
    """Try the grid in the public order and keep the first of the best."""
    best = (-1.0, 0.0, 0.0)
    for beta in (0.1, 1.1, 2.1, 3.1, 4.1):
        for alpha in (0.1, 1.1, 2.1, 3.1):
            logits = plain_tip_logits(clip_model, x, keys, labels, beta, alpha)
            accuracy = (logits.argmax(1) == y).float().mean().item()
            if accuracy > best[0]:
                best = (accuracy, beta, alpha)
    return best[1:]


@pytest.mark.parametrize("is_searched_on_training_images", [False, True])
def test_logits_equal_the_closed_form(
    clip_model, batch, images, validation, is_searched_on_training_images
):
    model = build(TipAdapter, clip_model, AUGMENT_EPOCH=VIEWS, **GRID)
    model.fit(Augmented(images), None if is_searched_on_training_images else validation)
    keys, labels = plain_keys(clip_model, images), LABELS
    if is_searched_on_training_images:
        held_out = torch.tensor([1, 4, 6])
        used = torch.tensor([0, 2, 3, 5])
        x, y, keys, labels = keys[held_out], labels[held_out], keys[used], labels[used]
    else:
        x, y = plain_features(clip_model, validation[0]["img"]), validation[0]["label"]
    beta, alpha = plain_search(clip_model, x, y, keys, labels)
    assert (model.beta.item(), model.alpha.item()) == pytest.approx((beta, alpha), rel=1e-5)
    x = plain_features(clip_model, batch[0])
    expected = plain_tip_logits(clip_model, x, keys, labels, beta, alpha)
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    assert (expected - clip_model.logit_scale.exp() * x @ plain_texts(clip_model).t()).min() > 0.01


def test_one_image_of_each_class_leaves_nothing_to_search_on(clip_model, images):
    model = build(TipAdapter, clip_model, **GRID)
    labels = torch.tensor([0, 1, 2])
    loader = [{"img": images[0, :3], "label": labels}]
    model.fit(loader, None)
    assert (model.beta, model.alpha) == (2.0, 1.5) and model.cache_keys.shape[1] == 3


def test_a_quarter_of_each_class_is_marked_and_never_all_of_it():
    labels = torch.tensor([3] * 9 + [0] + [1] * 2 + [2] * 4)
    assert one_in_four(labels).nonzero().flatten().tolist() == [7, 8, 11, 15]
    mixed = torch.tensor([0, 1, 0, 1, 0])
    assert one_in_four(mixed).nonzero().flatten().tolist() == [3, 4]


def test_tuned_keys_are_those_of_a_plain_loop(clip_model, images, validation):
    n_epochs, size = 2, 4
    model = build(TipAdapterF, clip_model, AUGMENT_EPOCH=1, **GRID)
    model.batch_size = size
    model.optim_cfg.merge_from_list(
        ["NAME", "adamw", "LR", 0.01, "WEIGHT_DECAY", 0.01, "EPS", 1e-4, "MAX_EPOCH", n_epochs]
    )
    torch.manual_seed(8)
    model.fit(Augmented(images), validation)

    keys = plain_keys(clip_model, images[:1]).requires_grad_()
    optimizer = torch.optim.AdamW([keys], lr=0.01, weight_decay=0.01, eps=1e-4)
    torch.manual_seed(8)
    step, steps = 0, n_epochs * 2
    for view in images[1 : 1 + n_epochs]:
        x = plain_features(clip_model, view)
        for rows in torch.randperm(len(LABELS)).split(size):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + np.cos(np.pi * step / steps)) / 2
            logits = plain_tip_logits(clip_model, x[rows], keys, LABELS, 2.0, 1.5)
            optimizer.zero_grad()
            F.cross_entropy(logits, LABELS[rows]).backward()
            optimizer.step()
            step += 1
    moved = (keys - plain_keys(clip_model, images[:1])).abs().max()
    assert moved > 0.01
    torch.testing.assert_close(model.cache_keys.t(), keys.detach(), rtol=1e-4, atol=1e-5)
    x, y = plain_features(clip_model, validation[0]["img"]), validation[0]["label"]
    expected = plain_search(clip_model, x, y, keys.detach(), LABELS)
    assert (model.beta.item(), model.alpha.item()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [TipAdapter, TipAdapterF])
def test_public_files_give_the_logits_of_the_closed_form(clip_model, batch, tmp_path, method):
    torch.manual_seed(3)
    keys = unit(torch.randn(24, 6).t()).half()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    if method is TipAdapter:
        torch.save(keys.t(), tmp_path / "keys_2shots.pt")
    else:
        torch.save(torch.nn.Parameter(keys), tmp_path / "best_F_2shots.pt")
    torch.save(F.one_hot(labels).half(), tmp_path / "values_2shots.pt")
    model = build(method, clip_model, **GRID)
    trainer = bare_trainer(model)
    trainer.cfg.DATASET.NUM_SHOTS = 2
    trainer.load_model(str(tmp_path))
    x = plain_features(clip_model, batch[0])
    expected = plain_tip_logits(clip_model, x, keys.float(), labels, 2.0, 1.5)
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    torch.save(F.one_hot(labels, 4).half(), tmp_path / "values_2shots.pt")
    with pytest.raises(UserError, match="cache_values"):
        trainer.load_model(str(tmp_path))
    torch.save({"keys": keys}, tmp_path / "values_2shots.pt")
    with pytest.raises(UserError, match="is not what TipAdapterF?'s code saves"):
        trainer.load_model(str(tmp_path))


def test_a_cache_of_another_size_fits_and_one_of_another_width_does_not(clip_model):
    model = build(TipAdapter, clip_model)
    state = {
        "cache_keys": torch.randn(24, 5),
        "cache_values": torch.rand(5, len(NAMES)),
        "beta": torch.tensor(3.0),
        "alpha": torch.tensor(4.0),
    }
    load_public(model, state, "model.pth.tar-1")
    assert torch.equal(model.cache_keys, state["cache_keys"]) and model.alpha == 4
    state["cache_keys"] = torch.randn(25, 5)
    with pytest.raises(UserError, match="cache_keys"):
        load_public(model, state, "model.pth.tar-1")


def test_it_reloads_and_knows_no_other_classes(run, tmp_path, monkeypatch):
    passes = []
    features = TipAdapter.frozen_features

    def remember(self, loader):
        passes.append(features(self, loader)[0])
        return features(self, loader)

    monkeypatch.setattr(TipAdapter, "frozen_features", remember)
    base = ["DATASET.SUBSAMPLE_CLASSES", "base"]
    code, out = run("TipAdapterF", "base", *base)
    assert code == 0, out
    assert len(passes) == 2 + 2  # of the cache and of the epochs
    for first, second in pairwise(passes):
        assert (first - second).abs().max() > 1e-3  # other crops
    assert "on 2 images with beta" in out  # of 4 images of each class, one
    load = ["--eval-only", "--model-dir", f"{tmp_path}/base"]
    code, out = run("TipAdapterF", "again", *base, flags=load)
    assert code == 0, out
    first, second = (
        json.loads((tmp_path / d / "results.json").read_text())["accuracy"]
        for d in ("base", "again")
    )
    assert first == second
    code, out = run("TipAdapterF", "all", flags=load)
    assert code == 2 and "was trained on other classes: expected 2 classes, got 4" in out
