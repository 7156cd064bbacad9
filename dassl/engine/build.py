"""From a config to a trainer."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl.data.datasets import check_dataset_cfg, other_test_classes
from dassl.data.samplers import SAMPLERS
from dassl.data.transforms import CHOICES, INTERPOLATION_NAMES
from dassl.engine.recorders import chosen_recorders
from dassl.errors import UserError, check_choice
from dassl.evaluation import check_metrics
from dassl.optim import OPTIMIZERS, SCHEDULERS, WARMUPS
from dassl.utils.logger import log
from dassl.utils.registry import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def check_cfg(cfg: CfgNode) -> None:
    """Check the names and numbers that the toolbox itself reads, before any work.

    Raises:
        UserError: a value is not allowed; the message names its key.
    """
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    check_dataset_cfg(cfg)
    check_metrics(cfg)
    check_choice("INPUT.INTERPOLATION", cfg.INPUT.INTERPOLATION, INTERPOLATION_NAMES)
    for name in cfg.INPUT.TRANSFORMS:
        check_choice("name in INPUT.TRANSFORMS", name, CHOICES)
    for key in ("TRAIN_X", "TEST"):
        check_choice(f"DATALOADER.{key}.SAMPLER", cfg.DATALOADER[key].SAMPLER, SAMPLERS)
        if cfg.DATALOADER[key].BATCH_SIZE < 1:
            size = cfg.DATALOADER[key].BATCH_SIZE
            raise UserError(f"DATALOADER.{key}.BATCH_SIZE is {size}; allowed: 1 or more")
    for key in ("NUM_WORKERS", "CACHE_MB"):
        if cfg.DATALOADER[key] < 0:
            raise UserError(f"DATALOADER.{key} is {cfg.DATALOADER[key]}; allowed: 0 or more")
    if len(cfg.INPUT.SIZE) != 2 or min(cfg.INPUT.SIZE) < 1:
        raise UserError(f"INPUT.SIZE is {cfg.INPUT.SIZE}; allowed: (height, width) in pixels")
    check_choice("OPTIM.NAME", cfg.OPTIM.NAME, OPTIMIZERS)
    check_choice("OPTIM.LR_SCHEDULER", cfg.OPTIM.LR_SCHEDULER, SCHEDULERS)
    check_choice("OPTIM.WARMUP_TYPE", cfg.OPTIM.WARMUP_TYPE, WARMUPS)
    if cfg.OPTIM.MAX_EPOCH < 1:
        raise UserError(f"OPTIM.MAX_EPOCH is {cfg.OPTIM.MAX_EPOCH}; allowed: 1 or more")
    if cfg.TRAIN.PRINT_FREQ < 1:
        raise UserError(f"TRAIN.PRINT_FREQ is {cfg.TRAIN.PRINT_FREQ}; allowed: 1 or more")
    check_choice("TEST.SPLIT", cfg.TEST.SPLIT, ["test", "val"])
    check_choice("TEST.FINAL_MODEL", cfg.TEST.FINAL_MODEL, ["last_step", "best_val"])
    if other_test_classes(cfg):
        able = getattr(trainer, "tests_other_classes", None)
        if able is None or not able(cfg):
            raise UserError(
                f"TEST.SUBSAMPLE_CLASSES: expected '' for {cfg.TRAINER.NAME}, which knows the "
                f"classes of its training alone, got '{cfg.TEST.SUBSAMPLE_CLASSES}'"
            )
    chosen_recorders(cfg, trainer)


def build_trainer(cfg: CfgNode) -> Any:
    """Make the trainer ``cfg.TRAINER.NAME``, with its data and its model.

    Raises:
        UserError: as ``check_cfg``, and whatever trainer and dataset find wrong.
    """
    check_cfg(cfg)
    if cfg.VERBOSE:
        log.info(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)
