import math

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import OPTIMIZERS, build_lr_scheduler, build_optimizer
from dassl.utils import UserError


def settings(**values):
    cfg = get_cfg_default().OPTIM
    for key, value in values.items():
        cfg[key] = value
    return cfg


def rates(epochs, **values):
    """Return the learning rate of each epoch, which a save and a load midway must not change."""
    cfg = settings(NAME="sgd", **values)
    results = []
    for reload_at in (None, epochs // 2):
        optim = build_optimizer([nn.Parameter(torch.zeros(1))], cfg)
        sched = build_lr_scheduler(optim, cfg)
        found = []
        for epoch in range(epochs):
            if epoch == reload_at:
                kept = optim.state_dict(), sched.state_dict()
                optim = build_optimizer([nn.Parameter(torch.zeros(1))], cfg)
                sched = build_lr_scheduler(optim, cfg)
                optim.load_state_dict(kept[0])
                sched.load_state_dict(kept[1])
            found.append(optim.param_groups[0]["lr"])
            optim.step()
            sched.step()
        results.append(found)
    assert results[0] == results[1]
    return results[0]


def cosine(step, steps):
    return (1 + math.cos(math.pi * step / steps)) / 2


COSINE = {"LR_SCHEDULER": "cosine", "LR": 0.0025, "MAX_EPOCH": 5}


def test_cosine_after_a_constant_warm_up():
    found = rates(5, **COSINE, WARMUP_EPOCH=1, WARMUP_TYPE="constant", WARMUP_CONS_LR=1e-5)
    expected = [1e-5, 0.0025, *(0.0025 * cosine(step, 5) for step in (1, 2, 3))]
    assert found == pytest.approx(expected, rel=1e-9)
    # written out, to catch a mistake in the line above as well
    assert found == pytest.approx([1e-5, 0.0025, 0.00226127, 0.00163627, 0.00086373], rel=1e-5)


def test_cosine_that_counts_the_warm_up():
    found = rates(5, **COSINE, WARMUP_EPOCH=1, WARMUP_TYPE="constant", WARMUP_RECOUNT=False)
    # the public rule: full rate first, then the ratios of the cosine from epoch 1 on
    expected = [1e-5, 0.0025, *(0.0025 * cosine(step, 5) / cosine(1, 5) for step in (2, 3, 4))]
    assert found == pytest.approx(expected, rel=1e-9)


def test_linear_warm_up():
    found = rates(6, **COSINE, WARMUP_EPOCH=3, WARMUP_TYPE="linear", WARMUP_MIN_LR=1e-4)
    expected = [1e-4, 0.0025 / 3, 0.005 / 3, 0.0025, 0.0025 * cosine(1, 5), 0.0025 * cosine(2, 5)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_warm_up_of_all_epochs_is_allowed_with_a_warning(capsys):
    found = rates(2, **{**COSINE, "MAX_EPOCH": 2}, WARMUP_EPOCH=2, WARMUP_TYPE="constant")
    assert found == [1e-5, 1e-5]
    assert "OPTIM.WARMUP_EPOCH: 2 is not less than OPTIM.MAX_EPOCH 2" in capsys.readouterr().out
    rates(2, **{**COSINE, "MAX_EPOCH": 2}, WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    assert "WARMUP" not in capsys.readouterr().out


def test_step_schedules():
    step = {"LR": 1.0, "MAX_EPOCH": 4, "GAMMA": 0.1}
    single = {"LR_SCHEDULER": "single_step", **step}
    assert rates(5, **single, STEPSIZE=(2,)) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert rates(5, **single) == pytest.approx([1, 1, 1, 1, 0.1])
    multi = {"LR_SCHEDULER": "multi_step", **step, "STEPSIZE": (1, 3)}
    assert rates(5, **multi) == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    warm = rates(5, **multi, WARMUP_EPOCH=1, WARMUP_TYPE="constant", WARMUP_CONS_LR=0.5)
    assert warm == pytest.approx([0.5, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_takes_the_settings(name):
    model = nn.Linear(2, 2)
    optim = build_optimizer(model, settings(NAME=name, EPS=1e-3, LR=0.1))
    group = optim.param_groups[0]
    assert group["lr"] == 0.1 and group["weight_decay"] == 5e-4
    if name in ("adam", "amsgrad", "radam", "adamw"):
        assert group["eps"] == 1e-3 and group["betas"] == (0.9, 0.999)
    else:
        assert group["momentum"] == 0.9
    assert group.get("amsgrad", False) == (name == "amsgrad")
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optim.step()
    assert not torch.equal(model.weight, before)


def test_betas_may_be_whole_numbers():
    optim = build_optimizer(nn.Linear(1, 1), settings(ADAM_BETA1=0))
    assert optim.defaults["betas"] == (0.0, 0.999)


def test_staged_rates():
    model = nn.ModuleDict({"base": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    cfg = settings(NAME="sgd", LR=0.1, STAGED_LR=True, NEW_LAYERS=("head",), BASE_LR_MULT=0.5)
    base, head = build_optimizer(model, cfg).param_groups
    assert base["lr"] == 0.05 and base["params"] == list(model["base"].parameters())
    assert head["lr"] == 0.1 and head["params"] == list(model["head"].parameters())
    groups = [{"params": [model["head"].weight], "lr": 7.0}]
    with pytest.warns(UserWarning, match="STAGED_LR"):
        assert build_optimizer(model, cfg, groups).param_groups[0]["lr"] == 7.0
    with pytest.raises(TypeError):
        build_optimizer(list(model.parameters()), cfg)


def test_unknown_names():
    model = nn.Linear(1, 1)
    with pytest.raises(UserError, match="did you mean 'adam'"):
        build_optimizer(model, settings(NAME="adan"))
    optim = build_optimizer(model, settings())
    with pytest.raises(UserError, match="'cosin'; did you mean 'cosine'"):
        build_lr_scheduler(optim, settings(LR_SCHEDULER="cosin"))
    with pytest.raises(UserError, match="'const'; did you mean 'constant'"):
        build_lr_scheduler(optim, settings(WARMUP_EPOCH=1, WARMUP_TYPE="const"))
