"""The metrics, against closed forms, scikit-learn, torchmetrics and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as reference

from dassl import metrics
from dassl.metrics import BUILT_IN, METRIC_REGISTRY
from dassl.metrics import calibration as calibration_file


def random_case(n=500, classes=7, scale=2.0):
    """Draw logits that are right about half of the time, and labels."""
    labels = torch.randint(classes, (n,))
    logits = scale * torch.randn(n, classes)
    logits[torch.arange(n), labels] += scale
    return logits, labels


def of_confidences(confidences, right):
    """Make two-class logits with these confidences, and labels that make them right or wrong."""
    c = torch.tensor(confidences, dtype=torch.float64)
    logits = torch.stack([c.log(), (1 - c).log()], dim=1)
    return logits, 1 - torch.tensor(right, dtype=torch.int64)


def test_registered_under_their_names():
    assert BUILT_IN == (
        *("accuracy", "error", "macro_f1", "per_class_accuracy", "top5_accuracy"),
        *("nll", "brier", "ece", "adaptive_ece", "auroc"),
    )
    for name in BUILT_IN:
        assert METRIC_REGISTRY.get(name) is getattr(metrics, name)


@pytest.mark.parametrize("classes", [2, 7, 60])
def test_against_scikit_learn(classes):
    logits, labels = random_case(classes=classes)
    probabilities = logits.double().softmax(dim=1).numpy()
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels.numpy()
    present = np.unique(labels)
    expected = {
        "accuracy": 100 * sklearn.metrics.accuracy_score(labels, predicted),
        "error": 100 - 100 * sklearn.metrics.accuracy_score(labels, predicted),
        "macro_f1": 100
        * sklearn.metrics.f1_score(labels, predicted, average="macro", labels=present),
        "nll": sklearn.metrics.log_loss(labels, probabilities, labels=range(classes)),
        "brier": np.mean(np.sum((probabilities - np.eye(classes)[labels]) ** 2, axis=1)),
        "auroc": sklearn.metrics.roc_auc_score(right, probabilities.max(axis=1)),
    }
    for name, value in expected.items():
        assert METRIC_REGISTRY.get(name)(logits, labels) == pytest.approx(value, rel=1e-9), name
    recalls = sklearn.metrics.recall_score(labels, predicted, average=None, labels=present)
    assert metrics.per_class_accuracy(logits, labels) == {
        int(label): pytest.approx(100 * recall)
        for label, recall in zip(present, recalls, strict=True)
    }


@pytest.mark.parametrize(("classes", "scale"), [(7, 2.0), (12, 0.2), (60, 5.0)])
def test_against_torchmetrics(classes, scale):
    logits, labels = random_case(1000, classes, scale)
    probabilities = logits.double().softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    right = (predicted == labels).long()
    n = {"num_classes": classes}
    expected = {
        "accuracy": 100 * reference.multiclass_accuracy(logits, labels, average="micro", **n),
        "macro_f1": 100 * reference.multiclass_f1_score(logits, labels, **n),
        "top5_accuracy": 100
        * reference.multiclass_accuracy(logits, labels, average="micro", top_k=5, **n),
        "ece": reference.multiclass_calibration_error(probabilities, labels, n_bins=15, **n),
        "auroc": reference.binary_auroc(confidence, right),
    }
    for name, value in expected.items():
        assert METRIC_REGISTRY.get(name)(logits, labels) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("n", [4, 15, 16, 500])
def test_adaptive_ece_against_a_plain_loop(n):
    logits, labels = random_case(n)
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    images = sorted(zip(confidence.tolist(), (predicted == labels).tolist(), strict=True))
    bins, expected = min(15, n), 0.0
    for number in range(bins):
        size = n // bins + (number < n % bins)
        taken, images = images[:size], images[size:]
        mean_confidence = sum(c for c, _ in taken) / size
        mean_accuracy = sum(a for _, a in taken) / size
        expected += size / n * abs(mean_accuracy - mean_confidence)
    assert images == []
    assert metrics.adaptive_ece(logits, labels) == pytest.approx(expected, rel=1e-9)


def test_uniform_probabilities_have_closed_forms():
    logits, labels = torch.full((8, 4), 3.0), torch.arange(8) % 4
    assert metrics.accuracy(logits, labels) == 25.0  # class 0 comes first of equal ones
    assert metrics.nll(logits, labels) == pytest.approx(math.log(4))
    assert metrics.brier(logits, labels) == pytest.approx(0.75**2 + 3 * 0.25**2)
    for calibration in (metrics.ece, metrics.adaptive_ece):
        assert calibration(logits, labels) == pytest.approx(0.0, abs=1e-12)
    assert metrics.auroc(logits, labels) == 0.5  # all pairs are of equal confidence


def test_certain_predictions_have_closed_forms():
    right, labels = 1e4 * torch.eye(3), torch.arange(3)
    wrong = right.roll(1, dims=1)
    for logits, error in ((right, 0.0), (wrong, 1.0)):
        assert metrics.error(logits, labels) == 100 * error
        assert metrics.nll(logits, labels) == pytest.approx(1e4 * error)
        assert metrics.brier(logits, labels) == pytest.approx(2 * error)
        assert metrics.ece(logits, labels) == metrics.adaptive_ece(logits, labels) == error
        assert metrics.auroc(logits, labels) is None


def test_ece_bins_are_closed_above():
    # 0.6 = 9/15 belongs to the bin that ends there, together with 0.58; 0.61 to the next
    logits, labels = of_confidences([0.6, 0.58, 0.61], [True, False, True])
    expected = (abs(1 - 0.6 - 0.58) + abs(1 - 0.61)) / 3
    assert metrics.confidences(logits)[0] <= 0.6
    assert metrics.ece(logits, labels) == pytest.approx(expected)


def test_auroc_counts_pairs_and_halves_of_equal_ones():
    logits, labels = of_confidences([0.9, 0.7, 0.7, 0.6], [True, True, False, False])
    # right against wrong: 0.9 > 0.7, 0.9 > 0.6, 0.7 = 0.7, 0.7 > 0.6
    assert metrics.auroc(logits, labels) == pytest.approx(3.5 / 4)


def test_adaptive_ece_of_equal_confidences_knows_no_order():
    confidences, right = [0.8] * 40, [True] * 30 + [False] * 10
    for order in (range(40), range(39, -1, -1), np.random.permutation(40).tolist()):
        logits, labels = of_confidences(confidences, [right[i] for i in order])
        assert metrics.adaptive_ece(logits, labels) == pytest.approx(0.05)


def test_ranks_and_top5_where_logits_are_equal():
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0]]).expand(7, 7)
    labels = torch.arange(7)
    assert metrics.label_ranks(logits, labels).tolist() == [1, 0, 2, 3, 4, 5, 6]
    order = logits.argsort(dim=1, descending=True, stable=True)
    assert [order[i].tolist().index(i) for i in range(7)] == [1, 0, 2, 3, 4, 5, 6]
    assert metrics.top5_accuracy(logits, labels) == pytest.approx(500 / 7)


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_top5_of_five_classes_or_fewer_is_100(classes):
    logits, labels = random_case(20, classes)
    assert metrics.top5_accuracy(logits, labels) == 100.0
    for name in BUILT_IN:
        METRIC_REGISTRY.get(name)(logits, labels)


def test_a_class_that_does_not_occur():
    logits = torch.eye(4)[[0, 0, 2, 3]]  # class 3 is predicted and never true, class 1 neither
    labels = torch.tensor([0, 0, 2, 2])
    assert metrics.per_class_accuracy(logits, labels) == {0: 100.0, 2: 50.0}
    assert metrics.macro_f1(logits, labels) == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_the_order_of_images_and_their_number_at_once_are_of_no_account(monkeypatch):
    logits, labels = random_case(100)
    order = torch.randperm(100)
    values = [METRIC_REGISTRY.get(name)(logits, labels) for name in BUILT_IN]
    monkeypatch.setattr(calibration_file, "_ROWS", 7)
    others = [METRIC_REGISTRY.get(name)(logits[order], labels[order]) for name in BUILT_IN]
    assert others == [pytest.approx(value, rel=1e-12) for value in values]


def test_probabilities_are_of_double_precision():
    """In single precision both confidences would be 1, and the AUROC 0.5."""
    logits = torch.tensor([[20.0, 0.0], [19.0, 0.0]])
    assert logits.softmax(dim=1).amax(dim=1).tolist() == [1.0, 1.0]
    assert metrics.auroc(logits, torch.tensor([0, 1])) == 1.0
