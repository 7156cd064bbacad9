"""Optimizers by name."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.errors import check_choice

OPTIMIZERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")


def complete(optim_cfg: CfgNode) -> CfgNode:
    """Return a node like ``cfg.OPTIM`` with the defaults of the keys that it lacks.

    Public trainers make such nodes for a second optimizer, of the keys that the public toolbox has.
    """
    node = get_cfg_default().OPTIM
    node.update(optim_cfg)
    return node


def build_optimizer(
    model: Any, optim_cfg: CfgNode, param_groups: Any = None
) -> torch.optim.Optimizer:
    """Build the optimizer that ``cfg.OPTIM`` names.

    Args:
        model: a module, or an iterable of parameters or of parameter groups.
        optim_cfg: ``cfg.OPTIM``, or another such node; keys that it lacks have their defaults. EPS
            goes to the adam family. With CLIP_NORM each step, whoever takes it, first clips the
            norm of all gradients together, behind a ``GradScaler`` that has unscaled them.
        param_groups: parameter groups to use instead of the model.

    Raises:
        UserError: the name is unknown.
        TypeError: STAGED_LR is set and ``model`` is not a module.
    """
    optim_cfg = complete(optim_cfg)
    check_choice("OPTIM.NAME", optim_cfg.NAME, OPTIMIZERS)
    optimizer = _optimizer(model, optim_cfg, param_groups)
    if optim_cfg.CLIP_NORM > 0:
        optimizer.register_step_pre_hook(partial(_clip, optim_cfg.CLIP_NORM))
    return optimizer


def _clip(norm: float, optimizer: torch.optim.Optimizer, *call: Any) -> None:
    tensors = (tensor for group in optimizer.param_groups for tensor in group["params"])
    nn.utils.clip_grad_norm_(tensors, norm)


def _optimizer(model: Any, optim_cfg: CfgNode, param_groups: Any) -> torch.optim.Optimizer:
    name = optim_cfg.NAME
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            warnings.warn("OPTIM.STAGED_LR has no effect on given param_groups", stacklevel=2)
        params = param_groups
    elif optim_cfg.STAGED_LR:
        params = _staged_groups(model, optim_cfg)
    else:
        params = model.parameters() if isinstance(model, nn.Module) else model

    common: dict[str, Any] = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    if name == "sgd":
        return torch.optim.SGD(
            params,
            momentum=optim_cfg.MOMENTUM,
            dampening=optim_cfg.SGD_DAMPNING,
            nesterov=optim_cfg.SGD_NESTEROV,
            **common,
        )
    if name == "rmsprop":
        return torch.optim.RMSprop(
            params, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA, **common
        )
    betas = float(optim_cfg.ADAM_BETA1), float(optim_cfg.ADAM_BETA2)
    common |= {"betas": betas, "eps": optim_cfg.EPS}
    if name == "adamw":
        return torch.optim.AdamW(params, **common)
    if name == "radam":
        # the public toolbox's RAdam takes the weight decay off the weights, not off the gradient
        return torch.optim.RAdam(params, decoupled_weight_decay=True, **common)
    return torch.optim.Adam(params, amsgrad=name == "amsgrad", **common)


def _staged_groups(model: Any, optim_cfg: CfgNode) -> list[dict[str, Any]]:
    """Group children: NEW_LAYERS at the full learning rate, all others at BASE_LR_MULT of it."""
    if not isinstance(model, nn.Module):
        raise TypeError("OPTIM.STAGED_LR needs a module, not a list of parameters")
    if isinstance(model, nn.DataParallel):
        model = model.module
    new_layers = optim_cfg.NEW_LAYERS
    if isinstance(new_layers, str):
        new_layers = [new_layers]
    if not new_layers:
        warnings.warn("OPTIM.NEW_LAYERS is empty, so STAGED_LR slows all layers", stacklevel=3)
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, child in model.named_children():
        groups[name in new_layers] += child.parameters()
    return [
        {"params": groups[False], "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT},
        {"params": groups[True]},
    ]
