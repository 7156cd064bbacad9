"""HISF against a plain computation: one class, one token, one label at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clip import tokenize
from dassl.config import get_cfg_default, merge_from_file
from dassl.optim import build_optimizer
from dassl.utils import UserError
from tests.plain import assert_same_gradients, image_feature, text_feature, unit
from tests.trainers.tiny import (
    NAMES,
    TEMPLATES,
    build,
    check,
    class_ids,
    learned,
    settings,
    tiny_clip,
)
from trainers.hisf import HISF

pytestmark = pytest.mark.tiny(layers=3)
ROOT = Path(__file__).parents[2]
SMALL = {"N_CTX": 2, "FUSION_LAYERS": (1, 3), "LAMBDA_LE": 0.3, "LAMBDA_SA": 0.7}


def plain_labels(model, clip_model, names):
    if model.settings.LABELS == "features":
        return [unit(text_feature(clip_model, i, [], [])) for i in class_ids(TEMPLATES[0], names)]
    words = [ids[1 : int(ids.argmax())] for ids in class_ids("{}", names)]
    return [sum(clip_model.token_embedding.weight[i] for i in ids) / len(ids) for ids in words]


def plain_attention(p, name, token, labels):
    """Compute eq. 3, 4 and 6 on one token: a weight for each label."""
    centered = token - token.mean()
    normal = centered / (centered.pow(2).mean() + 1e-5).sqrt()
    query = p[f"{name}.query.weight"] @ (normal * p[f"{name}.norm.weight"] + p[f"{name}.norm.bias"])
    keys = [p[f"{name}.key.weight"] @ e for e in labels]
    exponents = [((query @ key) / len(query) ** 0.5).exp() for key in keys]
    return [x / sum(exponents) for x in exponents]


def plain_fusion(p, name, prompts, labels, own):
    """Compute eq. 3-8 on the tokens of one tower: (m, d_p)."""
    tokens = []
    for token in prompts:
        weights = plain_attention(p, name, token, labels)
        values = [p[f"{name}.value.weight"] @ e for e in labels]
        fused = token + sum(w * v for w, v in zip(weights, values, strict=True))
        hidden = p[f"{name}.mlp.0.weight"] @ torch.cat([fused, own]) + p[f"{name}.mlp.0.bias"]
        hidden = hidden / (1 + (-1.702 * hidden).exp())
        tokens.append(fused + p[f"{name}.mlp.2.weight"] @ hidden + p[f"{name}.mlp.2.bias"])
    return torch.stack(tokens)


def plain_hisf(model, clip_model, images, names):
    """Return logits (B, K), unit image and text features and each class's last P_final."""
    s, p = model.settings, dict(model.prompt_learner.named_parameters())
    labels = plain_labels(model, clip_model, names)

    def tower(kind, own):
        if s.PROMPT_INIT:
            prompts = torch.stack([p[f"project_{kind}.weight"] @ token for token in p["ctx"]])
        else:
            prompts = p[f"ctx_{kind}"]
        layers = [None] * 3  # no prompts before the first fusion
        for i, layer in enumerate(s.FUSION_LAYERS):
            if s.SEMANTIC_FUSION:
                prompts = plain_fusion(p, f"fuse_{kind}.{i}", prompts, labels, own)
            layers[layer - 1] = prompts
        return layers, prompts

    texts, final = [], []
    for name, label in zip(names, labels, strict=True):
        layers, last = tower("text", label)
        from_start = s.FUSION_LAYERS[0] == 1
        words = f"{name.replace('_', ' ')}."
        ids = tokenize([f"X X {words}" if from_start else words])[0]
        texts.append(unit(text_feature(clip_model, ids, [1, 2] if from_start else [], layers)))
        final.append(last)
    layers, _ = tower("vision", sum(labels) / len(labels))
    features = [unit(image_feature(clip_model, image, layers)) for image in images]
    scale = clip_model.logit_scale.exp()
    logits = torch.stack([torch.stack([scale * (x @ z) for z in texts]) for x in features])
    return logits, features, texts, final


def plain_loss(model, clip_model, targets, logits, features, texts, final):
    s = model.settings
    loss = torch.zeros(())
    for row, x, target in zip(logits, features, targets, strict=True):
        if s.LOSS_CLS:
            loss = loss - (row[target] - row.exp().sum().log()) / len(targets)
        loss = loss + s.LAMBDA_SA * (1 - x @ texts[target]) / len(targets)
    labels = plain_labels(model, clip_model, NAMES)
    for prompts, label in zip(final, labels, strict=True):
        if s.LE_DISTANCE == "norm_of_mean":
            prompts = [(prompts[0] + prompts[1]) / 2]
        for token in prompts:
            # The tiny model's text width is not its joint width.
            there = token @ clip_model.text_projection if s.LABELS == "features" else token
            gap = (there - label).pow(2).sum().sqrt()
            loss = loss + s.LAMBDA_LE * gap / (len(labels) * len(prompts))
    return loss


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"FUSION_LAYERS": (2, 3)},
        {"FUSION_LAYERS": (3,)},
        {"FUSION_LAYERS": (1,)},
        {"FUSION_LAYERS": (2, 3), "PROMPT_INIT": False, "SEMANTIC_FUSION": False},
        {"PROMPT_INIT": False},
        {"SEMANTIC_FUSION": False},
        {"PROMPT_INIT": False, "SEMANTIC_FUSION": False},
        {"LAMBDA_LE": 0.0},
        {"LAMBDA_SA": 0.0},
        {"LOSS_CLS": False},
        {"LABELS": "words"},
        {"LABELS": "words", "FUSION_LAYERS": (2,), "LE_DISTANCE": "mean_of_norms"},
        {"LABELS": "words", "PROMPT_INIT": False, "SEMANTIC_FUSION": False},
        {"LE_DISTANCE": "mean_of_norms"},
        {"LE_DISTANCE": "mean_of_norms", "SEMANTIC_FUSION": False},
    ],
)
def test_logits_loss_and_gradients_equal_the_plain_computation(clip_model, values, batch):
    model = build(HISF, clip_model, **{**SMALL, **values})
    images, targets = batch
    expected = plain_hisf(model, clip_model, images, NAMES)
    logits, terms = model(images, targets)
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
    s = model.settings
    on = {"loss_cls": s.LOSS_CLS, "loss_le": s.LAMBDA_LE, "loss_sa": s.LAMBDA_SA}
    assert set(terms) == {name for name, value in on.items() if value}
    loss, total = plain_loss(model, clip_model, targets, *expected), sum(terms.values())
    torch.testing.assert_close(total, loss, rtol=1e-4, atol=1e-5)
    assert_same_gradients(learned(model.prompt_learner), total, loss, rtol=2e-3)


def test_label_distance_is_direct_where_the_widths_agree(clip_model):
    model = build(HISF, clip_model, **SMALL)
    prompts = torch.randn(3, 2, 24)  # as wide as the labels
    expected = sum((prompts[i].mean(0) - model.labels[i]).norm() for i in range(3)) / 3
    torch.testing.assert_close(model.label_distance(prompts), expected)


def test_learnable_tensors_of_each_module():
    model = build(HISF, tiny_clip(layers=3), **SMALL)
    shapes = {n: tuple(p.shape) for n, p in model.prompt_learner.named_parameters()}
    assert shapes["ctx"] == (2, 24)
    assert shapes["project_text.weight"] == (32, 24)
    assert shapes["project_vision.weight"] == (48, 24)
    assert shapes["fuse_vision.1.key.weight"] == (48, 24)
    assert shapes["fuse_vision.0.mlp.0.weight"] == (48 // 16, 48 + 24)
    assert shapes["fuse_text.1.mlp.2.weight"] == (32, 32 // 16)
    words = build(HISF, model.clip, **SMALL | {"LABELS": "words"})
    shapes = {n: tuple(p.shape) for n, p in words.prompt_learner.named_parameters()}
    assert words.labels.shape == (3, 32) and shapes["ctx"] == (2, 32)
    assert shapes["fuse_vision.1.value.weight"] == (48, 32)
    plain = build(HISF, model.clip, **SMALL | {"PROMPT_INIT": False, "SEMANTIC_FUSION": False})
    assert {n: tuple(p.shape) for n, p in plain.prompt_learner.named_parameters()} == {
        "ctx_text": (2, 32),
        "ctx_vision": (2, 48),
    }


@pytest.mark.parametrize("first", [1, 2, 3])
def test_prompts_do_not_exist_before_the_first_fusion(clip_model, first):
    model = build(HISF, clip_model, **{**SMALL, "FUSION_LAYERS": (first,)})
    for tower in model.layers():
        assert [entry is not None for entry in tower] == [i == first for i in range(1, first + 1)]
    assert model.tokens.slots.shape == (3, 2 if first == 1 else 0)
    words = "X X {}." if first == 1 else "{}."
    for ids, expected in zip(model.tokens.ids, class_ids(words), strict=True):
        assert torch.equal(ids, expected[: len(ids)])


def test_a_class_name_that_leaves_no_room(clip_model):
    long = "pot " * 76
    with pytest.raises(UserError, match="TRAINER.HISF.N_CTX: expected a context that leaves room"):
        build(HISF, clip_model, **SMALL | {"N_CTX": 74})
    # inserted prompts have no positions, so that any number of them fits
    model = build(HISF, clip_model, **SMALL | {"N_CTX": 74, "FUSION_LAYERS": (2,)})
    with pytest.raises(UserError, match="does not fit with its class name: .* is 79 tokens long"):
        model.set_classes([long])


@pytest.mark.parametrize("layers", [(1, 3), (2, 3)])
def test_same_logits_in_any_order_or_split_and_for_other_classes(clip_model, batch, layers):
    model = build(HISF, clip_model, **SMALL | {"FUSION_LAYERS": layers})
    images, _ = batch
    names = ["cat", "small_red bus", "fern", "pot"]
    model.set_classes(names)
    with torch.no_grad():
        expected = plain_hisf(model, clip_model, images, names)[0]
        with model.fixed_classes():
            for order in ([0, 1, 2], [2, 0, 1]):
                torch.testing.assert_close(
                    model(images[order]), expected[order], rtol=1e-4, atol=1e-4
                )
            split = torch.cat([model(part) for part in images.split(2)])
    torch.testing.assert_close(split, expected, rtol=1e-4, atol=1e-4)


def test_frozen_clip_stays_untouched(batch):
    model = build(HISF, tiny_clip(layers=3), **SMALL)
    before = {name: t.clone() for name, t in model.clip.state_dict().items()}
    optimizer = torch.optim.SGD(learned(model).values(), lr=0.02)
    images, targets = batch
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = sum(model(images, targets)[1].values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.equal(t, before[name]) for name, t in model.clip.state_dict().items())
    assert all(p.grad is None for p in model.clip.parameters())
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("decay", ["all", "projections"])
def test_prompts_have_a_rate_of_their_own_and_projections_may_decay_alone(clip_model, decay):
    values = {**SMALL, "PROMPT_LR_FACTOR": 5.0, "DECAY": decay}
    model = build(HISF, clip_model, **values)
    optim_cfg = settings(HISF, **values)[0].OPTIM
    optim_cfg.LR, optim_cfg.WEIGHT_DECAY = 0.01, 0.1
    trained = learned(model)
    groups = model.param_groups(optim_cfg)
    found = {id(p): group for group in groups for p in group["params"]}
    assert len(found) == len(trained)
    for name, tensor in trained.items():
        group = found[id(tensor)]
        is_prompt = name == "prompt_learner.ctx"
        assert group["lr"] == pytest.approx(0.05 if is_prompt else 0.01)
        is_projection = tensor.dim() == 2 and not is_prompt
        assert group["weight_decay"] == (0.1 if decay == "all" or is_projection else 0.0)


def test_the_config_of_section_3_5_trains_as_that_section_says():
    cfg = get_cfg_default("HISF")
    merge_from_file(cfg, str(ROOT / "configs/trainers/HISF/vit_b16_ep50_batch4_adamw.yaml"))
    model = HISF(cfg, tiny_clip(layers=max(cfg.TRAINER.HISF.FUSION_LAYERS)), NAMES, TEMPLATES)
    optimizer = build_optimizer(model, cfg.OPTIM, model.param_groups(cfg.OPTIM))
    assert type(optimizer) is torch.optim.AdamW
    names = {id(p): name for name, p in learned(model).items()}
    groups = {names[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
    assert len(groups) == len(names)
    prompts = groups.pop("prompt_learner.ctx")
    assert prompts["weight_decay"] == 0
    for name, group in groups.items():
        assert 0 < group["lr"] < prompts["lr"]
        is_projection = name.endswith("weight") and "norm" not in name
        assert (group["weight_decay"] > 0) == is_projection, name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"FUSION_LAYERS": (1, 4)},
            r"FUSION_LAYERS: expected layers in ascending order, each a whole number in 1..3, got",
        ),
        ({"FUSION_LAYERS": (3, 1)}, "FUSION_LAYERS"),
        ({"FUSION_LAYERS": (0, 1)}, "FUSION_LAYERS"),
        ({"FUSION_LAYERS": ()}, "FUSION_LAYERS"),
        ({"N_CTX": 0}, "N_CTX: expected a whole number in 1..1000, got 0"),
        ({"LAMBDA_LE": -1.0}, "LAMBDA_LE: expected a number >= 0, got -1.0"),
        (
            {"LOSS_CLS": False, "LAMBDA_LE": 0.0, "LAMBDA_SA": 0.0},
            "expected LOSS_CLS, LAMBDA_LE or LAMBDA_SA, got none of them",
        ),
        ({"PROMPT_LR_FACTOR": 0.0}, "PROMPT_LR_FACTOR: expected a number > 0, got 0.0"),
        ({"LABELS": "word"}, "LABELS: expected one of features, words, got 'word'"),
        ({"LE_DISTANCE": "norm"}, "LE_DISTANCE: expected one of norm_of_mean, mean_of_norms, got"),
        (
            {"LE_DISTANCE": "mean_of_norms", "LAMBDA_LE": 0.0},
            "LE_DISTANCE: expected 'norm_of_mean' with LAMBDA_LE 0, got 'mean_of_norms'",
        ),
        (
            {"LABELS": "words", "SEMANTIC_FUSION": False, "LAMBDA_LE": 0.0},
            "LABELS: expected 'features' with SEMANTIC_FUSION False and LAMBDA_LE 0, got 'words'",
        ),
        ({"DECAY": "none"}, "DECAY: expected one of all, projections, got 'none'"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=message):
        check(HISF, clip_model, **{**SMALL, **values})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"FUSION_LAYERS": (2, 3)},
        {"FUSION_LAYERS": (3,)},
        {"PROMPT_INIT": False},
        {"LABELS": "words"},
    ],
)
@torch.no_grad()
def test_attention_equals_the_plain_computation(clip_model, values):
    model = build(HISF, clip_model, **{**SMALL, **values})
    p, layers = dict(model.prompt_learner.named_parameters()), model.settings.FUSION_LAYERS
    labels = plain_labels(model, clip_model, NAMES)
    found = model.prompt_learner.attention(model.labels)
    assert {tower: tuple(maps) for tower, maps in found.items()} == {
        "text": tuple(layers),
        "vision": tuple(layers),
    }
    for tower, own_labels in (("text", labels), ("vision", [sum(labels) / len(labels)])):
        for k, own in enumerate(own_labels):
            if "ctx" in p:
                prompts = torch.stack([p[f"project_{tower}.weight"] @ t for t in p["ctx"]])
            else:
                prompts = p[f"ctx_{tower}"]
            for i, layer in enumerate(layers):
                name, weights = f"fuse_{tower}.{i}", found[tower][layer]
                is_own = tower == "text" and i > 0  # each class has prompts of its own
                assert weights.shape == ((3, 2, 3) if is_own else (2, 3))
                expected = [torch.stack(plain_attention(p, name, t, labels)) for t in prompts]
                torch.testing.assert_close(
                    weights[k] if is_own else weights, torch.stack(expected), rtol=1e-4, atol=1e-5
                )
                torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
                prompts = plain_fusion(p, name, prompts, labels, own)


def test_attention_is_kept_for_the_classes_of_the_evaluation(run, tmp_path):
    keep = ["TEST.SAVE_LOGITS", "True", "TEST.SAVE_ATTENTION"]
    options = ["DATASET.SUBSAMPLE_CLASSES", "base"]
    assert run("HISF", "base", *options, *keep, "True", epochs=1)[0] == 0
    flags = ["--eval-only", "--model-dir", f"{tmp_path}/base"]
    assert run("HISF", "without", *options, *keep, "False", flags=flags, epochs=1)[0] == 0
    assert not (tmp_path / "without/attention.npz").exists()
    with_it, without = (np.load(tmp_path / d / "logits.npz") for d in ("base", "without"))
    assert np.array_equal(with_it["logits"], without["logits"])
    options = ["DATASET.SUBSAMPLE_CLASSES", "all"]
    assert run("HISF", "all", *options, *keep, "True", flags=flags, epochs=1)[0] == 0
    for folder, names in (("base", ["red", "green"]), ("all", ["red", "green", "blue", "grey"])):
        with np.load(tmp_path / folder / "attention.npz", allow_pickle=False) as arrays:
            assert arrays["class_names"].tolist() == names
            k = len(names)
            shapes = {key: arrays[key].shape for key in arrays.files if key != "class_names"}
            assert shapes == {
                "text.1": (2, k),
                "text.3": (k, 2, k),
                "vision.1": (2, k),
                "vision.3": (2, k),
            }


@pytest.mark.parametrize(
    ("trainer", "options", "message"),
    [
        ("HISF", ["TRAINER.HISF.SEMANTIC_FUSION", "False"], "without fusion there is no attention"),
        ("CoOp", [], "TEST.SAVE_ATTENTION is True, but the trainer is CoOp; it is for HISF"),
    ],
)
def test_attention_that_there_is_not_is_refused(run, trainer, options, message):
    code, out = run(trainer, "wrong", "TEST.SAVE_ATTENTION", "True", *options)
    assert code == 2
    (error,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert message in error
