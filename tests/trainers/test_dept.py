"""DePT against a plain computation, and over many methods as if it were not there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import train
from dassl.config import get_cfg_default, merge_from_list
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.optimize import Update
from dassl.utils import UserError
from tests.plain import assert_same_gradients, image_feature, text_feature, unit
from tests.trainers import toy
from tests.trainers.tiny import NAMES, TEMPLATES, class_ids, learned, load_public
from trainers.dept import bases
from trainers.trainer import follow_wrapped

OTHERS = ["green_hexagon", NAMES[2], "dog"]  # one was trained
FAST = ("CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC", "HiCroPL", "LAMM")


def make(clip_model, trainer, *pairs, names=NAMES):
    cfg = get_cfg_default(trainer)
    merge_from_list(cfg, ["TRAINER.NAME", trainer, *pairs])
    follow_wrapped(cfg)
    torch.manual_seed(1)
    return TRAINER_REGISTRY.get(trainer).method(cfg, clip_model, list(names), TEMPLATES)


def over_coop(clip_model, *pairs):
    base = ("TRAINER.DEPT.BASE", "CoOp", "TRAINER.COOP.N_CTX", "2")
    model = make(clip_model, "DePT", *base, *pairs)
    with torch.no_grad():  # FiLM starts as nothing
        for tensor in model.learned().values():
            tensor += 0.1 * torch.randn_like(tensor)
    return model


def plain_parts(clip_model, p, images, names=NAMES):
    """Return the cosines' logits, unit texts, and the head's logits of the images."""
    ctx = [p["prompt_learner.ctx"]]
    texts = [text_feature(clip_model, i, [1, 2], ctx) for i in class_ids("X X {}.", names)]
    texts = torch.stack([unit(text) for text in texts])
    found = torch.stack([unit(image_feature(clip_model, image, [])) for image in images])
    return clip_model.logit_scale.exp() * found @ texts.t(), texts, head_of(clip_model, p, found)


def head_of(clip_model, p, features, kind="img"):
    scale, bias = p[f"film_lp_{kind}.scale"], p[f"film_lp_{kind}.bias"]
    modulated = scale * features * clip_model.logit_scale.exp().sqrt() + bias
    return modulated @ p["linear_probe_proj.weight"].t() + p["linear_probe_proj.bias"]


def test_losses_and_gradients_equal_the_plain_computation(clip_model, batch):
    model = over_coop(clip_model, "TRAINER.DEPT.WEIGHT", "0.6")
    p, (images, labels) = learned(model), batch
    cosines, texts, of_images = plain_parts(clip_model, p, images)
    of_texts = head_of(clip_model, p, texts[labels], "text")
    head = (F.cross_entropy(of_images, labels) + F.cross_entropy(of_texts, labels)) / 2
    expected = {"loss_ce": 0.4 * F.cross_entropy(cosines, labels), "loss_head": 0.6 * head}
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, cosines, rtol=1e-4, atol=1e-4)
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-4, atol=1e-5)
    assert_same_gradients(p, sum(terms.values()), sum(expected.values()))


def plain_mixture(clip_model, p, images, names, trained):
    """Mix per image and class; ``trained`` has the head's row of each class that has one."""
    cosines, _, head = plain_parts(clip_model, p, images, names)
    rows = []
    for z, h in zip(cosines, head, strict=True):
        total = sum(z[k].exp() for k in trained)
        own = sum(h[row].exp() for row in trained.values())
        row = z.clone()
        for k, place in trained.items():
            row[k] = 0.3 * z[k] + 0.7 * (h[place] + (total / own).log())
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("names", "trained"),
    [
        (NAMES, {0: 0, 1: 1, 2: 2}),
        (NAMES[::-1], {0: 2, 1: 1, 2: 0}),
        (OTHERS, {1: 2}),
        (["dog", "cat"], {}),
    ],
)
def test_the_head_has_a_say_about_its_own_classes(clip_model, batch, names, trained):
    model, images = over_coop(clip_model).eval(), batch[0]
    with torch.no_grad():
        model.set_classes(names)
        expected = plain_mixture(clip_model, learned(model), images, names, trained)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_predictions_on_the_classes_of_training_are_those_of_the_released_mixture(
    clip_model, batch
):
    model, images = over_coop(clip_model).eval(), batch[0]
    with torch.no_grad():
        cosines, _, head = plain_parts(clip_model, learned(model), images)
        released = (0.3 * cosines + 0.7 * head).softmax(dim=1)
        torch.testing.assert_close(model(images).softmax(dim=1), released, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "base",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in bases()],
)
def test_without_weight_it_is_the_base(clip_model, base):
    images, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 2, 1])
    zero = ("TRAINER.DEPT.BASE", base, "TRAINER.DEPT.WEIGHT", "0.0")
    found = []
    for trainer, pairs in ((base, ()), ("DePT", zero)):
        pairs = (*toy.OPTIONS.get(base, []), *pairs)
        model = make(clip_model, trainer, *pairs, names=toy.COLORS).train()
        batch = images if model.n_views == 1 else [images, images.flip(3)]
        optim_cfg = get_cfg_default(trainer).OPTIM
        update = Update(torch.optim.SGD(model.param_groups(optim_cfg), lr=0.1))
        for _ in range(2):
            trained_on, terms = model.step(batch, labels, update)
        model.after_epoch(0, 1)
        drawn = torch.rand(1)  # nothing more was drawn
        with torch.no_grad():
            logits = model.eval()(images)
        found.append({"drawn": drawn, "step": trained_on, "logits": logits, **terms})
        found[-1] |= {f"learned.{name}": tensor for name, tensor in model.learned().items()}
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor), name
    added = {name.removeprefix("learned.") for name in found[1].keys() - found[0].keys()}
    films = {f"film_lp_{kind}.{name}" for kind in ("img", "text") for name in ("scale", "bias")}
    head = {"linear_probe_proj.weight", "linear_probe_proj.bias"}
    assert added == {*films, *head, "loss_head"}
    assert isinstance(model, TRAINER_REGISTRY.get(base).method)


def public_state(count):
    shapes = {"prompt_learner.ctx": (2, 32), "linear_probe_proj.weight": (count, 24)}
    shapes["linear_probe_proj.bias"] = (count,)
    shapes |= {f"film_lp_{k}.{n}": (24,) for k in ("img", "text") for n in ("scale", "bias")}
    torch.manual_seed(3)
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("names", "count", "trained"),
    [
        (NAMES, 3, {0: 0, 1: 1, 2: 2}),
        ([], 3, {0: 0, 1: 1, 2: 2}),
        ([], 5, {}),
        (["tree", NAMES[1], "dog", NAMES[0]], 4, {0: 3, 1: 1}),
    ],
)
def test_a_checkpoint_decides_by_the_names_that_it_holds(clip_model, batch, names, count, trained):
    model, state = over_coop(clip_model).eval(), public_state(count)
    copies = ("prompt_learner.token_prefix", "image_encoder.conv1.weight", "logit_scale")
    assert model.saved().keys() == state.keys()
    load_public(model, {**state, **dict.fromkeys(copies, torch.zeros(1))}, "model.pth", names)
    with torch.no_grad():
        expected = plain_mixture(clip_model, state, batch[0], NAMES, trained)
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)
    del state["film_lp_img.scale"]
    with pytest.raises(UserError, match=r"film_lp_img\.scale"):
        load_public(model, state, "model.pth", names)


def test_what_it_adds_has_a_learning_rate_of_its_own(clip_model):
    model = over_coop(clip_model)
    optim = get_cfg_default("DePT").OPTIM
    base, added = model.param_groups(optim)
    assert [id(tensor) for tensor in base["params"]] == [id(model.prompt_learner.ctx)]
    assert len(added["params"]) == 6 and added["lr"] == pytest.approx(6.5 * optim.LR)


@pytest.mark.parametrize("base", ["", "coop", "DePT", "ProGrad", "TipAdapterF", "LinearProbe"])
def test_a_base_that_cannot_be(clip_model, base):
    expected = rf"^TRAINER\.DEPT\.BASE: expected .* one of .*MaPLe.*, got '{base}'$"
    with pytest.raises(UserError, match=expected):
        make(clip_model, "DePT", "TRAINER.DEPT.BASE", base)


def cfg_of(*pairs):
    return train.setup_cfg(train.build_parser().parse_args(["--trainer", "DePT", *pairs]))


@pytest.mark.parametrize("base", ["KgCoOp", "TCP", "ProVP", "MaPLe"])
def test_the_base_has_its_own_defaults(base):
    node = TRAINER_REGISTRY.get(base).method.config_node
    cfg, own = cfg_of("TRAINER.DEPT.BASE", base), get_cfg_default(base)
    for key, value in own.TRAINER[node].items():
        assert cfg.TRAINER[node][key] == value, key
    assert cfg_of("TRAINER.DEPT.BASE", base, f"TRAINER.{node}.N_CTX", "9").TRAINER[node].N_CTX == 9


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("TRAINER.MAPLE.N_CTX", "0"), "MAPLE.N_CTX: expected a whole number in 1..1000, got 0"),
        (("TRAINER.COOP.N_CTX", "3"), "COOP.N_CTX: expected no value, as DePT does not read it"),
        (
            ("TRAINER.DEPT.BASE", "CoOp", "TRAINER.COOP.W", "3"),
            "COOP.W: expected no value, as CoOp",
        ),
        (("TRAINER.DEPT.WEIGHT", "1.5"), "DEPT.WEIGHT: expected a number in [0, 1], got 1.5"),
    ],
)
def test_settings_that_cannot_be(run, pairs, message):
    code, out = run("DePT", "run", *pairs)
    assert code == 2 and f"error: TRAINER.{message}" in out


def test_a_run_with_another_weight_is_loaded_with_a_warning(run, tmp_path):
    pairs = ("DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.DEPT.WEIGHT")
    assert run("DePT", "run", *pairs, "0.5", epochs=1)[0] == 0
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    code, out = run("DePT", "again", *pairs, "0.7", flags=flags)
    assert code == 0, out
    assert "TRAINER.DEPT.WEIGHT: the run in" in out and "had 0.5, got 0.7" in out
    assert (tmp_path / "again" / "results.json").is_file()
