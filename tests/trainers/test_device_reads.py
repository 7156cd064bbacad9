"""A step of the methods leaves its numbers on the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.dassl.test_trainer import count_reads
from tests.trainers.tiny import build, tiny_clip
from trainers.base import PromptTrainer
from trainers.coop import CoOp
from trainers.hisf import HISF
from trainers.promp import ProMPT
from trainers.promptsrc import PromptSRC

TERMS = {
    CoOp: [],  # one term, which is the loss
    PromptSRC: ["loss_ce", "loss_scl_text", "loss_scl_image", "loss_scl_logits"],
    HISF: ["loss_cls", "loss_le", "loss_sa"],
    ProMPT: ["loss_iteration1", "loss_iteration2"],
}


@pytest.mark.parametrize("method", TERMS)
def test_a_step_gives_tensors_and_reads_none(method: type[PromptTrainer], monkeypatch):
    trainer = method.__new__(method)
    trainer.model = build(method, tiny_clip(layers=9))
    trainer.device, trainer.autocast_dtype, trainer.scaler = torch.device("cpu"), None, None
    learned = [p for p in trainer.model.parameters() if p.requires_grad]
    trainer.optim = torch.optim.SGD(learned, lr=0.1)
    trainer.batch_idx, trainer.num_batches = 0, 3
    batch = {"img": torch.randn(3, 3, 16, 16), "label": torch.tensor([0, 2, 1])}
    trainer.forward_backward(batch)  # the first one may make frozen features
    before = learned[0].detach().clone()
    counts = [0]
    with monkeypatch.context() as patch:
        count_reads(patch, counts)
        summary = trainer.forward_backward(batch)
    assert counts == [0]
    assert list(summary) == ["loss", "acc", *TERMS[method]]
    assert all(isinstance(value, Tensor) for value in summary.values())
    assert not torch.equal(learned[0], before)
