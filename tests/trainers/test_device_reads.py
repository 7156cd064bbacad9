"""The methods' training steps leave their numbers on the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.device_reads import count_reads
from tests.trainers.tiny import bare_trainer, build, learned, tiny_clip, write_descriptions
from trainers.base import Method
from trainers.cliplora import CLIPLoRA
from trainers.cocoop import CoCoOp
from trainers.coop import CoOp
from trainers.hicropl import HiCroPL
from trainers.hisf import HISF
from trainers.maple import MaPLe
from trainers.mma import MMA
from trainers.promp import ProMPT
from trainers.promptsrc import PromptSRC

TERMS: dict[type[Method], list[str]] = {
    CoOp: [],  # one term, which is the loss
    CoCoOp: [],
    MaPLe: [],
    MMA: [],
    CLIPLoRA: [],
    HiCroPL: ["loss_ce", "loss_cons"],
    PromptSRC: ["loss_ce", "loss_scl_text", "loss_scl_image", "loss_scl_logits"],
    HISF: ["loss_cls", "loss_le", "loss_sa"],
    ProMPT: ["loss_iteration1", "loss_iteration2"],
}


@pytest.mark.parametrize("method", TERMS)
def test_a_step_gives_tensors_and_reads_none(method, monkeypatch, tmp_path):
    values = {}
    if method is HiCroPL:
        write_descriptions(tmp_path / "texts.json")
        values = {"FROZEN_TEXT": "random", "DESCRIPTIONS": str(tmp_path / "texts.json")}
    trainer = bare_trainer(build(method, tiny_clip(layers=12), **values))
    trainer.device, trainer.scaler = torch.device("cpu"), None
    tensors = list(learned(trainer.model).values())
    trainer.optim = torch.optim.SGD(tensors, lr=0.1)
    trainer.batch_idx, trainer.num_batches = 0, 3
    batch = {"img": torch.randn(3, 3, 16, 16), "label": torch.tensor([0, 2, 1])}
    trainer.forward_backward(batch)  # the first one may make frozen features
    before = [tensor.detach().clone() for tensor in tensors]
    counts = [0]
    with monkeypatch.context() as patch:
        count_reads(patch, counts)
        summary = trainer.forward_backward(batch)
    assert counts == [0]
    assert list(summary) == ["loss", "acc", *TERMS[method]]
    assert all(isinstance(value, Tensor) for value in summary.values())
    assert not all(map(torch.equal, tensors, before))
