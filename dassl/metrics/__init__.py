"""Numbers that say how good a prediction is: plain functions of logits and labels."""

from dassl.metrics.accuracy import (
    accuracy,
    compute_accuracy,
    error,
    label_ranks,
    macro_f1,
    per_class_accuracy,
    top5_accuracy,
)
from dassl.metrics.build import METRIC_REGISTRY
from dassl.metrics.calibration import (
    BINS,
    adaptive_ece,
    auroc,
    bins_of,
    brier,
    confidences,
    ece,
    nll,
)
from dassl.metrics.distance import (
    compute_distance_matrix,
    cosine_distance,
    euclidean_squared_distance,
)

#: Names of the metrics that every results.json has; those registered later are a user's own.
BUILT_IN = tuple(METRIC_REGISTRY.registered_names())

__all__ = [
    "BINS",
    "BUILT_IN",
    "METRIC_REGISTRY",
    "accuracy",
    "adaptive_ece",
    "auroc",
    "bins_of",
    "brier",
    "compute_accuracy",
    "compute_distance_matrix",
    "confidences",
    "cosine_distance",
    "ece",
    "error",
    "euclidean_squared_distance",
    "label_ranks",
    "macro_f1",
    "nll",
    "per_class_accuracy",
    "top5_accuracy",
]
