"""How often the right class comes first, or among the first; all in percent.

Here and in ``calibration.py``, logits are (n, K) for n images and K classes, labels (n,) with
values 0..K-1. Of classes with equal logits the one with the lowest label comes first, and the
class that comes first is the predicted one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dassl.metrics.build import METRIC_REGISTRY


def compute_accuracy(
    output: Tensor | tuple[Tensor, ...] | list[Tensor],
    target: Tensor,
    topk: tuple[int, ...] = (1,),
) -> list[Tensor]:
    """Return the share of samples whose class is among the k highest scores, per k of ``topk``.

    Args:
        output: scores (n, classes), or a tuple or list whose first entry they are.
        target: labels (n,).
        topk: the values of k.

    Returns:
        A tensor of shape (1,), in percent, for each k.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (n, max k)
    hits = ranked == target.view(-1, 1)
    return [100.0 * hits[:, :k].any(dim=1).float().mean().view(1) for k in topk]


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes come before the image's own, (n,): 0 where the prediction is right.

    These are the classes with a higher logit, and those with an equal one and a lower label.
    """
    own = labels.view(-1, 1)
    score = logits.gather(1, own)
    is_before = torch.arange(logits.shape[1], device=logits.device) < own
    return ((logits > score) | ((logits == score) & is_before)).sum(dim=1)


@METRIC_REGISTRY.register("accuracy")
def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return 100/n sum_i [argmax_k logits_ik = label_i]."""
    return 100.0 * int((logits.argmax(dim=1) == labels).sum()) / len(labels)


@METRIC_REGISTRY.register("error")
def error(logits: Tensor, labels: Tensor) -> float:
    """Return 100 minus the accuracy."""
    return 100.0 - accuracy(logits, labels)


@METRIC_REGISTRY.register("macro_f1")
def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Return 100 times the mean over the classes of F1 = 2 TP / (2 TP + FP + FN).

    A class absent from ``labels`` does not count.
    """
    from sklearn.metrics import f1_score

    predicted, present = logits.argmax(dim=1), labels.unique()
    return 100.0 * float(
        f1_score(labels.numpy(), predicted.numpy(), average="macro", labels=present.numpy())
    )


@METRIC_REGISTRY.register("per_class_accuracy")
def per_class_accuracy(logits: Tensor, labels: Tensor) -> dict[int, float]:
    """Return by label k 100/n_k sum_{i: label_i = k} [argmax_j logits_ij = k].

    n_k is the number of images of class k; a class absent from ``labels`` is left out.
    """
    right = logits.argmax(dim=1) == labels
    groups = ((label, labels == label) for label in labels.unique().tolist())
    return {label: 100.0 * int(right[own].sum()) / int(own.sum()) for label, own in groups}


@METRIC_REGISTRY.register("top5_accuracy")
def top5_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return 100/n sum_i [fewer than 5 classes come before label_i]: 100 where K is 5 or less."""
    return 100.0 * int((label_ranks(logits, labels) < 5).sum()) / len(labels)
