"""The registry of datasets and what they are made of."""

from dassl.data.datasets.base_dataset import DatasetBase, Datum, subsample_classes
from dassl.data.datasets.build import (
    DATASET_REGISTRY,
    build_dataset,
    check_dataset_cfg,
    check_test_split,
    check_training,
    other_test_classes,
)

__all__ = [
    "DATASET_REGISTRY",
    "DatasetBase",
    "Datum",
    "build_dataset",
    "check_dataset_cfg",
    "check_test_split",
    "check_training",
    "other_test_classes",
    "subsample_classes",
]
