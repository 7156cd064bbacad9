"""A method as a run left it, built from what the run recorded, without its dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import trainers  # noqa: F401  (registers the methods and their config keys)
from clip import convert_weights
from dassl.config import check_domains, get_cfg_default, merge_from_dict
from dassl.config.defaults import declared
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoints import check_classes, check_fit, find_checkpoint, load_model
from dassl.engine.classes_file import Classes
from dassl.engine.optimize import PRECISIONS
from dassl.engine.optimize import precision as types_of
from dassl.errors import UserError, check_choice, shown
from trainers.base import Method
from trainers.trainer import MethodTrainer, load_frozen

OF_DATASET = ("NAME", "NUM_SHOTS", "SUBSAMPLE_CLASSES")


def method_of(config: Mapping[str, Any], place: str) -> type[Method]:
    """Return the method that a run's config names.

    Raises:
        UserError: it names none, or a trainer that is not a ``Method``'s.
    """
    node = config.get("TRAINER")
    name = node.get("NAME") if isinstance(node, dict) else None
    if not isinstance(name, str):
        raise UserError(f"TRAINER.NAME in '{place}': expected a method, got {shown(name)}")
    trainer = TRAINER_REGISTRY.get(name)
    if not issubclass(trainer, MethodTrainer):
        raise UserError(f"TRAINER.NAME in '{place}': expected a method of ours, got '{name}'")
    return trainer.method.of_config(config)


def part_of(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return what of a run's config says what its model is.

    Raises:
        UserError: a section is missing, or as ``method_of``.
    """
    method = method_of(config, place)
    sections: dict[str, set[str]] = {"TRAINER": {"NAME"}, "MODEL": {"BACKBONE"}}
    owners = (method.__name__, *method.wraps)
    for key in {key for owner in owners for key in declared(owner)} - declared().keys():
        section, name, *_ = key.split(".")
        sections.setdefault(section, set()).add(name)
    sections |= {"DATASET": set(OF_DATASET), "INPUT": set(), "OPTIM": set()}  # the last two whole
    part: dict[str, Any] = {}
    for section, names in sections.items():
        node = config.get(section)
        if not isinstance(node, dict) or any(name not in node for name in names):
            raise UserError(f"{section} in '{place}': expected the section of a run, got less")
        part[section] = {name: node[name] for name in names or node}
    return part


def settings_of(part: dict[str, Any], place: str) -> Any:
    """Make the config of a model from ``part_of``'s, frozen.

    Raises:
        UserError: a key is unknown, or a value is outside its domain.
    """
    method = method_of(part, place)
    name = method.__name__
    cfg = get_cfg_default(name)
    merge_from_dict(cfg, part, place)
    for owner in (name, *method.wraps):
        for section in ("TRAINER.", "INPUT.", "MODEL."):
            check_domains(cfg, owner, section)
    cfg.VERBOSE = False
    cfg.freeze()
    return cfg


def chosen_device(device: str | torch.device | None) -> torch.device:
    """Return the device, a GPU where there is one for None.

    Raises:
        UserError: there is no such device.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"device: expected one of this machine, got {shown(device)}") from error
    return chosen


def build(
    cfg: Any,
    classes: Classes,
    labels: Sequence[str],
    device: str | torch.device | None,
    precision: str | None,
) -> Method:
    """Build the method for class names, in evaluation mode, with nothing learned yet.

    Args:
        cfg: of ``settings_of``.
        classes: of the run.
        labels: the class names to tell apart.
        device: where to compute; a GPU where there is one by default.
        precision: fp32, bf16, fp16, amp or auto; that of the run by default.

    Raises:
        UserError: the backbone cannot be loaded or is another one, or a name does not fit.
    """
    method = method_of(cfg, "config")
    settings = cfg.TRAINER[method.config_node]
    if precision is not None:
        check_choice("precision", precision, PRECISIONS)
    chosen = chosen_device(device)
    name = cfg.MODEL.BACKBONE.NAME
    clip_model = load_frozen("MODEL.BACKBONE.NAME", name)
    size = clip_model.preprocess.size
    if tuple(cfg.INPUT.SIZE) != (size, size):
        raise UserError(f"INPUT.SIZE: expected {(size, size)} for {name}, got {cfg.INPUT.SIZE}")
    method.check_settings(settings, clip_model)
    types = types_of(precision or settings.PREC, chosen)
    clip_model = clip_model.to(chosen)
    if types.dtype != torch.float32:
        convert_weights(clip_model, types.dtype)
    names = classes.class_names
    model = method(cfg, clip_model, names, classes.templates, classes.descriptions)
    model.autocast_dtype = types.autocast_dtype
    if labels != names:
        model.set_classes(labels)
    return model.eval()


def load_learned(method: Method, tensors: Mapping[str, Tensor], path: str) -> None:
    """Put what was learned into a method.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    method.prepare_to_load(tensors, path)
    check_fit(tensors, method.saved(), path)
    method.get_submodule(method.checkpoint_scope).load_state_dict(tensors, strict=False)


def load_checkpoint_of(method: Method, classes: Classes, folder: str) -> None:
    """Load the best or else the last checkpoint in a run's folder, if the method learns anything.

    Raises:
        UserError: there is none, or it does not fit.
    """
    if not method.saved():
        return
    models = os.path.join(folder, method.checkpoint_name)
    if not os.path.isdir(models):
        raise UserError(
            f"'{folder}' has no folder {method.checkpoint_name} with what was learned; name the "
            "folder of the training, not of an evaluation"
        )
    path = find_checkpoint(models)
    checkpoint = load_model(path)
    check_classes(checkpoint["class_names"], classes.class_names, path)
    load_learned(method, checkpoint["state_dict"], path)
