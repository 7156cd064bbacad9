"""HiCroPL against a plain computation of the paper's equations, and its ablation switches."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip import tokenize
from dassl.utils import UserError
from tests.plain import image_feature, text_feature
from tests.trainers.tiny import NAMES, TEMPLATES, build, settings, tiny_clip, write_descriptions
from trainers.hicropl import HiCroPL

DEPTH, K, M = 4, 2, 3
SMALL = {"PROMPT_DEPTH": DEPTH, "CROSS_LAYER": K, "N_CTX": M, "LAMBD": 12.0}


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip()


@pytest.fixture
def small(tmp_path):
    write_descriptions(tmp_path / "texts.json")
    return {**SMALL, "DESCRIPTIONS": str(tmp_path / "texts.json")}


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return torch.randn(4, 3, 16, 16), torch.tensor([0, 2, 1, 1])


# --- the paper's equations, one query and one head at a time -----------------------------------


def layer_norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def attention(p: dict[str, Tensor], name: str, queries: Tensor, keys: Tensor, values: Tensor):
    """Eq. 8 with 8 heads and the projections of a multi-head attention module."""
    width, heads = queries.shape[1], 8
    weights = p[f"{name}.in_proj_weight"].split(width)
    biases = p[f"{name}.in_proj_bias"].split(width)
    q, k, v = (
        x @ w.t() + b for x, w, b in zip((queries, keys, values), weights, biases, strict=True)
    )
    rows = []
    for row in q:
        parts = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            score = k[:, part] @ row[part] / (width // heads) ** 0.5
            parts.append(score.softmax(0) @ v[:, part])
        rows.append(torch.cat(parts))
    return torch.stack(rows) @ p[f"{name}.out_proj.weight"].t() + p[f"{name}.out_proj.bias"]


def proxy(p: dict[str, Tensor], nets: str, tokens: str, i: int, prompts: Tensor) -> Tensor:
    """Eq. 2 with residual and layer norms."""
    query, name = p[f"{tokens}.{i}"], f"{nets}.{i}"
    normed = [layer_norm(p, f"{name}.ln_1", x) for x in (query, prompts, prompts)]
    return layer_norm(p, f"{name}.ln_2", query + attention(p, f"{name}.attn", *normed))


def mapper(p: dict[str, Tensor], net: str, prompts: Tensor, knowledge: Tensor) -> Tensor:
    """Eq. 7, 9 and 10."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{net}.{name}.weight"].t() + p[f"{net}.{name}.bias"]

    q, k, v = (
        linear("linear_q", prompts),
        linear("linear_k", knowledge),
        linear("linear_v", knowledge),
    )
    normed = [layer_norm(p, f"{net}.ln_1", x) for x in (q, k, v)]
    q = q + attention(p, f"{net}.attn", *normed)
    h = linear("ffn.c_fc", layer_norm(p, f"{net}.ln_2", q))
    return q + linear("ffn.c_proj", h * torch.sigmoid(1.702 * h))


def plain_prompts(p: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    text = [p["ctx"]] + [p[f"cross_prompts_text.{i}"] for i in range(1, DEPTH)]
    vision = [p[f"cross_prompts_visual.{i}"] for i in range(DEPTH)]
    given = [proxy(p, "attn_pooling_text_nets", "text_proxy_token", i, text[i]) for i in range(K)]
    refined = mapper(p, "text2visual_net", torch.cat(vision[:K]), torch.cat(given))
    vision[:K] = [refined[i * M : (i + 1) * M] for i in range(K)]
    given = [
        proxy(p, "attn_pooling_visual_nets", "visual_proxy_token", i, vision[K + i])
        for i in range(DEPTH - K)
    ]
    refined = mapper(p, "visual2text_net", torch.cat(text[K:]), torch.cat(given))
    text[K:] = [refined[i * M : (i + 1) * M] for i in range(DEPTH - K)]
    return text, vision


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def plain_logits_and_loss(model, clip_model, texts, images, labels, anchor):
    p = dict(model.prompt_learner.named_parameters())
    text_prompts, vision_prompts = plain_prompts(p)
    frozen_text, prompted_text, frozen_image, prompted_image = [], [], [], []
    for name in NAMES:
        name = name.replace("_", " ")
        each = [unit(text_feature(clip_model, tokenize([t])[0], [], [])) for t in texts[name]]
        frozen_text.append(unit(torch.stack(each).mean(0)))
        ids = tokenize([f"a photo of a {name}."])[0]  # three prompts stand for "a photo of"
        prompted_text.append(unit(text_feature(clip_model, ids, [1, 2, 3], text_prompts)))
    for image in images:
        frozen_image.append(unit(image_feature(clip_model, image, [])))
        prompted_image.append(unit(image_feature(clip_model, image, vision_prompts)))
    w, w_p = torch.stack(frozen_text), torch.stack(prompted_text)
    v, v_p = torch.stack(frozen_image), torch.stack(prompted_image)
    logits = clip_model.logit_scale.exp() * unit(v + v_p) @ unit(w + w_p).t()
    log_probabilities = logits.log_softmax(dim=1)
    cross_entropy = -sum(log_probabilities[i, y] for i, y in enumerate(labels)) / len(labels)
    cos = torch.nn.CosineSimilarity(dim=1)
    image_anchor, text_anchor = (v_p, w_p) if anchor == "prompted" else (v, w)
    consistency = 2 - cos(v + v_p, image_anchor).mean() - cos(w + w_p, text_anchor).mean()
    return logits, cross_entropy, 12.0 * consistency


@pytest.mark.parametrize("anchor", ["prompted", "frozen"])
def test_logits_losses_and_gradients_equal_the_papers_equations(
    clip_model, small, tmp_path, anchor
):
    texts = write_descriptions(tmp_path / "texts.json")
    model = build(HiCroPL, clip_model, CONS_ANCHOR=anchor, **small)
    images, labels = batch()
    logits, terms = model(images, labels)
    expected = plain_logits_and_loss(model, clip_model, texts, images, labels, anchor)
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["loss_ce"], expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["loss_cons"], expected[2], rtol=1e-4, atol=1e-5)
    learned = dict(model.prompt_learner.named_parameters())
    fast = torch.autograd.grad(sum(terms.values()), learned.values())
    slow = torch.autograd.grad(expected[1] + expected[2], learned.values())
    for name, a, b in zip(learned, fast, slow, strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-7, name


def test_in_graph_mode_every_learnable_tensor_gets_a_gradient_and_nothing_is_mutated(
    clip_model, small
):
    model = build(HiCroPL, clip_model, **small)
    before = copy.deepcopy(model.state_dict())
    images, labels = batch()
    logits, terms = model(images, labels)
    sum(terms.values()).backward()
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith("prompt_learner.") for name in learned)
    for name, parameter in learned.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    again, _ = model(images, labels)
    assert torch.equal(logits, again)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for n, p in model.named_parameters() if n not in learned)


def test_in_place_mode_changes_the_prompts_and_gives_the_mappers_no_gradient(clip_model, small):
    graph = build(HiCroPL, clip_model, **small)
    model = build(HiCroPL, clip_model, MAPPER_UPDATE="in_place", **small)
    images, labels = batch()
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
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 168
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
def test_every_ablation_trains_all_its_tensors(clip_model, small, switch):
    model = build(HiCroPL, clip_model, **{**small, **switch})
    _, terms = model(*batch())
    assert ("loss_cons" in terms) == (switch.get("LAMBD") != 0.0)
    sum(terms.values()).backward()
    for name, parameter in model.prompt_learner.named_parameters():
        # Where a query sees a single key, softmax is 1: what makes queries and keys is idle.
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


def test_fixed_classes_change_no_logit_and_other_classes_can_be_set(clip_model, small):
    model = build(HiCroPL, clip_model, **{**small, "FROZEN_TEXT": "templates"}).eval()
    images, _ = batch()
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
    assert few.tokens.prefix == 1 + 4  # "a" stays behind the three prompts
    many = build(HiCroPL, clip_model, **{**small, "N_CTX": 7})
    assert many.tokens.slots.shape == (3, 7)
    assert "ignored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"CROSS_LAYER": 0}, r"CROSS_LAYER is 0, allowed: 1\.\.3"),
        ({"CROSS_LAYER": 4}, r"CROSS_LAYER is 4, allowed: 1\.\.3"),
        ({"PROMPT_DEPTH": 5}, r"PROMPT_DEPTH is 5, allowed: 1\.\.4"),
        ({"FLOW": "both"}, r"FLOW is 'both', allowed: t2i_i2t"),
        ({"N_CTX": 0}, r"N_CTX is 0"),
    ],
)
def test_settings_that_cannot_be(clip_model, small, values, message):
    _, node = settings(HiCroPL, **{**small, **values})
    with pytest.raises(UserError, match=message):
        HiCroPL.check_settings(HiCroPL, node, clip_model)


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
    with pytest.raises(UserError, match="no file"):
        build(HiCroPL, clip_model, **small)
    build(HiCroPL, clip_model, **small, FROZEN_TEXT="template")


def test_names_in_the_descriptions_may_be_spelt_otherwise(clip_model, small, tmp_path):
    texts = write_descriptions(tmp_path / "texts.json")
    expected = build(HiCroPL, clip_model, **small).frozen_text
    spelt = dict(
        zip(
            ["Red-Circle", "VERY  lárge_dog", "blue square", "no class"],
            texts.values(),
            strict=False,
        )
    )
    spelt["Blue_Square"] = ["never read: another name is exactly the class's"]
    spelt["no class"] = []
    (tmp_path / "texts.json").write_text(json.dumps(spelt))
    assert torch.equal(build(HiCroPL, clip_model, **small).frozen_text, expected)


def test_all_names_that_do_not_match_are_in_one_line(clip_model, small, tmp_path):
    spelt = {"Red Circle": ["x"], "red-circle": ["y"], "very large cat": ["z"]}
    (tmp_path / "texts.json").write_text(json.dumps(spelt))
    with pytest.raises(
        UserError,
        match=r"texts\.json' has no sentences for 'very large dog', 'blue square' and has several "
        r"names for 'red circle' \('Red Circle' or 'red-circle'\); correct it",
    ):
        build(HiCroPL, clip_model, **small)
    (tmp_path / "texts.json").write_text('{"red circle": "one text"}')
    with pytest.raises(UserError, match=r"has no list of sentences for 'red circle'"):
        build(HiCroPL, clip_model, **small)


def test_long_descriptions_are_cut_behind_the_last_word_that_fits(
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
    _, node = settings(HiCroPL, **small)
    with pytest.raises(UserError, match="ResNet, vision prompts need a ViT"):
        HiCroPL.check_settings(HiCroPL, node, resnet)
