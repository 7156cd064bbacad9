"""How far the probabilities p_i = softmax(logits_i) can be trusted; all as fractions, not in %.

Shapes and ties are those of ``accuracy.py``. The confidence c_i = max_k p_ik is the probability of
the predicted class, and a_i is 1 where that class is right, else 0. Probabilities are computed in
double precision.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dassl.metrics.build import METRIC_REGISTRY

BINS = 15
_ROWS = 4096  # images whose probabilities are in memory at once


@METRIC_REGISTRY.register("nll")
def nll(logits: Tensor, labels: Tensor) -> float:
    """Return the negative log-likelihood -1/n sum_i ln p_i,label_i, in nats; 0 is best."""
    rows = zip(logits.split(_ROWS), labels.split(_ROWS), strict=True)
    losses = (-x.double().log_softmax(dim=1).gather(1, y.view(-1, 1)).sum() for x, y in rows)
    return float(sum(losses)) / len(labels)


@METRIC_REGISTRY.register("brier")
def brier(logits: Tensor, labels: Tensor) -> float:
    """Return the Brier score 1/n sum_i sum_k (p_ik - [k = label_i])^2, from 0 (best) to 2.

    This is the multi-class score of Brier (1950); for two classes it is twice the binary one.
    """
    total = 0.0
    for x, y in zip(logits.split(_ROWS), labels.split(_ROWS), strict=True):
        probabilities = x.double().softmax(dim=1)
        probabilities[torch.arange(len(y)), y] -= 1
        total += float(probabilities.square().sum())
    return total / len(labels)


@METRIC_REGISTRY.register("ece")
def ece(logits: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error over 15 bins of equal width (Guo et al. 2017, eq. 3).

    sum_m |B_m|/n |mean of a_i in B_m - mean of c_i in B_m|, where B_m holds the images with c_i in
    ((m-1)/15, m/15], m = 1..15. An empty bin adds nothing.
    """
    confidence, right = _judged(logits, labels)
    gaps = np.bincount(bins_of(confidence), weights=right - confidence)
    return float(np.abs(gaps).sum() / len(right))


@METRIC_REGISTRY.register("adaptive_ece")
def adaptive_ece(logits: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error over 15 bins of equal mass (Nguyen & O'Connor 2015).

    As ``ece``, but B_1..B_M, M = min(15, n), take the images in the order of their confidence,
    n/M each; where that is not a whole number, the first n mod M bins have one more than the
    others. Images of equal confidence are counted with the mean of their a_i, so that their order
    does not matter.
    """
    confidence, right = _judged(logits, labels)
    values, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    right = (np.bincount(group, weights=right) / sizes)[group]
    gaps = (right - confidence)[np.argsort(confidence)]
    bins = np.array_split(gaps, min(BINS, len(gaps)))
    return float(sum(abs(gap.sum()) for gap in bins) / len(gaps))


@METRIC_REGISTRY.register("auroc")
def auroc(logits: Tensor, labels: Tensor) -> float | None:
    """Return how well the confidence tells right predictions from wrong ones; 0.5 is chance.

    The area under the ROC curve of c_i for a_i: the share of the pairs of a right and a wrong
    image in which the right one has the higher confidence, pairs of equal confidence counting one
    half. None where all predictions are right, or all wrong.
    """
    from sklearn.metrics import roc_auc_score

    confidence, right = _judged(logits, labels)
    return float(roc_auc_score(right, confidence)) if 0 < right.sum() < len(right) else None


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence, from 0, as ``ece`` has them."""
    return np.ceil(confidence * BINS).astype(np.int64) - 1


def confidences(logits: Tensor) -> Tensor:
    """Return the probabilities of the predicted classes, (n,), in double precision."""
    return torch.cat([x.double().softmax(dim=1).amax(dim=1) for x in logits.split(_ROWS)])


def _judged(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return c and a, (n,) each, as double-precision arrays."""
    right = logits.argmax(dim=1) == labels
    return confidences(logits).numpy(), right.double().numpy()
