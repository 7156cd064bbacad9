"""The plain reference computes what the methods compute, so that a ratio compares the same."""

import pytest
import torch

import trainers  # noqa: F401
from benchmarks import plain
from benchmarks.cost.measure import plain_method
from dassl.engine import TRAINER_REGISTRY
from tests.trainers.tiny import NAMES, TEMPLATES, settings, tiny_clip, write_descriptions

LAYERS = 4
DEPTHS = {
    "HiCroPL": {"PROMPT_DEPTH": LAYERS, "CROSS_LAYER": 2, "N_CTX": 3},
    "MaPLe": {"PROMPT_DEPTH": 3},
    "IVLP": {"PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 2},
    "PromptSRC": {"PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 2},
    "ProMPT": {"PROMPT_DEPTH_VISION": 3, "N_CTX_VISION": 2, "LAMBD": 0.5},
}


@pytest.mark.parametrize("name", plain.METHODS)
def test_logits_loss_and_gradients_are_the_methods(name, tmp_path):
    values = dict(DEPTHS.get(name, {}))
    if name == "HiCroPL":
        write_descriptions(tmp_path / "texts.json")
        values["DESCRIPTIONS"] = str(tmp_path / "texts.json")
    kind = TRAINER_REGISTRY.get(name).method
    cfg, _ = settings(kind, **values)
    torch.manual_seed(2)
    method = kind(cfg, tiny_clip(LAYERS), NAMES, TEMPLATES).train()
    for key, tensor in method.learned().items():
        if key.endswith(("linear1.bias", "generator.bias1")):
            tensor.data.fill_(1.0)  # at this size the ReLU behind it has one unit: it is to be open
    reference = plain_method(method).train()
    images, labels = torch.randn(3, 3, 16, 16), torch.tensor([1, 0, 2])
    logits, terms = method(images, labels)
    torch.stack(list(terms.values())).sum().backward()
    found = reference(images)
    loss = reference.loss(found, labels)
    loss.backward()
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, torch.stack(list(terms.values())).sum(), rtol=1e-4, atol=0)
    learned = method.learned()
    assert reference.p.keys() == learned.keys()
    for key, tensor in learned.items():
        expected, got = tensor.grad, reference.p[key].grad
        assert expected.abs().max() > 0, key
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max(), key
    with torch.no_grad():
        method.eval()
        expected, got = method(images), reference.eval()(images)["logits"]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
