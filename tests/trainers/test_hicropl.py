"""HiCroPL against a plain computation of the paper's equations, and its ablation switches."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

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
from trainers.promptsrc import PromptSRC

pytestmark = pytest.mark.tiny(images=4)
SMALL = {"PROMPT_DEPTH": DEPTH, "CROSS_LAYER": K, "N_CTX": M, "LAMBD": LAMBD}


@pytest.fixture
def small(tmp_path):
    write_descriptions(tmp_path / "texts.json")
    return {**SMALL, "DESCRIPTIONS": str(tmp_path / "texts.json")}


def assert_same(model, logits, terms, expected):
    """Compare with ``plain_hicropl``'s logits, losses, and the gradients of these."""
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["loss_ce"], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["loss_cons"], expected[2], rtol=1e-4, atol=1e-5)
    p = learned(model.prompt_learner)
    assert_same_gradients(p, sum(terms.values()), expected[1] + expected[2], atol=1e-7)


@pytest.mark.parametrize("anchor", ["prompted", "frozen"])
def test_logits_losses_and_gradients_equal_the_papers_equations(
    clip_model, small, tmp_path, anchor, batch
):
    texts = write_descriptions(tmp_path / "texts.json")
    model = build(HiCroPL, clip_model, CONS_ANCHOR=anchor, **small)
    images, labels = batch
    logits, terms = model(images, labels)
    expected = plain_hicropl(
        clip_model, learned(model.prompt_learner), texts, images, labels, anchor
    )
    assert_same(model, logits, terms, expected)


def with_templates(*templates):
    return lambda texts: {name: [t.format(name) for t in templates] for name in texts}


@pytest.mark.parametrize(
    ("values", "depth", "k", "texts_of"),
    [
        ({"FLOW": "none"}, DEPTH, 0, dict),
        ({"PROMPT_DEPTH": 1, "CROSS_LAYER": 6}, 1, 1, dict),
        ({"PROMPT_DEPTH": 2, "CROSS_LAYER": 6}, 2, 1, dict),
        ({"PROMPT_DEPTH": 3, "CROSS_LAYER": 6}, 3, 2, dict),
        ({"PROMPT_DEPTH": 4, "CROSS_LAYER": 4}, 4, 3, dict),
        ({"FROZEN_TEXT": "photo"}, DEPTH, K, with_templates("a photo of a {}.")),
        ({"FROZEN_TEXT": "dataset_template"}, DEPTH, K, with_templates(TEMPLATES[1])),
        ({"FROZEN_TEXT": "dataset_templates"}, DEPTH, K, with_templates(*TEMPLATES)),
    ],
    ids=lambda value: "plain" if callable(value) else str(value),
)
def test_ablations_equal_the_plain_computation(
    clip_model, small, tmp_path, batch, values, depth, k, texts_of
):
    texts = texts_of(write_descriptions(tmp_path / "texts.json"))
    model = build(HiCroPL, clip_model, **{**small, **values})
    model.templates = TEMPLATES[::-1]  # so that the first is not FROZEN_TEXT photo's
    model.set_classes(NAMES)
    images, labels = batch
    p = learned(model.prompt_learner)
    expected = plain_hicropl(clip_model, p, texts, images, labels, "prompted", depth, k)
    assert_same(model, *model(images, labels), expected)


def test_without_flow_there_are_prompts_alone(clip_model, small):
    learner = build(HiCroPL, clip_model, FLOW="none", **small).prompt_learner
    prompts = ("ctx", "cross_prompts_text.", "cross_prompts_visual.")
    assert all(name.startswith(prompts) for name in learner.state_dict())
    assert len(learned(learner)) == 2 * DEPTH
    towers = learner()
    assert all(map(torch.equal, towers.text, learner.cross_prompts_text))
    assert all(map(torch.equal, towers.vision, learner.cross_prompts_visual))


@pytest.mark.parametrize(
    ("flow", "depth", "layers"),
    [
        ("t2i_i2t", 4, "t2i in layers 1 to 3, i2t in layers 4 to 4"),
        ("i2t_t2i", 2, "i2t in layers 1 to 1, t2i in layers 2 to 2"),
        ("i2t_t2i", 1, "i2t in layers 1 to 1"),
    ],
)
def test_a_boundary_beyond_the_depth_leaves_the_second_direction_a_layer(
    clip_model, small, capsys, flow, depth, layers
):
    values = {**small, "FLOW": flow, "PROMPT_DEPTH": depth, "CROSS_LAYER": 6}
    check(HiCroPL, clip_model, **values)
    build(HiCroPL, clip_model, **values)
    assert f"CROSS_LAYER 6, PROMPT_DEPTH {depth}: {layers}\n" in capsys.readouterr().out
    build(HiCroPL, clip_model, **small)
    assert "CROSS_LAYER" not in capsys.readouterr().out


# --- frozen text -------------------------------------------------------------------------------


@pytest.fixture
def uneven(tmp_path):
    """Write three sentences for the first class, one for the second, two for the third."""
    names = [name.replace("_", " ") for name in NAMES]
    texts = {
        name: [f"{way} {name}." for way in ("some", "here is a", "no")[:count]]
        for name, count in zip(names, (3, 1, 2), strict=True)
    }
    (tmp_path / "uneven.json").write_text(json.dumps(texts))
    return texts, str(tmp_path / "uneven.json")


@pytest.mark.parametrize("anchor", ["prompted", "frozen"])
def test_random_draws_one_index_a_step_for_all_classes(clip_model, uneven, batch, anchor):
    texts, file = uneven
    values = {**SMALL, "DESCRIPTIONS": file, "FROZEN_TEXT": "random", "CONS_ANCHOR": anchor}
    model = build(HiCroPL, clip_model, **values)
    images, labels = batch
    drawn = {}
    for seed in range(8):
        torch.manual_seed(seed)
        step = model.class_features(model.layers())["frozen_text"]
        torch.manual_seed(seed)
        index = int(torch.randint(3, ()))
        assert torch.equal(drawn.setdefault(index, step), step)
    assert set(drawn) == {0, 1, 2}
    assert all(torch.equal(step[1], drawn[0][1]) for step in drawn.values())  # its only sentence
    assert torch.equal(drawn[2][2], drawn[0][2])  # the third of two is the first again

    torch.manual_seed(4)
    logits, terms = model(images, labels)
    torch.manual_seed(4)
    index = int(torch.randint(3, ()))
    one = {name: [sentences[index % len(sentences)]] for name, sentences in texts.items()}
    p = learned(model.prompt_learner)
    expected = plain_hicropl(clip_model, p, one, images, labels, anchor)
    assert_same(model, logits, terms, expected)


def test_random_evaluates_with_the_mean_of_all_sentences(clip_model, uneven, batch):
    values = {**SMALL, "DESCRIPTIONS": uneven[1]}
    model = build(HiCroPL, clip_model, **values, FROZEN_TEXT="random").eval()
    usual = build(HiCroPL, clip_model, **values).eval()
    with torch.no_grad():
        assert torch.equal(model(batch[0]), usual(batch[0]))


def test_imagenet_templates_are_promptsrcs(clip_model, small):
    model = build(HiCroPL, clip_model, **small, FROZEN_TEXT="imagenet_templates")
    texts = [template("very large dog") for template in OPENAI_IMAGENET_TEMPLATES[:60]]
    each = [text_feature(clip_model, ids, [], []) for ids in tokenize(texts)]
    expected = unit(torch.stack(each).mean(0))
    torch.testing.assert_close(model.frozen_text[1], expected, rtol=1e-4, atol=1e-5)
    promptsrc = build(PromptSRC, clip_model, PROMPT_DEPTH_VISION=1, PROMPT_DEPTH_TEXT=1)
    assert torch.equal(model.frozen_text, promptsrc.frozen_text)


@pytest.mark.parametrize("criterion", ["cosine", "mse", "l1"])
def test_the_anchor_makes_a_difference_with_l1_alone(clip_model, small, criterion):
    """Prompted (eq. 5) and frozen features (released code) are equally far from their sum."""
    torch.manual_seed(3)
    starts = [torch.randn(count, 24, dtype=torch.float64) for count in (5, 5, 3, 3)]
    losses, gradients = [], []
    for anchor in ("prompted", "frozen"):
        values = {**small, "CONS_ANCHOR": anchor, "CRITERION": criterion}
        model = build(HiCroPL, clip_model, **values)
        leaves = [start.clone().requires_grad_() for start in starts]
        image, frozen_image, text, frozen_text = map(unit, leaves)
        features = {
            **{"image": unit(image + frozen_image), "text": unit(text + frozen_text)},
            **{"prompted_image": image, "frozen_image": frozen_image.detach()},
            **{"prompted_text": text, "frozen_text": frozen_text.detach()},
        }
        logits = torch.zeros(5, 3, dtype=torch.float64)
        loss = model.losses(features, logits, torch.zeros(5, dtype=torch.long))["loss_cons"]
        losses.append(loss)
        gradients.append(torch.cat(torch.autograd.grad(loss, [leaves[0], leaves[2]])))
    equal = [
        torch.allclose(pair[0], pair[1], rtol=1e-12, atol=1e-14) for pair in (losses, gradients)
    ]
    assert equal == [criterion != "l1"] * 2
    assert losses[0] > 0 and gradients[0].abs().max() > 1e-3


# --- the released code's mappers, which learn nothing ------------------------------------------


def test_in_place_mode_starts_with_copies_of_one_tensor_of_each_kind(clip_model, small):
    for mode, alike in (("in_place", True), ("graph", False)):
        learner = build(HiCroPL, clip_model, MAPPER_UPDATE=mode, **small).prompt_learner
        for kind in (
            learner.cross_prompts_visual,
            learner.text_proxy_token,
            learner.visual_proxy_token,
            [net.attn.in_proj_weight for net in learner.attn_pooling_text_nets],
            [net.attn.out_proj.weight for net in learner.attn_pooling_visual_nets],
        ):
            assert [torch.equal(kind[0], other) for other in kind[1:]] == [alike] * (len(kind) - 1)
        text = learner.cross_prompts_text
        assert not any(map(torch.equal, text[:-1], text[1:]))  # these never do
        storages = {p.data_ptr() for p in learner.parameters()}
        assert len(storages) == len(list(learner.parameters()))


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
    model = build(HiCroPL, clip_model, MAPPER_UPDATE="in_place", **small)
    graph = build(HiCroPL, clip_model, **small)
    graph.load_state_dict(model.state_dict())
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
    {"FLOW": "none"},
    {"FROZEN_TEXT": "dataset_template"},
    {"FROZEN_TEXT": "dataset_templates"},
    {"FROZEN_TEXT": "imagenet_templates"},
    {"FROZEN_TEXT": "photo"},
    {"FROZEN_TEXT": "random"},
    {"PROMPT_DEPTH": 1},
    {"PROMPT_DEPTH": 3, "CROSS_LAYER": 6},
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
        one_key = (
            switch.get("CROSS_LAYER") == 1
            or "PROMPT_DEPTH" in switch
            or "single" in str(switch.get("MAPPER_SCALE"))
        )
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
            learner.cross_prompts_text[1].normal_()  # no shift, which layer norms take away
        after = learner().vision
        moved = {i for i in range(K) if not torch.allclose(before[i], after[i])}
        assert moved == reaches, scale


def test_fixed_classes_change_no_logit_and_other_classes_can_be_set(clip_model, small, batch):
    model = build(HiCroPL, clip_model, **{**small, "FROZEN_TEXT": "dataset_templates"}).eval()
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
        ({"PROMPT_DEPTH": 5}, r"PROMPT_DEPTH: expected a whole number in 1\.\.4, got 5"),
        ({"FLOW": "both"}, r"FLOW: expected one of t2i_i2t, .*, got 'both'"),
        ({"FROZEN_TEXT": "template"}, r"FROZEN_TEXT: expected one of .*, got 'template'"),
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
    build(HiCroPL, clip_model, **small, FROZEN_TEXT="dataset_template")


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
        build(HiCroPL, clip_model, **{**small, "N_CTX": 75, "FROZEN_TEXT": "dataset_template"})


def test_template_features_are_means_of_unit_features(clip_model, small):
    model = build(HiCroPL, clip_model, **small, FROZEN_TEXT="dataset_templates")
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
