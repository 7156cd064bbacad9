import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine.optimize import (
    PRECISIONS,
    Precision,
    Update,
    fastest,
    grad_scaler,
    optimizer_step,
    precision,
)
from dassl.optim import build_optimizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_step_starts_from_no_gradient_and_moves_all_optimizers():
    models = [nn.Linear(2, 1, bias=False) for _ in range(2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    before = [model.weight.detach().clone() for model in models]
    for _ in range(2):
        optimizer_step([model(torch.ones(1, 2)).sum() for model in models], optimizers)
    for model, start in zip(models, before, strict=True):
        assert torch.allclose(model.weight, start - 0.2)


def test_a_scaled_step_is_the_plain_one_unless_it_overflows():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer_step([model(torch.ones(1, 2)).sum()], [optimizer], scaler)
    assert torch.allclose(model.weight, before - 0.1)
    optimizer_step([model(torch.ones(1, 2)).sum() * 3e38], [optimizer], scaler)
    assert torch.allclose(model.weight, before - 0.1)
    assert scaler.get_scale() == 512.0


def test_a_step_on_several_losses_is_that_on_their_sum():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1, bias=False), torch.randn(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before, asked = model.weight.detach().clone(), []

    def losses():
        for part in x.split(2):
            # the gradients of the last loss are there, and nothing has moved
            expected = x[: 2 * len(asked)].sum(dim=0, keepdim=True) / 6
            gradient = model.weight.grad if asked else torch.zeros(1, 3)
            assert torch.allclose(gradient, expected) and torch.equal(model.weight, before)
            asked.append(len(part))
            yield model(part).sum() / 6

    Update(optimizer).on_sum(losses())
    assert asked == [2, 2, 2]
    assert torch.allclose(model.weight, before - x.mean(dim=0))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("norm", [0.0, 0.5, 1e3])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_clips_the_norm_of_all_gradients(name, norm, scaled):
    torch.manual_seed(0)
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR, cfg.CLIP_NORM, cfg.MOMENTUM = name, 0.1, norm, 0.9
    start = [torch.randn(3, 2), torch.randn(4)]
    ours, plain = ([t.clone().requires_grad_() for t in start] for _ in range(2))
    optimizer = build_optimizer(None, cfg, [{"params": [tensor]} for tensor in ours])
    cfg.CLIP_NORM = 0.0
    unclipped = build_optimizer(None, cfg, [{"params": [tensor]} for tensor in plain])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    for factor in (1.0, 3.0):
        loss = sum((factor * tensor).square().sum() for tensor in ours)
        optimizer_step([loss], [optimizer], scaler)
        unclipped.zero_grad()
        sum((factor * tensor).square().sum() for tensor in plain).backward()
        if norm:
            assert (nn.utils.clip_grad_norm_(plain, norm) > norm) == (norm < 1)
        unclipped.step()
        for tensor, expected in zip(ours, plain, strict=True):
            assert torch.equal(tensor, expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_an_update_takes_a_step_or_gradients_alone(scaled):
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    update = Update(torch.optim.SGD(model.parameters(), lr=0.1), scaler)
    assert update.lr == 0.1
    loss = 3 * model(torch.ones(1, 2)).sum()
    (gradient,) = update.gradients(loss, [model.weight])
    assert gradient.tolist() == [[3.0, 3.0]]
    assert model.weight.grad is None and torch.equal(model.weight, before)
    if scaled:
        tensors = [model.weight, torch.ones(1, requires_grad=True)]
        loss = model(torch.ones(1, 2)).sum() * 3e38 + tensors[1].sum()
        assert [g.abs().max().item() for g in update.gradients(loss, tensors)] == [0, 0]
    update(model(torch.ones(1, 2)).sum())
    assert torch.allclose(model.weight, before - 0.1)


@pytest.mark.parametrize(
    ("device", "capability", "instructions", "expected"),
    [
        (CUDA, (7, 5), {}, "fp16"),
        (CUDA, (8, 0), {}, "bf16"),
        (CUDA, (12, 0), {}, "bf16"),
        (CPU, None, {}, "fp32"),
        (CPU, None, {"avx512_bf16"}, "bf16"),
        (CPU, None, {"amx_tile"}, "bf16"),
        (CPU, None, {"avx512_bf16", "no oneDNN"}, "fp32"),
    ],
)
def test_auto_is_what_the_device_multiplies_fastest(
    device, capability, instructions, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for name in ("avx512_bf16", "amx_tile"):
        has = name in instructions
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda has=has: has)
    has_onednn = "no oneDNN" not in instructions
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    assert fastest(device) == expected
    assert precision("auto", device) == precision(expected, device)


def test_what_is_computed_in_has_a_name():
    names = [precision(prec, device).name for device in (CUDA, CPU) for prec in PRECISIONS[:4]]
    assert names[:4] == ["fp32", "bf16", "fp16", "fp16 autocast"]
    assert names[4:] == ["fp32", "bf16", "fp32", "bf16 autocast"]


@pytest.mark.parametrize("prec", PRECISIONS[:4])
def test_precision_on_each_device(prec, capsys):
    on_gpu, on_cpu = precision(prec, CUDA), capsys.readouterr().out
    assert on_cpu == ""
    on_cpu = precision(prec, CPU)
    told = capsys.readouterr().out
    fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16
    assert (on_gpu, on_cpu, told) == {
        "fp32": (Precision(fp32, None), Precision(fp32, None), ""),
        "bf16": (Precision(bf16, None), Precision(bf16, None), ""),
        "fp16": (
            Precision(fp16, None),
            Precision(fp32, None),
            "PREC fp16: fp16 is not available on a CPU, fp32 is used instead\n",
        ),
        "amp": (
            Precision(fp32, fp16),
            Precision(fp32, bf16),
            "PREC amp: fp16 is not available on a CPU, bf16 autocast is used instead\n",
        ),
    }[prec]
    assert grad_scaler(on_cpu, CPU) is None
    assert (grad_scaler(on_gpu, CPU) is not None) == (prec in ("fp16", "amp"))
