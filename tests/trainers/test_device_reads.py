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
from trainers.coprompt import CoPrompt
from trainers.hicropl import HiCroPL
from trainers.hisf import HISF
from trainers.lamm import LAMM
from trainers.maple import MaPLe
from trainers.metaprompt import MetaPrompt
from trainers.mma import MMA
from trainers.mmrl import MMRL
from trainers.proda import ProDA
from trainers.prograd import ProGrad
from trainers.promp import ProMPT
from trainers.promptsrc import PromptSRC
from trainers.provp import ProVP
from trainers.tcp import TCP

TERMS: dict[type[Method], list[str]] = {
    CoOp: [],  # one term, which is the loss
    CoCoOp: [],
    ProGrad: ["loss_ce", "loss_kd"],
    TCP: ["loss_ce", "loss_kg"],
    LAMM: ["loss_ce", "loss_tokens", "loss_features", "loss_logits"],
    MaPLe: [],
    MMA: [],
    MMRL: ["loss_ce", "loss_ce_second", "loss_image", "loss_text"],
    CLIPLoRA: [],
    MetaPrompt: ["loss_ce", "loss_image", "loss_text"],
    ProDA: ["loss_ce", "loss_so"],
    ProVP: [],
    CoPrompt: ["loss_ce", "loss_cons_text", "loss_cons_image"],
    HiCroPL: ["loss_ce", "loss_cons"],
    PromptSRC: ["loss_ce", "loss_scl_text", "loss_scl_image", "loss_scl_logits"],
    HISF: ["loss_cls", "loss_le", "loss_sa"],
    ProMPT: ["loss_iteration1", "loss_iteration2"],
}
# Of what is drawn on the CPU: ProDA's prompts, the classes of MetaPrompt's two halves.
READS: dict[type[Method], int] = {ProDA: 1, MetaPrompt: 2}


@pytest.mark.parametrize("method", TERMS)
def test_a_step_gives_tensors_and_reads_none(method, monkeypatch, tmp_path):
    values = {}
    if method is HiCroPL:
        write_descriptions(tmp_path / "texts.json")
        values = {"FROZEN_TEXT": "random", "DESCRIPTIONS": str(tmp_path / "texts.json")}
    if method is CoPrompt:
        write_descriptions(tmp_path / "texts.json")
        values = {"DESCRIPTIONS": str(tmp_path / "texts.json")}
    trainer = bare_trainer(build(method, tiny_clip(layers=12), **values))
    trainer.device, trainer.scaler = torch.device("cpu"), None
    tensors = list(learned(trainer.model).values())
    trainer.optim = torch.optim.SGD(tensors, lr=0.1)
    trainer.batch_idx, trainer.num_batches = 0, 3
    images = torch.randn(3, 3, 16, 16)
    batch = {
        "img": images if method.n_views == 1 else [images] * method.n_views,
        "label": torch.tensor([0, 2, 1]),
    }
    trainer.forward_backward(batch)  # the first one may make frozen features
    before = [tensor.detach().clone() for tensor in tensors]
    counts = [0]
    with monkeypatch.context() as patch:
        count_reads(patch, counts)
        summary = trainer.forward_backward(batch)
    assert counts == [READS.get(method, 0)]
    assert list(summary) == ["loss", "acc", *TERMS[method]]
    assert all(isinstance(value, Tensor) for value in summary.values())
    assert not all(map(torch.equal, tensors, before))
