"""The registry of evaluators, the one for classification, and what a run keeps of a prediction."""

from dassl.evaluation.build import EVALUATOR_REGISTRY, build_evaluator
from dassl.evaluation.evaluator import (
    Classification,
    EvaluatorBase,
    check_logits,
    check_metrics,
)
from dassl.evaluation.predictions import Predictions, read_predictions

__all__ = [
    "EVALUATOR_REGISTRY",
    "Classification",
    "EvaluatorBase",
    "Predictions",
    "build_evaluator",
    "check_logits",
    "check_metrics",
    "read_predictions",
]
