"""What is measured on a set of predictions."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from dassl.errors import LogitsError, UserError, escaped
from dassl.evaluation.build import EVALUATOR_REGISTRY
from dassl.metrics import BUILT_IN, METRIC_REGISTRY
from dassl.utils.logger import log
from dassl.utils.places import check_files
from dassl.utils.torchtools import save_torch_file

CMAT_FILE = "cmat.pt"  # the confusion matrix


class EvaluatorBase:
    """Takes predictions batch by batch and sums them up.

    Attributes:
        summary: further figures of the last ``evaluate`` that go into results.json.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.summary: dict[str, Any] = {}

    def reset(self) -> None:
        """Forget all predictions."""
        raise NotImplementedError

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add a batch: model output (n, classes) and labels (n,)."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Return the figures; the first is the one by which models are compared."""
        raise NotImplementedError


_FIGURES = ("accuracy", "error", "macro_f1")  # the metrics that ``evaluate`` itself returns


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro-averaged F1 in percent, and the metrics of ``dassl.metrics``.

    It keeps the logits of all images in memory, 4 bytes for each image and class (200 MB for the
    50,000 test images of ImageNet), and twice that while it evaluates.

    Args:
        cfg: the config; TEST.METRICS names further metrics, and of those it names prints a line,
            TEST.PER_CLASS_RESULT prints a line per class, TEST.COMPUTE_CMAT saves the confusion
            matrix (K, K) (rows: true classes, each summing to 1, or 0 without images) in cmat.pt.
        lab2cname: class name by label.

    Raises:
        UserError: a metric is unknown, or the confusion matrix cannot be written.
    """

    def __init__(
        self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        names = (*BUILT_IN, *cfg.TEST.METRICS)
        self._metrics = {name: METRIC_REGISTRY.get(name) for name in names}
        if cfg.TEST.COMPUTE_CMAT:
            check_files(cfg.OUTPUT_DIR, [CMAT_FILE])
        self.reset()

    def reset(self) -> None:
        self._logits: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self.summary = {}

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        kind = mo.dtype if mo.dtype == torch.float64 else torch.float32
        self._logits.append(mo.detach().to("cpu", kind, copy=True))
        self._labels.append(gt.detach().cpu())

    def evaluate(self) -> OrderedDict[str, float]:
        from sklearn.metrics import confusion_matrix

        logits, labels = torch.cat(self._logits), torch.cat(self._labels)
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise UserError(
                f"labels of images: expected 0 to {logits.shape[1] - 1}, the classes of the "
                f"model's logits, got {labels.min()} to {labels.max()}"
            )
        values = {
            name: self._plain(name, metric(logits, labels))
            for name, metric in self._metrics.items()
        }
        true, predicted = labels.numpy(), logits.argmax(dim=1).numpy()
        total = len(true)
        correct = int((true == predicted).sum())
        accuracy, error, macro_f1 = (values[name] for name in _FIGURES)
        results = OrderedDict(accuracy=accuracy, error_rate=error, macro_f1=macro_f1)
        log.info(
            "=> result\n"
            f"* total: {total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {error:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%"
        )

        if self.cfg.TEST.PER_CLASS_RESULT:
            log.info("=> per-class result")
            for label in np.unique(true).tolist():
                of_class = true == label
                class_total = int(of_class.sum())
                class_correct = int((predicted[of_class] == label).sum())
                log.info(
                    f"* class: {label} ({escaped(self._name(label))})\ttotal: {class_total:,}\t"
                    f"correct: {class_correct:,}\tacc: {100.0 * class_correct / class_total:.1f}%"
                )
            results["perclass_accuracy"] = float(np.mean([*values["per_class_accuracy"].values()]))
            log.info(f"* average: {results['perclass_accuracy']:.1f}%")

        if self.cfg.TEST.COMPUTE_CMAT:
            classes = range(logits.shape[1])  # those without test images, too: rows of zeros
            matrix = confusion_matrix(true, predicted, labels=classes, normalize="true")
            path = os.path.join(self.cfg.OUTPUT_DIR, CMAT_FILE)
            save_torch_file(torch.from_numpy(matrix), path)
            log.info(f"Confusion matrix is saved to {path}")
        for name in dict.fromkeys(self.cfg.TEST.METRICS):
            log.info(f"* {name}: {_shown(values[name])}")
        self.summary = {"total": total, "correct": correct}
        self.summary |= {name: value for name, value in values.items() if name not in _FIGURES}
        return results

    def _plain(self, name: str, value: Any) -> Any:
        """Convert a metric's value to what JSON can hold; what is not finite becomes None."""
        if isinstance(value, dict):
            plain: dict[str, Any] = {}
            for label, number in value.items():
                key = self._name(label)
                # two classes may share a name, as ImageNet's two cranes do
                plain[key if key not in plain else f"{key} ({label})"] = self._plain(name, number)
            return plain
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"metric '{name}': expected a number, None or a dict of numbers, got {value!r}"
            ) from error
        return number if math.isfinite(number) else None

    def _name(self, label: Any) -> str:
        return self._lab2cname.get(label, str(label))


def _shown(value: Any) -> str:
    """Write a metric's value for the log."""
    if isinstance(value, dict):
        return ", ".join(f"{escaped(key)} {_shown(number)}" for key, number in value.items())
    return "undefined" if value is None else f"{value:.4f}"


# What results.json has besides the metrics.
_OTHER_KEYS = (
    *("total", "correct", "perclass_accuracy", "split", "trainer", "dataset", "seed"),
    *("epoch", "wall_time_s", "peak_memory_mb", "warnings", "versions", "config"),
)


def check_metrics(cfg: CfgNode) -> None:
    """Check TEST.METRICS, before any work.

    Raises:
        UserError: a name is that of something else in results.json, or the evaluator computes no
            metrics.
    """
    for name in cfg.TEST.METRICS:
        if name in _OTHER_KEYS:
            raise UserError(
                f"TEST.METRICS: expected names that are not yet in results.json, got '{name}'"
            )
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    computes = isinstance(evaluator, type) and issubclass(evaluator, Classification)
    if cfg.TEST.METRICS and not computes:
        raise UserError(
            f"TEST.METRICS: expected () with TEST.EVALUATOR {cfg.TEST.EVALUATOR}, which computes "
            f"none, got {tuple(cfg.TEST.METRICS)}"
        )


def check_logits(output: Any, images: Sequence[str]) -> None:
    """Check a model's output for the images of these paths, if it is a tensor.

    Raises:
        LogitsError: a value is infinite or not a number; the message names the first such image.
    """
    if not isinstance(output, torch.Tensor) or torch.isfinite(output).all():
        return
    finite = torch.isfinite(output).reshape(len(output), -1).all(dim=1)
    row = int(finite.logical_not().nonzero()[0])
    image = images[row] if row < len(images) else f"{row + 1} of a batch"
    raise LogitsError(
        f"the logits of image '{image}' are infinite or not numbers; no results were written"
    )
