"""CLIP-LoRA against a plain computation, its iterations, and the file of the public code."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip import Layer
from dassl.utils import UserError
from tests.plain import assert_same_gradients, plain_logits, text_feature
from tests.trainers.tiny import TEMPLATES, bare_trainer, build, check, class_ids, learned
from trainers.cliplora import CLIPLoRA
from trainers.trainer import MethodTrainer

LAYERS = 4
FILE_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}


def plain_layers(p, first, params, scaling):
    """Return the blocks of a tower, whose first is layer ``first`` of the saved file."""

    def update(i, param, x):
        a, b = (p[f"layer_{i}.{FILE_NAMES[param]}.w_lora_{side}"] for side in "AB")
        return scaling * x @ (b @ a).t()

    def qkv(i):
        def each(x):
            parts = [update(i, c, x) if c in params else torch.zeros_like(x) for c in "qkv"]
            return torch.cat(parts, dim=-1)

        return each

    def out(i):
        return (lambda x: update(i, "o", x)) if "o" in params else None

    return [Layer(qkv=qkv(i), out=out(i)) for i in range(first, first + LAYERS)]


def plain_lora_logits(clip_model, p, images, encoder="both", params="qkv", scaling=1 / 2**0.5):
    text = plain_layers(p, 0, params, scaling) if encoder != "vision" else []
    first = LAYERS if encoder == "both" else 0
    vision = plain_layers(p, first, params, scaling) if encoder != "text" else []
    texts = [text_feature(clip_model, ids, [], text) for ids in class_ids(TEMPLATES[0])]
    return plain_logits(clip_model, images, texts, vision)


def randomize(tensors):
    """Randomize the tensors: the second matrices start at zero, which would hide the first."""
    torch.manual_seed(7)
    with torch.no_grad():
        for tensor in tensors:
            tensor.normal_(0, 0.2)


@pytest.mark.parametrize(
    ("encoder", "params", "rank", "alpha"),
    [("both", "qkv", 2, 1), ("text", "kvo", 3, 2), ("vision", "o", 1, 1)],
)
def test_logits_and_gradients_equal_the_plain_computation(
    clip_model, batch, encoder, params, rank, alpha
):
    values = {"ENCODER": encoder, "PARAMS": tuple(params), "R": rank, "ALPHA": alpha}
    model = build(CLIPLoRA, clip_model, DROPOUT_RATE=0.0, **values)
    p = learned(model.lora)
    randomize(p.values())
    images, labels = batch
    scaling = alpha / math.sqrt(rank)
    expected = plain_lora_logits(clip_model, p, images, encoder, params, scaling)
    logits, terms = model(images, labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert_same_gradients(p, sum(terms.values()), F.cross_entropy(expected, labels))


def test_names_shapes_and_start(clip_model):
    model = build(CLIPLoRA, clip_model)
    expected = {}
    for i in range(2 * LAYERS):
        width = 32 if i < LAYERS else 48  # the text tower's blocks come first
        for name in ("q_proj", "k_proj", "v_proj"):
            expected[f"layer_{i}.{name}.w_lora_A"] = (2, width)
            expected[f"layer_{i}.{name}.w_lora_B"] = (width, 2)
    assert {name: tuple(t.shape) for name, t in model.saved().items()} == expected
    for name, tensor in model.saved().items():
        assert (tensor.abs().max() == 0) == name.endswith("B"), name


def test_dropout_acts_in_training_alone_and_on_each_projection_by_itself(clip_model, batch):
    model = build(CLIPLoRA, clip_model, DROPOUT_RATE=0.5)
    randomize(learned(model.lora).values())
    images, _ = batch
    with torch.no_grad():
        assert not torch.equal(model.train()(images), model(images))
        evaluated = model.eval()(images)
        expected = plain_lora_logits(clip_model, model.saved(), images)
        torch.testing.assert_close(evaluated, expected, rtol=1e-4, atol=1e-4)
        layer = model.lora["layer_0"].train()
        layer["k_proj"].load_state_dict(layer["q_proj"].state_dict())
        q, k, _ = layer.qkv(torch.randn(5, 32)).chunk(3, dim=-1)
        assert not torch.equal(q, k)


def test_iterations_count_and_each_steps_the_schedule(run, tmp_path, monkeypatch):
    rates = []
    step = MethodTrainer.forward_backward

    def record(self, batch):
        rates.append(self.get_current_lr())
        return step(self, batch)

    monkeypatch.setattr(MethodTrainer, "forward_backward", record)
    options = ["TRAINER.CLIPLORA.N_ITERS", "3", "DATASET.NUM_SHOTS", "-1", "OPTIM.LR", "0.0002"]
    code, out = run("CLIPLoRA", "lora", *options, "DATALOADER.TRAIN_X.BATCH_SIZE", "3", epochs=50)
    assert code == 0, out
    # 4 images of each class, 3 iterations for each: 12, in epochs of 5, 5 and 2 batches
    assert "Training takes 12 iterations (3 epochs)" in out
    assert "epoch [3/3] batch [2/2]" in out and "batch [3/5]" in out
    expected = [1e-6 + (2e-4 - 1e-6) * (1 + math.cos(math.pi * i / 12)) / 2 for i in range(12)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert (tmp_path / "lora/lora/model.pth.tar-3").exists()
    code, out = run("CLIPLoRA", "lora", *options, "DATALOADER.TRAIN_X.BATCH_SIZE", "3", epochs=50)
    assert code == 0 and "not training again" in out


def public_file(tensors, **metadata):
    weights: dict = {}
    for name, tensor in tensors.items():
        layer, projection, matrix = name.split(".")
        weights.setdefault(layer, {}).setdefault(projection, {})[matrix] = tensor
    own = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "all"}
    return {"weights": weights, "metadata": {**own, **metadata}}


def test_the_file_of_the_public_code_is_read(clip_model, batch, tmp_path):
    model = build(CLIPLoRA, clip_model).eval()
    torch.manual_seed(3)
    tensors = {name: 0.2 * torch.randn(t.shape) for name, t in model.saved().items()}
    torch.save(public_file(tensors), tmp_path / "lora_weights.pt")
    bare_trainer(model).load_model(str(tmp_path))
    with torch.no_grad():
        expected = plain_lora_logits(clip_model, tensors, batch[0])
        torch.testing.assert_close(model(batch[0]), expected, rtol=1e-4, atol=1e-4)


def test_both_forms_give_the_same_evaluation(run, tmp_path):
    options = ["TRAINER.CLIPLORA.N_ITERS", "1", "OPTIM.LR", "0.01"]
    assert run("CLIPLoRA", "ours", *options)[0] == 0
    tensors = torch.load(tmp_path / "ours/lora/model.pth.tar-1", weights_only=True)["state_dict"]
    (tmp_path / "public").mkdir()
    torch.save(public_file(tensors), tmp_path / "public/lora_weights.pt")
    figures = []
    for folder in ("ours", "public"):
        flags = ["--eval-only", "--model-dir", str(tmp_path / folder)]
        code, out = run("CLIPLoRA", f"eval_{folder}", "TEST.RECORD", "('logits',)", flags=flags)
        assert code == 0, out
        figures.append(np.load(tmp_path / f"eval_{folder}/logits.npz")["logits"])
        assert json.loads((tmp_path / f"eval_{folder}/results.json").read_text())["accuracy"] >= 0
    assert np.array_equal(*figures)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"r": 4}, r"TRAINER\.CLIPLORA\.R: expected 4, got 2"),
        ({"params": ["q", "v"]}, r"CLIPLORA\.PARAMS: expected \['q', 'v'\], got \('q', 'k', 'v'\)"),
        ({"encoder": "text"}, r"CLIPLORA\.ENCODER: expected text, got both"),
        ({"position": "top3"}, r"CLIPLORA\.POSITION: expected top3, got all"),
        ({"seed": 1}, "lora_weights.pt' is not what CLIPLoRA's code saves"),
        (None, "lora_weights.pt' is not what CLIPLoRA's code saves"),
    ],
)
def test_a_public_file_of_other_settings_is_refused(clip_model, tmp_path, content, message):
    model = build(CLIPLoRA, clip_model)
    file = {"weights": {}} if content is None else public_file(model.saved(), **content)
    torch.save(file, tmp_path / "lora_weights.pt")
    with pytest.raises(UserError, match=message):
        bare_trainer(model).load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"R": 0}, "R: expected a whole number in 1..10000, got 0"),
        ({"N_ITERS": 0}, "N_ITERS: expected a whole number >= 1, got 0"),
        ({"DROPOUT_RATE": 1.5}, r"DROPOUT_RATE: expected a number in \[0, 1\], got 1\.5"),
        ({"PARAMS": ()}, r"PARAMS: expected a list of some of q, k, v, o, got \(\)"),
        ({"PARAMS": ("q", "x")}, "PARAMS: expected a list of some of q, k, v, o"),
        ({"ENCODER": "image"}, "ENCODER: expected one of both, text, vision, got 'image'"),
    ],
)
def test_settings_that_cannot_be(clip_model, values, message):
    with pytest.raises(UserError, match=message):
        check(CLIPLoRA, clip_model, **values)
