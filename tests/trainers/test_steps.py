"""Every method's training step in parts of a batch and in bf16 is the plain one, up to rounding."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from clip import convert_weights
from dassl.config import get_cfg_default, merge_from_list
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.optimize import Update
from tests.trainers import toy
from tests.trainers.tiny import TEMPLATES, learned
from trainers.trainer import MethodTrainer

# For a comparison: without dropout, and without a loss over the images of a batch.
OPTIONS = {
    "CLIPLoRA": ["TRAINER.CLIPLORA.DROPOUT_RATE", "0"],
    "ProVP": ["OPTIM.USE_REF", "False"],
    "ProDA": ["TRAINER.PRODA.PROMPT_BS", "6"],
}
METHODS = {
    name: TRAINER_REGISTRY.get(name).method
    for name in sorted(TRAINER_REGISTRY.registered_names())
    if issubclass(TRAINER_REGISTRY.get(name), MethodTrainer)
    and TRAINER_REGISTRY.get(name).method.__module__.startswith("trainers.")
}
STEPPED = [name for name in METHODS if name in toy.CHECKPOINT]


def make(name, clip_model, *pairs):
    """Build a method on the tiny CLIP with the toy's settings, for the toy's classes."""
    cfg = get_cfg_default(name)
    merge_from_list(cfg, [*toy.OPTIONS.get(name, []), *pairs])
    torch.manual_seed(1)
    return METHODS[name](cfg, clip_model, list(toy.COLORS), TEMPLATES).train()


def batch_of(method):
    torch.manual_seed(5)
    images, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 2, 3])
    return (images if method.n_views == 1 else [images, images.flip(3)]), labels


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_in_parts_is_the_step_of_the_batch(name, clip_model, monkeypatch):
    # CoPrompt draws a sentence for each part
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(0))
    moved, found = [], []
    for parts in (1, 2, 5):
        model = make(name, clip_model, *OPTIONS.get(name, []))
        before = {key: t.detach().clone() for key, t in learned(model).items()}
        update = Update(torch.optim.SGD(learned(model).values(), lr=0.1), parts=parts)
        torch.manual_seed(2)
        logits, terms = model.step(*batch_of(model), update)
        moved.append({key: t.detach() - before[key] for key, t in learned(model).items()})
        found.append({"logits": logits.detach(), **{k: t.detach() for k, t in terms.items()}})
    for each in (1, 2):
        torch.testing.assert_close(found[each], found[0], rtol=1e-5, atol=1e-5)
        for key, expected in moved[0].items():
            error = (moved[each][key] - expected).norm() / expected.norm().clamp(min=1e-6)
            assert error < 1e-3, (key, error)


@pytest.mark.parametrize("name", METHODS)
def test_bf16_is_near_fp32(name, clip_model):
    half = deepcopy(clip_model)
    convert_weights(half, torch.bfloat16)
    exact, rough = make(name, clip_model), make(name, half)
    rough.load_state_dict(exact.saved(), strict=False)
    found = []
    for model in (exact, rough):
        torch.manual_seed(2)
        batch, labels = batch_of(model)
        features = model.features(batch)
        logits = model.logits(features)
        terms = model.losses(features, logits, labels)
        if learned(model):
            torch.stack(list(terms.values())).sum().backward()
        tensors = {k: v for k, v in features.items() if isinstance(v, torch.Tensor)}
        found.append({**tensors, "logits": logits})
        found[-1]["loss"] = torch.stack(list(terms.values())).sum()
    # random cosines are near 0, so that their errors are compared with 1
    found[0]["cosines"], found[1]["cosines"] = (
        1 + each.pop("logits") / clip_model.logit_scale.exp() for each in found
    )
    for key, expected in found[0].items():
        error = (found[1][key].float() - expected.float()).norm() / expected.float().norm()
        assert error < 2e-2, (key, error)
    for key, tensor in learned(rough).items():
        assert tensor.dtype == tensor.grad.dtype == torch.float32, key
        assert torch.isfinite(tensor.grad).all(), key
