"""From a config to a dataset."""

from __future__ import annotations

import os
from typing import Any

from yacs.config import CfgNode

from dassl.errors import UserError, check_choice
from dassl.utils.logger import log
from dassl.utils.registry import Registry

DATASET_REGISTRY = Registry("DATASET")


def check_dataset_cfg(cfg: CfgNode) -> None:
    """Checks name, root, shots and class subset, before anything is read.

    Raises:
        UserError: one of them is not allowed.
    """
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    shots = cfg.DATASET.NUM_SHOTS
    if shots < 1 and shots != -1:
        raise UserError(f"DATASET.NUM_SHOTS is {shots}; allowed: 1 or more, or -1 for all images")
    check_choice("DATASET.SUBSAMPLE_CLASSES", cfg.DATASET.SUBSAMPLE_CLASSES, ["all", "base", "new"])
    root = cfg.DATASET.ROOT
    if not root:
        raise UserError("DATASET.ROOT is empty; name the folder of the datasets, e.g. --root data")
    path = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(path):
        if os.path.exists(path):
            raise UserError(f"DATASET.ROOT '{root}' is not a folder")
        if not getattr(dataset, "creates_root", False):
            raise UserError(f"DATASET.ROOT '{root}' does not exist")


def build_dataset(cfg: CfgNode) -> Any:
    """Makes the dataset ``cfg.DATASET.NAME``.

    Raises:
        UserError: as ``check_dataset_cfg``, and whatever the dataset finds wrong.
    """
    check_dataset_cfg(cfg)
    if cfg.VERBOSE:
        log.info(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
