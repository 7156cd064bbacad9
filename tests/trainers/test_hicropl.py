"""HiCroPL against a plain computation of the paper's equations, and its ablation switches."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch

from clip import tokenize
from dassl.utils import UserError
from tests.plain import assert_same_gradients, text_feature, unit
from tests.trainers.plain_methods import DEPTH, LAMBD, K, M, plain_hicropl
from tests.trainers.tiny import (
    NAMES,
    TEMPLATES,
    build,
    check,
    learned,
    tiny_clip,
    write_descriptions,
)
from trainers.hicropl import HiCroPL

pytestmark = pytest.mark.tiny(images=4)
SMALL = {"PROMPT_DEPTH": DEPTH, "CROSS_LAYER": K, "N_CTX": M, "LAMBD": LAMBD}


@pytest.fixture
def small(tmp_path):
    write_descriptions(tmp_path / "texts.json")
    return {**SMALL, "DESCRIPTIONS": str(tmp_path / "texts.json")}


@pytest.mark.parametrize("anchor", ["prompted", "frozen"])
def test_logits_losses_and_gradients_equal_the_papers_equations(
    clip_model, small, tmp_path, anchor, batch
):
    texts = write_descriptions(tmp_path / "texts.json")
    model = build(HiCroPL, clip_model, CONS_ANCHOR=anchor, **small)
    images, labels = batch
    logits, terms = model(images, labels)
    p = learned(model.prompt_learner)
    expected = plain_hicropl(clip_model, p, texts, images, labels, anchor)
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["loss_ce"], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["loss_cons"], expected[2], rtol=1e-4, atol=1e-5)
    assert_same_gradients(p, sum(terms.values()), expected[1] + expected[2], atol=1e-7)


def test_in_graph_mode_every_learnable_tensor_gets_a_gradient_and_nothing_is_mutated(
    clip_model, small, batch
):
    model = build(HiCroPL, clip_model, **small)
    before = copy.deepcopy(model.state_dict())
    images, labels = batch
    logits, terms = model(images, labels)
    sum(terms.values()).backward()
    trained = learned(model)
    assert all(name.startswith("prompt_learner.") for name in trained)
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    again, _ = model(images, labels)
    assert torch.equal(logits, again)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)


def test_in_place_mode_changes_the_prompts_and_gives_the_mappers_no_gradient(
    clip_model, small, batch
):
    graph = build(HiCroPL, clip_model, **small)
    model = build(HiCroPL, clip_model, MAPPER_UPDATE="in_place", **small)
    images, labels = batch
    before = copy.deepcopy(model.state_dict())
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, graph(images))  # the first call sees the same prompts
    sum(terms.values()).backward()
    prompts = ("cross_prompts_text", "cross_prompts_visual", "ctx")
    for name, parameter in model.prompt_learner.named_parameters():
        assert (parameter.grad is not None) == name.startswith(prompts), name
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {
        *(f"prompt_learner.cross_prompts_visual.{i}" for i in range(K)),
        *(f"prompt_learner.cross_prompts_text.{i}" for i in range(K, DEPTH)),
    }
    assert not torch.equal(model(images), logits)
    with model.fixed_classes():  # evaluation changes them too, as in the released code
        assert not torch.equal(model(images), model(images))


def test_names_and_number_of_tensors_are_those_of_the_released_code(small):
    model = build(HiCroPL, tiny_clip(12), **{**small, "PROMPT_DEPTH": 12, "CROSS_LAYER": 6})
    assert len(learned(model)) == 168
    all_names = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    assert {
        "prompt_learner.ctx",
        "prompt_learner.cross_prompts_text.0",
        "prompt_learner.cross_prompts_visual.11",
        "prompt_learner.text2visual_net.linear_q.weight",
        "prompt_learner.text2visual_net.attn.in_proj_weight",
        "prompt_learner.visual2text_net.ffn.c_proj.bias",
        "prompt_learner.attn_pooling_text_nets.5.ln_2.weight",
        "prompt_learner.attn_pooling_visual_nets.5.attn.out_proj.bias",
        "prompt_learner.text_proxy_token.5",
        "prompt_learner.visual_proxy_token.5",
    } <= all_names


SWITCHES = [
    {"FLOW": flow, "MAPPER_SCALE": scale, "COMPRESSION": compression}
    for flow, scale, compression in itertools.product(
        ["t2i_i2t", "i2t_t2i", "t2i", "i2t"], ["multi", "single_multi"], ["lkp", "mlp"]
    )
] + [
    {"COMPRESSION": "mean"},
    {"COMPRESSION": "none"},
    {"MAPPER_SCALE": "single", "COMPRESSION": "none"},
    {"MAPPER_SCALE": "multi_single"},
    {"CRITERION": "l1"},
    {"CRITERION": "mse"},
    {"LAMBD": 0.0},
    {"FROZEN_TEXT": "template"},
    {"FROZEN_TEXT": "templates"},
    {"CROSS_LAYER": 1},
    {"N_CTX": 7},
]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_ablation_trains_all_its_tensors(clip_model, small, switch, batch):
    model = build(HiCroPL, clip_model, **{**small, **switch})
    _, terms = model(*batch)
    assert ("loss_cons" in terms) == (switch.get("LAMBD") != 0.0)
    sum(terms.values()).backward()
    for name, parameter in model.prompt_learner.named_parameters():
        # If a query sees a single key, softmax is 1: what makes queries and keys has no effect.
        one_key = switch.get("CROSS_LAYER") == 1 or "single" in str(switch.get("MAPPER_SCALE"))
        if not (one_key and "linear_k" in name):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_the_direction_of_the_flow_is_who_changes_whose_prompts(clip_model, small):
    for flow, text_changed, vision_changed in (
        ("t2i_i2t", {2, 3}, {0, 1}),
        ("i2t_t2i", {0, 1}, {2, 3}),
        ("t2i", set(), {0, 1, 2, 3}),
        ("i2t", {0, 1, 2, 3}, set()),
    ):
        learner = build(HiCroPL, clip_model, FLOW=flow, **small).prompt_learner
        prompts = learner()
        for got, own, changed in (
            (prompts.text, learner.cross_prompts_text, text_changed),
            (prompts.vision, learner.cross_prompts_visual, vision_changed),
        ):
            same = {i for i, (a, b) in enumerate(zip(got, own, strict=True)) if torch.equal(a, b)}
            assert same == set(range(DEPTH)) - changed, flow


def test_single_scale_sees_its_own_layer_only(clip_model, small):
    for scale, reaches in (("multi", {0, 1}), ("single", {1})):
        learner = build(HiCroPL, clip_model, MAPPER_SCALE=scale, **small).prompt_learner
        before = learner().vision
        with torch.no_grad():
            learner.cross_prompts_text[1].add_(1.0)
        after = learner().vision
        moved = {i for i in range(K) if not torch.allclose(before[i], after[i])}
        assert moved == reaches, scale


def test_fixed_classes_change_no_logit_and_other_classes_can_be_set(clip_model, small, batch):
    model = build(HiCroPL, clip_model, **{**small, "FROZEN_TEXT": "templates"}).eval()
    images, _ = batch
    with torch.no_grad():
        free = model(images)
        with model.fixed_classes():
            torch.testing.assert_close(model(images), free)
        model.set_classes([NAMES[2], "green hexagon"])
        other = model(images)
    assert other.shape == (4, 2)
    torch.testing.assert_close(other[:, 0], free[:, 2])


def test_context_words_are_used_up_to_four_tokens(clip_model, small, capsys):
    few = build(HiCroPL, clip_model, **small)
    words = clip_model.token_embedding(tokenize(["a photo of"])[0, 1:4])
    assert torch.equal(few.prompt_learner.ctx, words)
    assert few.tokens.prefix == 1 + 4  # "a" stays after the three prompts
    many = build(HiCroPL, clip_model, **{**small, "N_CTX": 7})
    assert many.tokens.slots.shape == (3, 7)
    assert "ignored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"CROSS_LAYER": 0}, r"CROSS_LAYER: expected a whole number >= 1, got 0"),
        ({"CROSS_LAYER": 4}, r"CROSS_LAYER: expected a whole number in 1\.\.3, got 4"),
        ({"PROMPT_DEPTH": 5}, r"PROMPT_DEPTH: expected a whole number in 1\.\.4, got 5"),
        ({"FLOW": "both"}, r"FLOW: expected one of t2i_i2t, .*, got 'both'"),
        ({"N_CTX": 0}, r"N_CTX: expected a whole number in 1..1000, got 0"),
    ],
)
def test_settings_that_cannot_be(clip_model, small, values, message):
    with pytest.raises(UserError, match=message):
        check(HiCroPL, clip_model, **{**small, **values})


def test_missing_descriptions_name_the_class_and_the_file(clip_model, small, tmp_path):
    (tmp_path / "texts.json").write_text('{"red circle": ["x"], "blue square": []}')
    with pytest.raises(
        UserError, match=r"texts\.json' has no sentences for 'very large dog', 'blue"
    ):
        build(HiCroPL, clip_model, **small)
    (tmp_path / "texts.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"texts\.json' is not JSON"):
        build(HiCroPL, clip_model, **small)
    (tmp_path / "texts.json").unlink()
    with pytest.raises(UserError, match="DESCRIPTIONS: expected an existing file, got"):
        build(HiCroPL, clip_model, **small)
    build(HiCroPL, clip_model, **small, FROZEN_TEXT="template")


def test_names_in_the_descriptions_may_be_spelled_differently(clip_model, small, tmp_path):
    texts = write_descriptions(tmp_path / "texts.json")
    expected = build(HiCroPL, clip_model, **small).frozen_text
    spelled = dict(
        zip(
            ["Red-Circle", "VERY  lárge_dog", "blue square", "no class"],
            texts.values(),
            strict=False,
        )
    )
    spelled["Blue_Square"] = ["never read: another name is exactly the class's"]
    spelled["no class"] = []
    (tmp_path / "texts.json").write_text(json.dumps(spelled))
    assert torch.equal(build(HiCroPL, clip_model, **small).frozen_text, expected)


def test_all_names_that_do_not_match_are_in_one_line(clip_model, small, tmp_path):
    spelled = {"Red Circle": ["x"], "red-circle": ["y"], "very large cat": ["z"]}
    (tmp_path / "texts.json").write_text(json.dumps(spelled))
    with pytest.raises(
        UserError,
        match=r"texts\.json' has no sentences for 'very large dog', 'blue square' and has several "
        r"names for 'red circle' \('Red Circle' or 'red-circle'\); correct it",
    ):
        build(HiCroPL, clip_model, **small)
    (tmp_path / "texts.json").write_text('{"red circle": "one text"}')
    with pytest.raises(UserError, match=r"has no list of sentences for 'red circle'"):
        build(HiCroPL, clip_model, **small)


def test_long_descriptions_are_cut_after_the_last_word_that_fits(
    clip_model, small, tmp_path, capsys
):
    texts = write_descriptions(tmp_path / "texts.json")
    words = ["round"] * 100  # a token each
    texts["red circle"][1] = " ".join(words)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    found = build(HiCroPL, clip_model, **small).frozen_text
    assert "cut to the 77 tokens that the model takes: 1" in capsys.readouterr().out
    texts["red circle"][1] = " ".join(words[:75])
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    assert torch.equal(build(HiCroPL, clip_model, **small).frozen_text, found)
    assert "cut" not in capsys.readouterr().out


def test_a_prompt_beyond_the_context_is_an_error(clip_model, small):
    with pytest.raises(UserError, match="the model takes 77"):
        build(HiCroPL, clip_model, **{**small, "N_CTX": 75, "FROZEN_TEXT": "template"})


def test_template_features_are_means_of_unit_features(clip_model, small):
    model = build(HiCroPL, clip_model, **small, FROZEN_TEXT="templates")
    for k, name in enumerate(model.class_names):
        each = [
            unit(text_feature(clip_model, tokenize([t.format(name)])[0], [], [])) for t in TEMPLATES
        ]
        expected = unit(torch.stack(each).mean(0))
        torch.testing.assert_close(model.frozen_text[k], expected, rtol=1e-4, atol=1e-5)


def test_a_resnet_has_no_tokens_for_vision_prompts(small):
    import open_clip

    from clip.clip import from_open_clip

    vision = {"layers": (1, 1, 1, 1), "width": 8, "image_size": 64, "head_width": 32}
    text = {"width": 32, "layers": 4, "heads": 2, "vocab_size": 49408, "context_length": 77}
    resnet = from_open_clip(open_clip.CLIP(24, vision, text, quick_gelu=True))
    with pytest.raises(UserError, match="expected a ViT for vision prompts, got a ResNet"):
        check(HiCroPL, resnet, **small)
