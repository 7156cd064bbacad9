"""What is measured on a set of predictions."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from dassl.evaluation.build import EVALUATOR_REGISTRY
from dassl.utils.logger import log
from dassl.utils.torchtools import save_torch_file


class EvaluatorBase:
    """Takes predictions batch by batch and sums them up.

    Attributes:
        summary: further figures of the last ``evaluate`` that go into results.json.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.summary: dict[str, Any] = {}

    def reset(self) -> None:
        """Forgets all predictions."""
        raise NotImplementedError

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Adds a batch: model output (n, classes) and labels (n,)."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """The figures; the first is the one by which models are compared."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro-averaged F1, all in percent.

    Args:
        cfg: the config; TEST.PER_CLASS_RESULT prints a line per class, TEST.COMPUTE_CMAT saves the
            confusion matrix (rows: true classes, each summing to 1) as a tensor in cmat.pt.
        lab2cname: class name by label.
    """

    def __init__(
        self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        self._y_true: list[int] = []
        self._y_pred: list[int] = []
        self.summary = {}

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        self._y_true.extend(gt.tolist())
        self._y_pred.extend(mo.argmax(dim=1).tolist())

    def evaluate(self) -> OrderedDict[str, float]:
        from sklearn.metrics import confusion_matrix, f1_score

        true, predicted = np.array(self._y_true), np.array(self._y_pred)
        total = len(true)
        correct = int((true == predicted).sum())
        accuracy = 100.0 * correct / total
        labels = np.unique(true)
        macro_f1 = 100.0 * float(f1_score(true, predicted, average="macro", labels=labels))
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=macro_f1)
        log.info(
            "=> result\n"
            f"* total: {total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {100.0 - accuracy:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%"
        )

        per_class: dict[str, float] = {}
        if self.cfg.TEST.PER_CLASS_RESULT:
            log.info("=> per-class result")
        for label in labels.tolist():
            of_class = true == label
            class_total = int(of_class.sum())
            class_correct = int((predicted[of_class] == label).sum())
            class_accuracy = 100.0 * class_correct / class_total
            name = self._lab2cname.get(label, str(label))
            # two classes may share a name, as ImageNet's two cranes do
            per_class[name if name not in per_class else f"{name} ({label})"] = class_accuracy
            if self.cfg.TEST.PER_CLASS_RESULT:
                log.info(
                    f"* class: {label} ({name})\ttotal: {class_total:,}\t"
                    f"correct: {class_correct:,}\tacc: {class_accuracy:.1f}%"
                )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = float(np.mean(list(per_class.values())))
            log.info(f"* average: {results['perclass_accuracy']:.1f}%")

        if self.cfg.TEST.COMPUTE_CMAT:
            matrix = confusion_matrix(true, predicted, normalize="true")
            path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
            save_torch_file(torch.from_numpy(matrix), path)
            log.info(f"Confusion matrix is saved to {path}")
        self.summary = {"total": total, "correct": correct, "per_class_accuracy": per_class}
        return results
