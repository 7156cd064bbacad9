"""CoPrompt against a plain computation: one image, one class, 77 tokens at a time."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
import yaml

from clip import tokenize
from dassl.config import check_domains, get_cfg_default, merge_from_file
from dassl.utils import UserError
from tests.plain import assert_same_gradients, image_feature, text_feature, unit
from tests.trainers.tiny import (
    NAMES,
    TEMPLATES,
    check,
    class_ids,
    learned,
    load_public,
    settings,
    write_descriptions,
)
from trainers.coprompt import CoPrompt

SMALL = {"PROMPT_DEPTH": 3, "N_CTX": 2}
WEIGHT = 3.0


@pytest.fixture
def make(clip_model, tmp_path):
    """Make the method: make(DISTILL=..., KEY=VALUE of its node); with two sentences a class."""
    write_descriptions(tmp_path / "texts.json")

    def call(distill: str = "cosine", **values) -> CoPrompt:
        values = {**SMALL, "DESCRIPTIONS": str(tmp_path / "texts.json"), **values}
        cfg, _ = settings(CoPrompt, **values)
        cfg.TRAINER.W, cfg.TRAINER.DISTILL = WEIGHT, distill
        torch.manual_seed(1)
        return CoPrompt(cfg, clip_model, NAMES, TEMPLATES)

    return call


def adapted(p, name, x, share):
    hidden = (p[f"{name}.fc.0.weight"] @ x).clamp(min=0)
    return unit(share * (p[f"{name}.fc.2.weight"] @ hidden).clamp(min=0) + (1 - share) * x)


def plain_features(clip_model, p, images, names=NAMES):
    """Return unit features of images (B, d) and class names (K, d); towers' output is not unit."""
    learner = {n.removeprefix("prompt_learner."): t for n, t in p.items()}
    text = [learner["ctx"]] + [learner[f"compound_prompts_text.{i}"] for i in range(2)]
    layers = ["proj"] + [f"compound_prompt_projections.{i}" for i in range(2)]
    vision = [
        t @ learner[f"{n}.weight"].t() + learner[f"{n}.bias"]
        for t, n in zip(text, layers, strict=True)
    ]
    rows = [image_feature(clip_model, image, vision) for image in images]
    texts = [
        text_feature(clip_model, i, [1, 2], text) for i in class_ids("a photo of a {}.", names)
    ]
    return (
        torch.stack([adapted(p, "adapter_image", row, 0.1) for row in rows]),
        torch.stack([adapted(p, "adapter_text", row, 0.2) for row in texts]),
    )


def coprompt_logits(clip_model, p, images, names=NAMES):
    image, text = plain_features(clip_model, p, images, names)
    return clip_model.logit_scale.exp() * image @ text.t()


def plain_distance(features, anchors, distill):
    each = []
    for x, y in zip(features, anchors, strict=True):
        each.append(1 - x @ y if distill == "cosine" else (x - y).square().mean())
    return sum(each) / len(each)


@pytest.mark.parametrize("distill", ["cosine", "mse"])
def test_logits_losses_and_gradients_equal_the_plain_computation(
    clip_model, make, tmp_path, batch, distill
):
    sentences = write_descriptions(tmp_path / "texts.json")
    images, labels = batch
    views = [images, images.flip(0) + 0.3]
    model = make(distill)
    p = learned(model)
    image, text = plain_features(clip_model, p, images)
    expected = clip_model.logit_scale.exp() * image @ text.t()
    frozen = [unit(image_feature(clip_model, view, [])) for view in views[1]]
    image_term = WEIGHT * plain_distance(image, frozen, distill)
    text_terms = []
    for i in range(2):
        texts = [tokenize([own[i]])[0] for own in sentences.values()]
        frozen_text = [unit(text_feature(clip_model, ids, [], [])) for ids in texts]
        text_terms.append(WEIGHT * plain_distance(text, frozen_text, distill))

    drawn = set()
    for seed in range(6):
        torch.manual_seed(seed)
        logits, terms = model(views, labels)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(terms["loss_cons_image"], image_term, rtol=1e-5, atol=1e-6)
        # one sentence of every class, and the same one
        (i,) = (i for i in (0, 1) if torch.allclose(terms["loss_cons_text"], text_terms[i], 1e-4))
        drawn.add(i)
        torch.manual_seed(seed)
        assert model(views, labels)[1]["loss_cons_text"] == terms["loss_cons_text"]
    assert drawn == {0, 1}
    slow = F.cross_entropy(expected, labels) + image_term + text_terms[i]
    assert_same_gradients(p, sum(terms.values()), slow, atol=1e-7)


def test_names_shapes_and_starts_are_those_of_the_released_code(clip_model, make):
    model = make()
    expected = {
        "prompt_learner.ctx": (2, 32),
        "prompt_learner.proj.weight": (48, 32),
        "prompt_learner.proj.bias": (48,),
        **{f"prompt_learner.compound_prompts_text.{i}": (2, 32) for i in range(2)},
        **{f"prompt_learner.compound_prompt_projections.{i}.weight": (48, 32) for i in range(2)},
        **{f"prompt_learner.compound_prompt_projections.{i}.bias": (48,) for i in range(2)},
        **{f"adapter_{side}.fc.0.weight": (6, 24) for side in ("image", "text")},
        **{f"adapter_{side}.fc.2.weight": (24, 6) for side in ("image", "text")},
    }
    assert {name: tuple(t.shape) for name, t in learned(model).items()} == expected
    assert model.saved().keys() == expected.keys()
    words = clip_model.token_embedding(tokenize(["a photo"])[0, 1:3])
    assert torch.equal(model.prompt_learner.ctx, words)
    for name, tensor in learned(model).items():
        if name.startswith("adapter"):  # uniform up to 1 / sqrt(inputs)
            bound = tensor.shape[1] ** -0.5
            assert 0.9 * bound < tensor.abs().max() <= bound, name


def test_a_public_checkpoint_gives_the_logits_of_the_plain_computation(clip_model, make, batch):
    model = make().eval()
    torch.manual_seed(3)
    state = {n: (0.2 * torch.randn(t.shape)).half() for n, t in model.saved().items()}
    expected = coprompt_logits(clip_model, {n: t.float() for n, t in state.items()}, batch[0])
    state["prompt_learner.token_prefix"] = torch.zeros(9, 1, 32)
    state["prompt_learner.token_suffix"] = torch.zeros(9, 74, 32)
    for name, tensor in clip_model.state_dict().items():
        state[f"model_distill.{name}"] = torch.zeros_like(tensor)
        if name.startswith("visual."):
            state[name.replace("visual", "image_encoder", 1)] = torch.zeros_like(tensor)
        elif name == "logit_scale":
            state[name] = torch.tensor(9.0)
        elif name != "token_embedding.weight":
            state[f"text_encoder.{name}"] = torch.zeros_like(tensor)
    load_public(model, state, "model.pth.tar-8")
    with torch.no_grad():
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    state["adapter_text.fc.1.weight"] = torch.zeros(6)
    with pytest.raises(UserError, match=r"this model has no tensor 'adapter_text\.fc\.1\.weight'"):
        load_public(model, state, "model.pth.tar-8")


def test_other_classes_need_sentences_only_in_training(clip_model, make, batch):
    model, (images, labels) = make().eval(), batch
    names = [NAMES[2], "green_hexagon"]
    with torch.no_grad():
        free = model(images)
        with model.fixed_classes():
            torch.testing.assert_close(model(images), free)
        model.set_classes(names)
        expected = coprompt_logits(clip_model, learned(model), images, names)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    model.train()
    with pytest.raises(
        UserError,
        match=r"^TRAINER\.CoPrompt\.DESCRIPTIONS: .* no sentences for 'green hexagon'; correct it",
    ):
        model([images, images], labels.clamp(max=1))


def test_lists_of_sentences_that_are_shorter_are_read_in_turn(clip_model, make, tmp_path):
    sentences = dict(zip(NAMES, (["x"], ["x", "y", "z"], ["x", "y"]), strict=True))
    (tmp_path / "texts.json").write_text(json.dumps(sentences))
    found = make().sentence_features
    expected = [["x", "x", "x"], ["x", "y", "y"], ["x", "z", "x"]]  # by step, class
    for features, texts in zip(found, expected, strict=True):
        each = [text_feature(clip_model, tokenize([text])[0], [], []) for text in texts]
        torch.testing.assert_close(features, unit(torch.stack(each)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"PROMPT_DEPTH": 5}, r"CoPrompt\.PROMPT_DEPTH: expected a whole number in 1\.\.4, got 5"),
        ({"N_CTX": 0}, r"CoPrompt\.N_CTX: expected a whole number in 1\.\.1000, got 0"),
        ({"CTX_INIT": "zzz"}, r"CoPrompt\.CTX_INIT: expected '' or words of at least 2 tokens"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=rf"^TRAINER\.{message}"):
        check(CoPrompt, clip_model, **{**SMALL, **values})


@pytest.mark.parametrize(
    ("key", "value", "domain"),
    [("W", -1.0, "a number >= 0"), ("DISTILL", "l1", "one of cosine, mse")],
)
def test_keys_beside_the_node_have_domains(key, value, domain):
    cfg = get_cfg_default("CoPrompt")
    cfg.TRAINER[key] = value
    with pytest.raises(UserError, match=f"^TRAINER.{key}: expected {domain}, got {value!r}$"):
        check_domains(cfg, "CoPrompt", section=f"TRAINER.{key}")


def test_the_public_config_file_merges(tmp_path):
    node = {"N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9}
    public = {
        "DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 4}, "K_TRANSFORMS": 2},
        "INPUT": {"TRANSFORMS": ["randaugment", "normalize"]},
        "TRAINER": {"CoPrompt": node, "W": 1.0, "DISTILL": "cosine"},
    }
    (tmp_path / "public.yaml").write_text(yaml.safe_dump(public))
    cfg = get_cfg_default("CoPrompt")
    assert (cfg.TRAINER.W, cfg.TRAINER.DISTILL) == (8.0, "cosine")
    merge_from_file(cfg, str(tmp_path / "public.yaml"))
    cfg.TRAINER.NAME = "CoPrompt"
    check_domains(cfg, "CoPrompt", section="TRAINER.")
    assert cfg.TRAINER.W == 1.0 and cfg.TRAINER.CoPrompt.N_CTX == 2
