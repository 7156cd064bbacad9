"""LAMM against a plain computation, and whose tokens a class gets."""

from __future__ import annotations

import pytest
import torch

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
from trainers.lamm import LAMM
from trainers.zsclip import ZeroshotCLIP

NEW = ["green_hexagon", "tree", "very old house"]
WEIGHTS = {"TOKEN_LOSS_WEIGHT": 0.7, "FEATURE_LOSS_WEIGHT": 3.0, "LOGIT_LOSS_WEIGHT": 0.4, "T": 1.5}
PATH = "model.pth.tar-50"
NAME_STARTS = 5  # behind [SOS] a photo of a


def plain_texts(clip_model, names, tokens):
    """Encode class names whose first tokens are replaced by ``tokens``: by name, (m, width)."""
    texts = []
    for name, ids in zip(names, class_ids("a photo of a {}.", names), strict=True):
        own = tokens.get(name)
        slots = [] if own is None else [NAME_STARTS + i for i in range(len(own))]
        texts.append(text_feature(clip_model, ids, slots, [] if own is None else [own]))
    return texts


def changed(model):
    """Move the learned tokens away from their start, and return them by class name."""
    torch.manual_seed(7)
    tokens = model.prompt_learner.token_classes
    with torch.no_grad():
        tokens.add_(0.1 * torch.randn(tokens.shape))
    return dict(zip(NAMES, tokens, strict=True))


def assert_logits(model, images, texts):
    expected = plain_logits(model.clip, images, texts)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def public_state(names, clip_model, m=2):
    """Make a state dict as the released code saves it, and the learned tokens by name."""
    embedding = clip_model.token_embedding
    start = torch.stack([embedding(ids[1 : 1 + m]) for ids in class_ids("{}", names)])
    torch.manual_seed(3)
    state = {
        "ctx": embedding(tokenize(["a photo of a"])[0, 1:5]),
        "token_classes": start + 0.1 * torch.randn(start.shape),
        "fix_token": start,
        "token_prefix": torch.zeros(len(names), 1, 32),
        "token_suffix": torch.zeros(len(names), 70, 32),
        "token_suffix_test": torch.zeros(len(names), 72, 32),
    }
    state = {name: tensor.half() for name, tensor in state.items()}
    return state, dict(zip(names, state["token_classes"].float(), strict=True))


def test_logits_losses_and_gradient_equal_the_plain_computation(clip_model, batch):
    cfg, _ = settings(LAMM, **WEIGHTS)
    cfg.DATASET.NUM_SHOTS = 4
    model = LAMM(cfg, clip_model, NAMES, TEMPLATES)
    tokens = changed(model)
    images, labels = batch
    texts, frozen = (plain_texts(clip_model, NAMES, each) for each in (tokens, {}))
    logits, frozen_logits = (plain_logits(clip_model, images, each) for each in (texts, frozen))
    squares = torch.zeros(())
    for ids, own in zip(class_ids("{}"), tokens.values(), strict=True):
        for i, token in enumerate(own):
            squares = squares + (token - clip_model.token_embedding(ids[1 + i])).square().sum()
    cross_entropy = distance = distillation = torch.zeros(())
    for row, frozen_row, y in zip(logits, frozen_logits, labels, strict=True):
        cross_entropy = cross_entropy - row.log_softmax(0)[y] / len(labels)
        distance = distance + (1 - unit(texts[y]) @ unit(frozen[y])) / len(labels)
        target = (row / 1.5).softmax(0)
        terms = target * (frozen_row / 1.5).log_softmax(0)
        distillation = distillation - 1.5**2 * terms.sum() / len(labels)
    expected = {
        "loss_ce": cross_entropy,
        "loss_tokens": 0.7 / 4 * squares,
        "loss_features": 3.0 * distance,
        "loss_logits": 0.4 * distillation,
    }
    found_logits, found = model(images, labels)
    torch.testing.assert_close(found_logits, logits, rtol=1e-4, atol=1e-4)
    assert list(found) == list(expected)
    for name, term in expected.items():
        assert term > 1e-3, name
        torch.testing.assert_close(found[name], term, rtol=1e-4, atol=1e-5)
    assert_same_gradients(learned(model), sum(found.values()), sum(expected.values()))


def test_names_shapes_and_start_are_those_of_the_released_code(clip_model):
    model = build(LAMM, clip_model)
    state = model.saved()
    # "red circle" and "blue square" have two tokens, "very large dog" a third
    expected = torch.stack([clip_model.token_embedding(i[1:3]) for i in class_ids("{}")])
    assert list(learned(model)) == ["prompt_learner.token_classes"]
    assert state.keys() == {"token_classes", "fix_token"}
    assert all(torch.equal(tensor, expected) for tensor in state.values())
    _, node = settings(LAMM)
    weights = (node.TOKEN_LOSS_WEIGHT, node.FEATURE_LOSS_WEIGHT, node.LOGIT_LOSS_WEIGHT, node.T)
    assert weights == (1.0, 1.0, 0.05, 2.0) and node.CTX_INIT == "a photo of a"


@pytest.mark.parametrize("shots", [-1, 1])
def test_all_images_count_as_one_shot(clip_model, batch, shots):
    cfg, _ = settings(LAMM)
    cfg.DATASET.NUM_SHOTS = shots
    model = LAMM(cfg, clip_model, NAMES, TEMPLATES)
    changed(model)
    learner = model.prompt_learner
    squares = (learner.token_classes - learner.fix_token).square().sum()
    torch.testing.assert_close(model(*batch)[1]["loss_tokens"], squares)


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        NAMES[::-1],
        [NAMES[2]],
        [NEW[0], NAMES[1], NEW[1], NAMES[0]],
        [
            "Very  Large_dog",
            "large dog",
            "dog",
            "red",
        ],  # the first is that class, whatever the case
        NEW,
    ],
)
def test_tokens_belong_to_the_names_of_classes(clip_model, batch, names):
    model = build(LAMM, clip_model).eval()
    tokens = changed(model)
    tokens["Very  Large_dog"] = tokens[NAMES[1]]
    model.set_classes(names)
    texts = plain_texts(clip_model, names, tokens)
    assert_logits(model, batch[0], texts)
    with model.fixed_classes():
        assert_logits(model, batch[0], texts)


def test_classes_of_one_name_have_their_tokens_in_order(clip_model, batch):
    cfg, _ = settings(LAMM)
    names = ["red circle", "crane", "crane"]  # one token each
    model = LAMM(cfg, clip_model, names, TEMPLATES).eval()
    own = model.prompt_learner.token_classes
    torch.manual_seed(7)
    own.data.add_(0.1 * torch.randn(own.shape))
    assert own.shape == (3, 1, 32)
    texts = [plain_texts(clip_model, [n], {n: t})[0] for n, t in zip(names, own, strict=True)]
    for chosen in ([0, 1, 2], [1, 0, 2], [1]):
        model.set_classes([names[i] for i in chosen])
        assert_logits(model, batch[0], [texts[i] for i in chosen])


def test_names_that_begin_alike_have_tokens_of_their_own(clip_model, batch):
    cfg, _ = settings(LAMM)
    names = ["red circle", "red square", "red"]
    model = LAMM(cfg, clip_model, names, TEMPLATES).eval()
    own = model.prompt_learner.token_classes
    torch.manual_seed(7)
    own.data.add_(0.1 * torch.randn(own.shape))
    texts = plain_texts(clip_model, names, dict(zip(names, own, strict=True)))
    assert_logits(model, batch[0], texts)


@pytest.mark.parametrize("present", [NAMES, NEW, [*NEW, NAMES[1]], [NAMES[1]], NAMES[::-1]])
def test_a_checkpoint_that_names_its_classes_serves_any(clip_model, batch, present):
    cfg, _ = settings(LAMM)
    model = LAMM(cfg, clip_model, present, TEMPLATES).eval()
    state, tokens = public_state(NAMES, clip_model)
    load_public(model, state, PATH, NAMES)
    assert_logits(model, batch[0], plain_texts(clip_model, present, tokens))
    model.set_classes([*NAMES, "oak"])
    assert_logits(model, batch[0], plain_texts(clip_model, [*NAMES, "oak"], tokens))


@pytest.mark.parametrize("present", [NEW, NAMES[::-1], [*NAMES, "oak"], ["oak"]])
def test_a_public_checkpoint_of_other_classes_gives_zero_shot_clip(clip_model, batch, present):
    cfg, _ = settings(LAMM)
    model = LAMM(cfg, clip_model, present, TEMPLATES).eval()
    load_public(model, public_state(NAMES, clip_model)[0], PATH, [])
    zero_shot = ZeroshotCLIP(settings(ZeroshotCLIP)[0], clip_model, present, ["a photo of a {}."])
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), zero_shot(batch[0]), rtol=1e-5, atol=1e-5)


def test_a_public_checkpoint_of_the_present_classes_gives_the_plain_logits(clip_model, batch):
    model = build(LAMM, clip_model).eval()
    state, tokens = public_state(NAMES, clip_model)
    kept = model.prompt_learner.token_classes
    load_public(model, state, PATH, [])
    assert_logits(model, batch[0], plain_texts(clip_model, NAMES, tokens))
    assert model.prompt_learner.token_classes is kept  # which an optimizer may hold


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({"ctx": torch.zeros(4, 32)}, [], "its 'ctx' is not 'a photo of a', and LAMM does not"),
        ({"ctx": torch.zeros(16, 32)}, NAMES, "its 'ctx' is not 'a photo of a'"),
        ({}, NAMES[:2], "'fix_token' is not how its class names begin"),
        ({}, NEW, "'fix_token' is not how its class names begin"),
        ({"fix_token": torch.zeros(3, 9, 32)}, NAMES, "'fix_token' is not how its class names"),
        ({"fix_token": torch.zeros(3)}, NAMES, r"tensor 'fix_token' has shape \(3,\)"),
        ({"fix_token": None}, NAMES, "tensor 'fix_token' is no tensor"),
        ({"token_classes": torch.zeros(2, 2, 32)}, NAMES, "tensor 'token_classes' has shape"),
        ({"compound": torch.zeros(1)}, NAMES, "this model has no tensor 'compound'"),
    ],
)
def test_checkpoints_that_do_not_fit(clip_model, change, names, message):
    model = build(LAMM, clip_model)
    state = {**public_state(NAMES, clip_model)[0], **change}
    with pytest.raises(UserError, match=rf"^checkpoint 'model.pth.tar-50' does not fit: {message}"):
        load_public(model, state, PATH, names)


def test_training_starts_only_from_tokens_of_the_same_classes(run, tmp_path):
    base, new = (("DATASET.SUBSAMPLE_CLASSES", subset) for subset in ("base", "new"))
    assert run("LAMM", "base", *base, epochs=1)[0] == 0
    weights = str(tmp_path / "base/prompt_learner/model.pth.tar-1")
    code, out = run("LAMM", "new", *new, "MODEL.INIT_WEIGHTS", weights, epochs=1)
    assert code == 2
    assert f"'{weights}' was trained on other classes: expected 'red' as class 0, got 'blue'" in out
    assert run("LAMM", "further", *base, "MODEL.INIT_WEIGHTS", weights, epochs=1)[0] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"T": 0.0}, r"T: expected a number > 0, got 0\.0"),
        ({"TOKEN_LOSS_WEIGHT": -0.1}, r"TOKEN_LOSS_WEIGHT: expected a number >= 0, got -0\.1"),
        ({"CTX_INIT": 3}, "CTX_INIT: expected text in one line, True or False, got 3"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=f"TRAINER.LAMM.{message}"):
        check(LAMM, clip_model, **values)
