"""LP++ against closed forms of its start, its rates and its first steps, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.plain import image_feature, text_feature, unit
from tests.trainers.tiny import TEMPLATES, build, class_ids, load_public
from trainers.lpp import LPpp

LABELS = torch.tensor([0, 0, 1, 1, 1, 2])


@pytest.fixture
def train():
    torch.manual_seed(4)
    images = torch.randn(len(LABELS), 3, 16, 16)
    return [{"img": images[:4], "label": LABELS[:4]}, {"img": images[4:], "label": LABELS[4:]}]


def features_of(clip_model, loader):
    images = torch.cat([batch["img"] for batch in loader])
    return torch.stack([unit(image_feature(clip_model, each, [])) for each in images]).numpy()


def texts_of(clip_model):
    ids = class_ids(TEMPLATES[0])
    return torch.stack([unit(text_feature(clip_model, each, [], [])) for each in ids]).numpy()


def closed_form(f, t, steps, alpha_step, momentum=0.9):
    """Yield prototypes (K, d) and multipliers (K,) after 0, 1, ... steps."""
    f, t, y = f.astype(float), t.astype(float), LABELS.numpy()
    n, k = len(f), len(t)
    w = np.stack([f[y == c].sum(axis=0) for c in range(k)])
    alpha = np.full(k, 250 * np.mean([(f[y == c] @ t[c]).mean() for c in range(k)]))
    rate_w = 4 * n / np.linalg.norm(f, 2) ** 2  # the largest eigenvalue of sum f f^T
    rate_alpha = n / (4 * max(((f @ t[c]) ** 2).sum() for c in range(k)))
    velocity = np.zeros_like(w)
    yield w.copy(), alpha.copy()
    for step in range(1, steps + 1):
        logits = f @ w.T + alpha * (f @ t.T)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - np.eye(k)[y]) / n
        velocity = momentum * velocity + error.T @ f
        w = w - rate_w * velocity
        if step % alpha_step == 0:
            alpha = alpha - rate_alpha * (error * (f @ t.T)).sum(axis=0)
        yield w.copy(), alpha.copy()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_first_steps_are_those_of_the_closed_form(clip_model, train, batch, steps):
    model = build(LPpp, clip_model, TRAIN_EPOCH=steps, ALPHA_STEP=3)
    model.fit(train, None)
    f, t = features_of(clip_model, train), texts_of(clip_model)
    *_, (w, alpha) = closed_form(f, t, steps, 3)
    torch.testing.assert_close(
        model.classifier.weight.double(), torch.tensor(w), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        model.alpha_vec[0].double(), torch.tensor(alpha), rtol=1e-4, atol=1e-4
    )
    x = features_of(clip_model, [{"img": batch[0]}])
    expected = torch.tensor(x @ w.T + alpha * (x @ t.T))
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]).double(), expected, rtol=1e-3, atol=1e-3)


def test_the_last_of_the_best_steps_on_validation_images_is_kept(clip_model, train):
    torch.manual_seed(9)
    images, labels = torch.randn(12, 3, 16, 16), torch.tensor([0, 1, 2] * 4)
    val = [{"img": images, "label": labels}]
    f, t, x = features_of(clip_model, train), texts_of(clip_model), features_of(clip_model, val)
    steps = list(closed_form(f, t, 12, 3))[1:]
    correct = [int(((x @ w.T + a * (x @ t.T)).argmax(1) == labels.numpy()).sum()) for w, a in steps]
    chosen = max(i for i, c in enumerate(correct) if c == max(correct))
    assert 0 < chosen < len(steps) - 1  # neither the first nor the last
    model = build(LPpp, clip_model, TRAIN_EPOCH=12, ALPHA_STEP=3)
    model.fit(train, val)
    w = torch.tensor(steps[chosen][0])
    torch.testing.assert_close(model.classifier.weight.double(), w, rtol=1e-3, atol=1e-4)


def test_a_class_without_images_starts_at_zero(clip_model, train):
    model = build(LPpp, clip_model, TRAIN_EPOCH=1)
    few = [{"img": train[0]["img"], "label": LABELS[:4]}]
    model.fit(few, None)
    assert all(torch.isfinite(tensor).all() for tensor in model.saved().values())


def test_names_and_shapes_are_the_public_ones(clip_model, batch):
    model = build(LPpp, clip_model)
    torch.manual_seed(3)
    state = {"classifier.weight": torch.randn(3, 24), "alpha_vec": torch.randn(1, 3)}
    load_public(model, state, "model.pth.tar-300")
    x, t = features_of(clip_model, [{"img": batch[0]}]), texts_of(clip_model)
    w, alpha = state["classifier.weight"].numpy(), state["alpha_vec"][0].numpy()
    expected = torch.tensor(x @ w.T + alpha * (x @ t.T))
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
