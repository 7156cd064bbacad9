"""ProDA against explicit covariance matrices, and texts encoded one at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip import tokenize
from dassl.utils import UserError
from tests.plain import assert_same_gradients, text_feature, unit
from tests.trainers.tiny import NAMES, build, check, class_ids, learned, load_public
from trainers.proda import ProDA

SMALL = {"N_CTX": 3, "N_PROMPT": 9, "PROMPT_BS": 5}
PATTERNS = [*["{} X X X."] * 2, *["X {} X X."] * 2, *["X X X {}."] * 5]  # 9 // 4, 9 // 4, the rest


def slots_of(pattern, ids):
    """Return the places of the three tokens in a text with a class name and a period."""
    n = int(ids.argmax()) - 5  # tokens of the name
    before = pattern.split("{")[0].count("X")
    return [1 + i if i < before else 1 + n + i for i in range(3)]


def plain_weights(clip_model, ctx, prompts, names=NAMES):
    """Return unit text features (P, K, d) of some of the prompts."""
    rows = []
    for p in prompts:
        features = [
            text_feature(clip_model, ids, slots_of(PATTERNS[p], ids), [ctx[p]])
            for ids in class_ids(PATTERNS[p], names)
        ]
        rows.append(unit(torch.stack(features)))
    return torch.stack(rows)


def plain_images(clip_model, images):
    return unit(clip_model.encode_image(images))


def bound_of(mu, sigma, images, labels, scale):
    """Return the bound from means (K, d) and the whole covariance (K, d, K, d)."""
    total = 0.0
    for z, y in zip(images, labels.tolist(), strict=True):
        terms = []
        for j in range(len(mu)):
            a = sigma[j, :, j] + sigma[y, :, y] - sigma[j, :, y] - sigma[y, :, j]
            terms.append((scale * (z @ mu[j]) + scale**2 / 2 * (z @ a @ z)).exp())
        total = total - ((scale * (z @ mu[y])).exp() / sum(terms)).log()
    return total / len(labels)


def covariance(weights):
    """Return the mean outer product (K, d, K, d) of the centered weights of all classes."""
    centered = weights - weights.mean(dim=0)
    return sum(torch.einsum("jd,ke->jdke", w, w) for w in centered) / len(centered)


def drawn(seed):
    torch.manual_seed(seed)
    return sorted(torch.randperm(9)[:5].tolist())


def test_losses_and_gradients_equal_those_of_explicit_covariances(clip_model, batch):
    model = build(ProDA, clip_model, ALPHA=0.7, **SMALL)
    ctx, (images, labels) = model.prompt_learner.ctx, batch
    with torch.no_grad():
        ctx.mul_(50)  # prompts that differ, so that the covariance matters
    scale = clip_model.logit_scale.exp()
    weights = plain_weights(clip_model, ctx, drawn(4))
    sigma = covariance(weights)
    bound = bound_of(weights.mean(0), sigma, plain_images(clip_model, images), labels, scale)
    ids = tokenize(["X X X."])[0]
    nameless = [unit(text_feature(clip_model, ids, [1, 2, 3], [p])) for p in ctx]
    cosines = [abs(a @ b) for i, a in enumerate(nameless) for b in nameless[:i]]
    torch.manual_seed(4)
    logits, terms = model(images, labels)
    plain_logits = scale * plain_images(clip_model, images) @ weights.mean(0).t()
    torch.testing.assert_close(logits, plain_logits, rtol=1e-5, atol=1e-5)
    assert list(terms) == ["loss_ce", "loss_so"]
    torch.testing.assert_close(terms["loss_ce"], bound, rtol=1e-5, atol=1e-5)
    assert bound > F.cross_entropy(plain_logits, labels) + 1e-3
    orthogonality = 0.7 * sum(cosines) / len(cosines)
    torch.testing.assert_close(terms["loss_so"], orthogonality, rtol=1e-5, atol=1e-6)
    assert_same_gradients({"ctx": ctx}, terms["loss_ce"], bound)
    assert_same_gradients({"ctx": ctx}, terms["loss_so"], orthogonality)


def test_the_bound_is_that_of_the_gaussian_and_holds(clip_model):
    # E exp(s z.(w_j - w_y)), which the bound has in closed form, from many draws of the Gaussian
    model = build(ProDA, clip_model, **SMALL)
    torch.manual_seed(0)
    weights = unit(unit(torch.randn(3, 24)) + 0.1 * torch.randn(5, 3, 24))
    images, labels = unit(torch.randn(2, 24)), torch.tensor([2, 0])
    mu, scale = weights.mean(dim=0), clip_model.logit_scale.exp()
    features = {"image": images, "text": mu, "prompts": weights, "nameless": weights[:, 0]}
    found = model.losses(features, model.logits(features), labels)["loss_ce"]
    draws = mu + torch.einsum("np,pkd->nkd", torch.randn(50_000, 5), weights - mu) / 5**0.5
    logits = scale * torch.einsum("bd,nkd->nbk", images, draws)
    gaps = logits - logits.take_along_dim(labels[None, :, None], dim=2)
    torch.testing.assert_close(
        found, gaps.exp().mean(dim=0).sum(dim=1).log().mean(), rtol=0.01, atol=0
    )
    assert gaps.logsumexp(dim=2).mean() < 0.97 * found


def test_names_shapes_and_start_are_those_of_the_copies(clip_model):
    model = build(ProDA, clip_model)
    assert {n: tuple(t.shape) for n, t in model.saved().items()} == {"ctx": (32, 16, 32)}
    assert learned(model).keys() == {"prompt_learner.ctx"}
    ctx = model.prompt_learner.ctx
    assert ctx.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(ctx.mean().item()) < 0.001


def test_a_public_checkpoint_gives_the_logits_of_the_mean_of_all_prompts(clip_model, batch):
    model = build(ProDA, clip_model, **SMALL).eval()
    torch.manual_seed(3)
    ctx = (0.2 * torch.randn(9, 3, 32)).half()
    state = {"ctx": ctx, "token_prefix": torch.zeros(7, 1, 32)}
    state |= {"token_suffix": torch.zeros(7, 73, 32), "nc_token_prefix": torch.zeros(1, 1, 32)}
    state["nc_token_suffix"] = torch.zeros(1, 73, 32)
    load_public(model, state, "model.pth.tar-100")
    images, _ = batch
    for names in (NAMES, [NAMES[2], "green_hexagon"]):
        model.set_classes(names)
        mu = plain_weights(clip_model, ctx.float(), range(9), names).mean(0)
        expected = clip_model.logit_scale.exp() * plain_images(clip_model, images) @ mu.t()
        with torch.no_grad():
            torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
            with model.fixed_classes():
                torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"this model has no tensor 'meta_net'"):
        load_public(model, {**state, "meta_net": torch.zeros(1)}, "model.pth.tar-100")


def test_training_draws_prompts_and_evaluation_takes_all(clip_model):
    model = build(ProDA, clip_model, **SMALL)
    torch.manual_seed(4)
    features = [model.class_features(model.layers()) for _ in range(2)]
    assert features[0]["prompts"].shape == (5, 3, 24) and features[0]["nameless"].shape == (9, 24)
    assert not torch.equal(features[0]["text"], features[1]["text"])
    torch.manual_seed(4)
    again = model.class_features(model.layers())
    torch.testing.assert_close(again["prompts"], features[0]["prompts"], rtol=0, atol=0)
    with torch.no_grad():
        kept = model.eval().class_features(model.layers())
    weights = plain_weights(clip_model, model.prompt_learner.ctx, range(9))
    assert kept.keys() == {"text"}
    torch.testing.assert_close(kept["text"], weights.mean(0), rtol=1e-5, atol=1e-5)


def test_one_drawn_prompt_gives_the_plain_cross_entropy(clip_model, batch):
    model = build(ProDA, clip_model, **{**SMALL, "PROMPT_BS": 1})
    logits, terms = model(*batch)
    torch.testing.assert_close(terms["loss_ce"], F.cross_entropy(logits, batch[1]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"PROMPT_BS": 10}, r"PROMPT_BS: expected a whole number in 1\.\.9, got 10"),
        ({"PROMPT_BS": 0}, r"PROMPT_BS: expected a whole number >= 1, got 0"),
        ({"N_PROMPT": 1}, r"N_PROMPT: expected a whole number in 2\.\.1000, got 1"),
        ({"N_CTX": 0}, r"N_CTX: expected a whole number in 1\.\.1000, got 0"),
        ({"ALPHA": -0.1}, r"ALPHA: expected a number >= 0, got -0\.1"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=message):
        check(ProDA, clip_model, **{**SMALL, **values})


def test_prompts_that_leave_no_room_for_the_class_name(clip_model):
    with pytest.raises(
        UserError, match=r"^TRAINER\.PRODA\.N_CTX: .* leaves room for 'very large dog'"
    ):
        build(ProDA, clip_model, N_CTX=73)
