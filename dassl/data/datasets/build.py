"""From a config to a dataset."""

from __future__ import annotations

import os
from typing import Any

from yacs.config import CfgNode

from dassl.config import check_domains
from dassl.config.defaults import declared
from dassl.errors import UserError, shown
from dassl.utils.logger import log
from dassl.utils.registry import Registry

DATASET_REGISTRY = Registry("DATASET")


# Keys of DATALOADER.TRAIN_X that one sampler alone reads, and that sampler.
SAMPLER_KEYS = {"N_DOMAIN": "RandomDomainSampler", "N_INS": "RandomClassSampler"}
# Begin the names of the keys of TEST that ask for more than the figures of a test.
OF_A_TEST = ("COMPUTE_CMAT", "METRICS", "PER_CLASS_RESULT", "RECORD", "SAVE_")


def check_dataset_cfg(cfg: CfgNode) -> None:
    """Check the keys that a dataset is made from and sampled by, before anything is read.

    Raises:
        UserError: one of them is not allowed.
    """
    check_domains(cfg, section="DATASET.")
    check_domains(cfg, section="TEST.SUBSAMPLE_CLASSES")
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    root = cfg.DATASET.ROOT
    if not root:
        raise UserError("DATASET.ROOT: expected the folder of the datasets (--root data), got ''")
    path = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(path):
        if os.path.exists(path):
            raise UserError(f"DATASET.ROOT: expected a folder, got the file '{root}'")
        if not getattr(dataset, "creates_root", False):
            raise UserError(f"DATASET.ROOT: expected an existing folder, got '{root}'")
    train = cfg.DATALOADER.TRAIN_X
    for name, sampler in SAMPLER_KEYS.items():
        key = f"DATALOADER.TRAIN_X.{name}"
        default = declared()[key].default
        if train.SAMPLER != sampler and train[name] not in (default, -1):
            raise UserError(
                f"{key}: expected {default} for {train.SAMPLER}, as only {sampler} reads it, got "
                f"{train[name]}"
            )


def other_test_classes(cfg: CfgNode) -> bool:
    """Return whether the test is on another class subset than training."""
    return cfg.TEST.SUBSAMPLE_CLASSES not in ("", cfg.DATASET.SUBSAMPLE_CLASSES)


def build_dataset(cfg: CfgNode) -> Any:
    """Make the dataset ``cfg.DATASET.NAME``.

    Raises:
        UserError: as ``check_dataset_cfg``, and whatever the dataset finds wrong.
    """
    check_dataset_cfg(cfg)
    name = cfg.DATASET.NAME
    if cfg.VERBOSE:
        log.info(f"Loading dataset: {name}")
    dataset = DATASET_REGISTRY.get(name)(cfg)
    if other_test_classes(cfg) and not dataset.applies_subsets:
        raise UserError(
            f"TEST.SUBSAMPLE_CLASSES: expected '' for {name}, which draws its class subset itself, "
            f"got '{cfg.TEST.SUBSAMPLE_CLASSES}'"
        )
    return dataset


def check_test_split(cfg: CfgNode, dataset: Any) -> None:
    """Check that there are images to test on where ``TEST.SPLIT`` wants validation images.

    Raises:
        UserError: there are none, or they are test images.
    """
    if cfg.TEST.SPLIT == "val":
        _check_validation(cfg, dataset, "TEST.SPLIT: expected test", "val")


def _check_validation(cfg: CfgNode, dataset: Any, expected: str, got: str) -> None:
    if not (dataset.val and dataset.val_is_disjoint):
        kind = "test images for validation" if dataset.val else "no validation images"
        raise UserError(f"{expected} for {cfg.DATASET.NAME}, which has {kind}, got {got}")


def check_training(cfg: CfgNode, dataset: Any) -> None:
    """Check that a dataset has training images, and validation images to select a model by.

    The public toolbox selects the best model by test images where no others are left; that is
    refused here. As there, fewer images than a batch are one smaller batch: usual for one shot
    of few classes, but worth a warning.

    Raises:
        UserError: it has none, or its validation images are test images, or what only a test
            leaves is wanted without one.
    """
    name = cfg.DATASET.NAME
    if not dataset.train_x:
        raise UserError(
            f"DATASET.NAME: expected a dataset with training images, got {name}, which has only "
            "test images; evaluate on it with --eval-only"
        )
    if cfg.TEST.FINAL_MODEL == "best_val":
        _check_validation(cfg, dataset, "TEST.FINAL_MODEL: expected last_step", "best_val")
    if cfg.TEST.NO_TEST:
        for key, value in cfg.TEST.items():
            if value == "best_val" or (value and key.startswith(OF_A_TEST)):
                raise UserError(
                    f"TEST.NO_TEST: expected False with TEST.{key} {shown(value)}, got True"
                )
    batch_size, images = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, len(dataset.train_x)
    if batch_size > images:
        log.warning(
            f"DATALOADER.TRAIN_X.BATCH_SIZE: {batch_size} is more than the {images} training "
            f"images, so each epoch is one batch of {images}"
        )
