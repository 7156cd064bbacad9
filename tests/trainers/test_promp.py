"""ProMPT against a plain computation: one image, one class, 77 tokens at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import trainers.base as base
import trainers.promp as promp
from clip import CLIP, tokenize
from dassl.utils import UserError
from tests.plain import assert_same_gradients, image_feature, text_feature, unit
from tests.trainers.tiny import NAMES, TEMPLATES, build, check, learned, tiny_clip
from trainers.promp import ProMPT
from trainers.zsclip import ZeroshotCLIP

pytestmark = pytest.mark.tiny(layers=3)
SMALL = {"PROMPT_DEPTH_VISION": 2, "N_CTX_VISION": 2, "N_CTX_TEXT": 5}


@pytest.fixture(autouse=True)
def wider_generators(monkeypatch):
    # A sixteenth of the tiny model's 24 features would be a single unit, which may be dead.
    monkeypatch.setattr(promp, "REDUCTION", 3)


def plain_steps(model, clip_model, images, names, words="a photo of a X"):
    """Return the logits of the initialization and of every iteration: a list of (B, K)."""
    s, p = model.settings, dict(model.prompt_learner.named_parameters())
    steps = [[] for _ in range(s.ITERATIONS + 1)]

    def generate(kind, j, feature):
        hidden = p[f"{kind}.weight1"] @ feature + p[f"{kind}.bias1"][j]
        return p[f"{kind}.weight2"] @ hidden.clamp(min=0) + p[f"{kind}.bias2"][j]

    def scores(x, texts):
        return torch.stack([clip_model.logit_scale.exp() * (x @ z) for z in texts])

    def kept(row, texts):
        if not s.FEATURE_FILTER:
            return texts
        order = sorted(range(len(texts)), key=lambda k: -row[k].item())
        return [texts[k] for k in order[: s.N_CTX_VISION]]

    for image in images:
        x = unit(image_feature(clip_model, image, []))
        texts = []
        for name in names:
            ids = tokenize([f"a photo of a {name.replace('_', ' ')}."])[0]
            texts.append(unit(text_feature(clip_model, ids, [], [])))
        row = scores(x, texts)
        steps[0].append(row)
        vision, context = None, p.get("ctx")
        for n in range(1, s.ITERATIONS + 1):
            if s.VISION_GENERATOR:
                chosen = kept(row, texts)
                new = [
                    torch.stack([generate("vision_generator", j, z) for z in chosen])
                    for j in range(s.PROMPT_DEPTH_VISION)
                ]
                vision = (
                    new if vision is None else [a + b for a, b in zip(vision, new, strict=True)]
                )
                x = unit(image_feature(clip_model, image, vision))
            if s.TEXT_GENERATOR:
                shift = generate("text_generator", 0, x)
                context = torch.stack([token + shift for token in context])
            texts = []
            for name in names:
                ids = tokenize([f"{words} {name.replace('_', ' ')}."])[0]
                slots = list(range(1, 1 + s.N_CTX_TEXT))
                texts.append(unit(text_feature(clip_model, ids, slots, [context])))
            row = scores(x, texts)
            steps[n].append(row)
    return [torch.stack(rows) for rows in steps]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"ITERATIONS": 3, "LAMBD": 0.5},
        {"ITERATIONS": 1, "N_CTX_VISION": 8, "N_CTX_TEXT": 2},  # more prompts than classes
        {"VISION_GENERATOR": False},
        {"TEXT_GENERATOR": False},
        {"VISION_GENERATOR": False, "TEXT_GENERATOR": False},
        {"FEATURE_FILTER": False},
    ],
)
def test_every_iteration_loss_and_gradients_equal_the_plain_computation(clip_model, values, batch):
    model = build(ProMPT, clip_model, **{**SMALL, **values})
    images, labels = batch
    words = "a photo of a" if values.get("N_CTX_TEXT") == 2 else "a photo of a X"
    expected = plain_steps(model, clip_model, images, NAMES, words)
    steps = model.features(images)["steps"].unbind(1)
    assert len(steps) == len(expected) == model.settings.ITERATIONS + 1
    for fast, slow in zip(steps, expected, strict=True):
        torch.testing.assert_close(fast.softmax(dim=1), slow.softmax(dim=1), rtol=1e-4, atol=1e-5)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected[-1], rtol=1e-4, atol=1e-4)
    n_last = model.settings.ITERATIONS
    loss = torch.zeros(())
    for n in range(1, n_last + 1):
        for row, label in zip(expected[n], labels, strict=True):
            log_p = row[label] - row.exp().sum().log()
            loss = loss - model.settings.LAMBD ** (n_last - n) * log_p / len(labels)
    total = sum(terms.values())
    torch.testing.assert_close(total, loss, rtol=1e-4, atol=1e-5)
    assert_same_gradients(learned(model.prompt_learner), total, loss)


def test_learnable_tensors_and_their_start():
    model = build(ProMPT, tiny_clip(), PROMPT_DEPTH_VISION=4)
    shapes = {n: tuple(p.shape) for n, p in learned(model).items()}
    assert shapes == {
        "prompt_learner.ctx": (5, 32),
        "prompt_learner.vision_generator.weight1": (8, 24),
        "prompt_learner.vision_generator.bias1": (4, 8),
        "prompt_learner.vision_generator.weight2": (48, 8),
        "prompt_learner.vision_generator.bias2": (4, 48),
        "prompt_learner.text_generator.weight1": (8, 24),
        "prompt_learner.text_generator.bias1": (1, 8),
        "prompt_learner.text_generator.weight2": (32, 8),
        "prompt_learner.text_generator.bias2": (1, 32),
    }
    words = model.clip.token_embedding(tokenize(["a photo of a"])[0, 1:5])
    assert torch.equal(model.prompt_learner.ctx[:4], words)
    assert 0 < model.prompt_learner.ctx[4].std() < 0.05


def test_no_iteration_is_zero_shot_clip_exactly(clip_model, batch):
    # bitwise where the first template of the dataset is that of the initialization, as it is here
    assert TEMPLATES[0] == promp.TEMPLATE
    images, _ = batch
    model, plain = build(ProMPT, clip_model, ITERATIONS=0), build(ZeroshotCLIP, clip_model)
    assert not learned(model)
    for names in (NAMES, ["cat", "small_red bus", "fern", "pot"]):
        model.set_classes(names)
        plain.set_classes(names)
        with model.fixed_classes(), plain.fixed_classes(), torch.no_grad():
            assert torch.equal(model(images), plain(images))


def test_initialization_is_that_of_zero_shot_clip_at_any_number_of_iterations(clip_model, batch):
    images, _ = batch
    model = build(ProMPT, clip_model, **SMALL)
    steps = model.features(images)["steps"]
    assert torch.equal(steps[:, 0], build(ZeroshotCLIP, clip_model)(images))


@pytest.mark.parametrize("text_generator", [True, False])
def test_same_logits_in_any_order_or_split_and_for_other_classes(clip_model, text_generator, batch):
    model = build(ProMPT, clip_model, **SMALL, TEXT_GENERATOR=text_generator)
    images, _ = batch
    names = ["cat", "small_red bus", "fern", "pot"]
    model.set_classes(names)
    with torch.no_grad():
        expected = plain_steps(model, clip_model, images, names)[-1]
        with model.fixed_classes():
            for order in ([0, 1, 2], [2, 0, 1]):
                torch.testing.assert_close(
                    model(images[order]), expected[order], rtol=1e-4, atol=1e-4
                )
            split = torch.cat([model(part) for part in images.split(2)])
    torch.testing.assert_close(split, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("limit", [1, 12, 50])
def test_evaluation_in_chunks_of_any_size_gives_the_same(clip_model, monkeypatch, limit):
    model = build(ProMPT, clip_model, **SMALL)
    names = [f"thing number {word}" for word in "one two three four five six seven".split()]
    model.set_classes(names)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = model(images)
    passes = []
    encode_text = CLIP.encode_text

    def spy(self, tokens, prompts):
        length = tokens.ids.shape[1] - tokens.prefix
        passes.append(len(prompts[0]) * (tokens.prefix + len(tokens.ids) * length))
        return encode_text(self, tokens, prompts)

    monkeypatch.setattr(CLIP, "encode_text", spy)
    monkeypatch.setattr(base, "TEXT_TOKENS", limit)
    with torch.no_grad():
        torch.testing.assert_close(model(images), whole, rtol=1e-4, atol=1e-4)
    # One image against one class is the smallest possible case.
    assert max(passes) <= max(limit, model.tokens.ids.shape[1])
    assert len(passes) > 2


def test_frozen_clip_stays_untouched(batch):
    model = build(ProMPT, tiny_clip(layers=3), **SMALL)
    before = {name: t.clone() for name, t in model.clip.state_dict().items()}
    optimizer = torch.optim.SGD(learned(model).values(), lr=0.1)
    images, labels = batch
    start = model(images).detach()
    for _ in range(2):
        optimizer.zero_grad()
        sum(model(images, labels)[1].values()).backward()
        optimizer.step()
    assert all(torch.equal(t, before[name]) for name, t in model.clip.state_dict().items())
    assert all(p.grad is None for p in model.clip.parameters())
    loss = F.cross_entropy(model(images), labels)
    assert loss < F.cross_entropy(start, labels)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"PROMPT_DEPTH_VISION": 4}, "PROMPT_DEPTH_VISION: expected a whole number in 1..3, got 4"),
        ({"ITERATIONS": -1}, "ITERATIONS: expected a whole number in 0..100, got -1"),
        ({"N_CTX_VISION": 0}, "N_CTX_VISION: expected a whole number in 1..1000, got 0"),
        ({"N_CTX_TEXT": 0}, "N_CTX_TEXT: expected a whole number in 1..1000, got 0"),
        ({"LAMBD": -0.5}, "LAMBD: expected a number >= 0, got -0.5"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=f"TRAINER.PROMPT.{message}"):
        check(ProMPT, clip_model, **{"PROMPT_DEPTH_VISION": 3, **values})


def lines_of(folder):
    return [json.loads(line) for line in (folder / "evolution.jsonl").read_text().splitlines()]


def test_evolution_record_is_the_softmax_of_every_step():
    torch.manual_seed(3)
    names = {k: f"name_{k}" for k in range(7)}
    logits = torch.randn(3, 7)
    logits[2, 4] = logits[2, 1] = 9.0  # the first of equal logits is the prediction
    record = promp.evolution_record("a.png", 6, logits, names)
    assert (record["path"], record["label"], record["class_name"]) == ("a.png", 6, "name_6")
    assert len(record["steps"]) == 3
    for step, row in zip(record["steps"], logits.tolist(), strict=True):
        exponents = np.exp(row)
        expected = exponents / exponents.sum()
        order = sorted(range(7), key=lambda k: (-row[k], k))[:5]
        assert [(k, name) for k, name, _ in step["top"]] == [(k, names[k]) for k in order]
        np.testing.assert_allclose([p for _, _, p in step["top"]], expected[order], rtol=1e-5)
        assert step["true"] == pytest.approx(expected[6], rel=1e-5)
    assert record["steps"][2]["top"][0][0] == 1
    assert len(promp.evolution_record("a.png", 0, logits[:, :3], names)["steps"][0]["top"]) == 3


@pytest.mark.parametrize("iterations", ["0", "2"])
def test_evolution_is_kept_in_the_order_of_the_test(run, tmp_path, iterations):
    options = ["TRAINER.PROMPT.ITERATIONS", iterations]
    assert run("ProMPT", "trained", *options, epochs=1)[0] == 0
    assert not (tmp_path / "trained/evolution.jsonl").exists()
    for size in ("5", "12"):
        code, out = run(
            "ProMPT", size, *options, "TEST.SAVE_EVOLUTION", "True", "TEST.SAVE_LOGITS", "True",
            "DATALOADER.TEST.BATCH_SIZE", size,
            flags=["--eval-only", "--model-dir", f"{tmp_path}/trained"],
        )  # fmt: skip
        assert code == 0, out
    found, other = lines_of(tmp_path / "5"), lines_of(tmp_path / "12")
    saved = np.load(tmp_path / "5/logits.npz")
    assert [line["path"] for line in found] == saved["impaths"].tolist()
    assert [line["label"] for line in found] == saved["labels"].tolist()
    for line, again, logits in zip(found, other, saved["logits"].astype(float), strict=True):
        assert line["class_name"] in line["path"]
        assert len(line["steps"]) == int(iterations) + 1
        last = line["steps"][-1]
        assert last["top"][0][0] == logits.argmax()
        probabilities = np.exp(logits) / np.exp(logits).sum()
        kept = [p for _, _, p in last["top"]]
        np.testing.assert_allclose(kept, sorted(probabilities, reverse=True), rtol=1e-4)
        assert last["true"] == pytest.approx(probabilities[line["label"]], rel=1e-4)
        assert (again["path"], len(again["steps"])) == (line["path"], len(line["steps"]))
        for step, same in zip(line["steps"], again["steps"], strict=True):
            assert len(step["top"]) == 4  # all classes
            assert step["true"] == pytest.approx(same["true"], rel=1e-3)


def test_evolution_may_be_asked_for_when_the_run_is_finished(run, tmp_path):
    assert run("ProMPT", "once", epochs=1)[0] == 0
    code, out = run("ProMPT", "once", "TEST.SAVE_EVOLUTION", "True", epochs=1)
    assert code == 0 and "not training again" in out
    assert len(lines_of(tmp_path / "once")) == 12


def test_an_interrupted_evaluation_leaves_no_evolution(run, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(promp.EvolutionRecorder, "finish", interrupted)
    assert run("ProMPT", "cut", "TEST.SAVE_EVOLUTION", "True", epochs=1)[0] == 130
    assert not list((tmp_path / "cut").glob("*evolution*"))


def test_evolution_with_another_trainer_says_which_one_it_is_for(run):
    code, out = run("CoOp", "wrong", "TEST.SAVE_EVOLUTION", "True")
    assert code == 2
    assert "error: TEST.SAVE_EVOLUTION is True, but the trainer is CoOp; it is for ProMPT" in out
