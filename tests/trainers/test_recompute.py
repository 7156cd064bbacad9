"""Training steps of all methods, with blocks kept and with blocks computed again."""

from __future__ import annotations

import pytest
import torch

from dassl.config import get_cfg_default, merge_from_list
from dassl.engine import TRAINER_REGISTRY
from tests.trainers import toy
from trainers.base import Method
from trainers.trainer import MethodTrainer

TRAINED = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), MethodTrainer)
    and TRAINER_REGISTRY.get(name).method.layers is not Method.layers
]


@pytest.mark.parametrize("name", TRAINED)
def test_recomputation_changes_no_gradient(clip_model, name):
    cfg = get_cfg_default(name)
    cfg.DATASET.NAME = "ColourPatches"
    merge_from_list(cfg, [*toy.OPTIONS.get(name, [])])
    method = TRAINER_REGISTRY.get(name).method
    model = method(cfg, clip_model, list(toy.COLORS), ["a photo of a {} patch."]).train()
    images, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 2, 1])
    batch = images if method.n_views == 1 else [images] * method.n_views
    with torch.no_grad():
        for tensor in model.learned().values():  # LoRA and others start as zero
            tensor += 0.01 * torch.randn_like(tensor)
    results, saved = [], []
    for choice in ("never", "always"):
        told = []
        for transformer in clip_model.transformers:
            transformer.recompute, transformer.observe = choice, told.append
        torch.manual_seed(3)
        logits, terms = model(batch, labels)
        loss = torch.stack(list(terms.values())).sum()
        gradients = torch.autograd.grad(loss, list(model.learned().values()), allow_unused=True)
        results.append([logits, *gradients])
        saved.append([kept.whole - kept.n_bytes for kept in told])
    assert saved[0] and max(saved[0]) == 0 < min(saved[1])
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in results[0][1:])
