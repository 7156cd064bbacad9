"""Checking of a config, and the trainer that it names."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl import distributed
from dassl.config import check_domains
from dassl.config.defaults import declared, trainers_with_keys
from dassl.config.domains import Domain, Int, List
from dassl.config.merge import flat, with_lists
from dassl.data.datasets import DATASET_REGISTRY, check_dataset_cfg, other_test_classes
from dassl.engine.optimize import device_of
from dassl.engine.recorders import chosen_recorders
from dassl.engine.trackers import check_tracker
from dassl.errors import UserError, shown
from dassl.evaluation import check_metrics
from dassl.utils.logger import log
from dassl.utils.registry import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def check_cfg(cfg: CfgNode) -> None:
    """Check every key that has a domain, and what the toolbox reads of several, before any work.

    Raises:
        UserError: a value is not allowed; the message names its key.
    """
    check_domains(cfg, cfg.TRAINER.NAME)
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    for name in wrapped_by(cfg):
        check_domains(cfg, name, "TRAINER.")
    if distributed.count() > 1 and not getattr(trainer, "in_processes", False):
        raise UserError(
            f"TRAINER.NAME: expected a method that trains in several processes, got "
            f"'{cfg.TRAINER.NAME}', which may need a whole batch; start it without torchrun"
        )
    if cfg.MODEL.COMPILE and device_of(cfg).type == "cpu" and not _has_compiler():
        raise UserError("MODEL.COMPILE: expected False without a C++ compiler, got True")
    check_dataset_cfg(cfg)
    check_metrics(cfg)
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    for key in ("SOURCE_DOMAINS", "TARGET_DOMAINS"):
        if cfg.DATASET[key] and not getattr(dataset, "domains", ()):
            name, got = cfg.DATASET.NAME, shown(cfg.DATASET[key])
            raise UserError(
                f"DATASET.{key}: expected () for {name}, which has no domains, got {got}"
            )
    optim, data = cfg.OPTIM, cfg.INPUT
    steps = List((), Int(min=1), some=True, rising=True)
    if optim.LR_SCHEDULER == "multi_step" and optim.STEPSIZE not in steps:
        got = shown(optim.STEPSIZE)
        raise UserError(f"OPTIM.STEPSIZE: expected {steps}, for multi_step, got {got}")
    nesterov = optim.NAME == "sgd" and optim.SGD_NESTEROV
    if nesterov and (optim.MOMENTUM == 0 or optim.SGD_DAMPNING != 0):
        raise UserError(
            "OPTIM.SGD_NESTEROV: expected False, or a MOMENTUM above 0 and no SGD_DAMPNING, got "
            f"True with {optim.MOMENTUM} and {optim.SGD_DAMPNING}"
        )
    size = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    if optim.ACCUMULATE > size:
        raise UserError(
            f"OPTIM.ACCUMULATE: expected at most DATALOADER.TRAIN_X.BATCH_SIZE {size}, "
            f"got {optim.ACCUMULATE}"
        )
    if optim.ACCUMULATE > 1 and not _does(trainer, "splits_batches", cfg):
        raise UserError(
            f"OPTIM.ACCUMULATE: expected 1 for {cfg.TRAINER.NAME}, which cannot split a batch, "
            f"got {optim.ACCUMULATE}"
        )
    if "gaussian_blur" in data.TRANSFORMS and data.GB_K // 2 >= min(data.SIZE):
        size = tuple(data.SIZE)
        raise UserError(f"INPUT.GB_K: expected a size that fits INPUT.SIZE {size}, got {data.GB_K}")
    if other_test_classes(cfg) and not _does(trainer, "tests_other_classes", cfg):
        raise UserError(
            f"TEST.SUBSAMPLE_CLASSES: expected '' for {cfg.TRAINER.NAME}, which knows only "
            f"the classes of its training, got '{cfg.TEST.SUBSAMPLE_CLASSES}'"
        )
    if not getattr(trainer, "keeps_features", False):
        for key in ("DATALOADER.VIEWS", "DATALOADER.FEATURES_MB", "DATALOADER.FEATURES_DIR"):
            default, value = declared()[key].default, cfg.DATALOADER[key.rpartition(".")[2]]
            if value != default:
                raise UserError(
                    f"{key}: expected {default!r} for {cfg.TRAINER.NAME}, which does not use it, "
                    f"got {value!r}"
                )
    chosen_recorders(cfg, trainer)
    check_tracker(cfg)


def wrapped_by(cfg: CfgNode) -> tuple[str, ...]:
    """Name the trainers that a config's trainer wraps, whose config keys are read, too."""
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    return trainer.wraps(cfg) if hasattr(trainer, "wraps") else ()


def keys_read(cfg: CfgNode) -> dict[str, Domain]:
    """Return the domains of the keys that a config's trainer declares, by dotted key.

    Those of every run and of the trainers that it wraps are among them.
    """
    owners = (cfg.TRAINER.NAME, *wrapped_by(cfg))
    return {key: domain for owner in owners for key, domain in declared(owner).items()}


def is_unread(key: str, cfg: CfgNode) -> bool:
    """Return whether a key is a setting of other trainers than the config's.

    One that declares no keys, as public trainers do not, may read any.
    """
    is_trainers = key.startswith("TRAINER.") and cfg.TRAINER.NAME in trainers_with_keys()
    return is_trainers and key not in keys_read(cfg)


def settings_read(config: dict[str, Any], by: dict[str, Any]) -> dict[str, Any]:
    """Return what the trainer of another config reads of a config, by dotted key.

    A key that is missing, as in a config of an earlier version, has its default.

    Args:
        config: as nested plain dicts.
        by: the other one, a whole config, as nested plain dicts.
    """
    cfg = CfgNode(by)
    defaults = {key: with_lists(domain.default) for key, domain in keys_read(cfg).items()}
    found = {**defaults, **flat(config)}
    return {key: value for key, value in found.items() if not is_unread(key, cfg)}


def _has_compiler() -> bool:
    """Return whether torch finds the C++ compiler that ``torch.compile`` needs on a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow, and rarely needed

    try:
        get_cpp_compiler()
    except (RuntimeError, OSError):
        return False
    return True


def _does(trainer: type, what: str, cfg: CfgNode) -> bool:
    """Return what a trainer's class says about itself with a config; public ones say nothing."""
    return hasattr(trainer, what) and bool(getattr(trainer, what)(cfg))


def build_trainer(cfg: CfgNode) -> Any:
    """Make the trainer ``cfg.TRAINER.NAME``, with its data and its model.

    Raises:
        UserError: as ``check_cfg``, and whatever trainer and dataset find wrong.
    """
    check_cfg(cfg)
    if cfg.VERBOSE:
        log.info(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)
