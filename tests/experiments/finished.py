"""What a finished run leaves, for tests of what reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from dassl.evaluation.predictions import PREDICTIONS_FILE, write_predictions
from experiments.runs import Run


def leave(run: Run, right: Sequence[bool], predicts: bool = True) -> None:
    """Write results, and predictions, of a run that is right about these pictures of its test."""
    run.folder.mkdir(parents=True, exist_ok=True)
    results = {"accuracy": 100 * sum(right) / len(right)}
    (run.folder / "results.json").write_text(json.dumps(results))
    if predicts:
        paths = [f"/data/{i}.png" for i in range(len(right))]
        labels = np.zeros(len(right), dtype=np.int64)
        logits = np.array([[1.0, 0.0] if r else [0.0, 1.0] for r in right], dtype=np.float16)
        with open(run.folder / PREDICTIONS_FILE, "wb") as file:
            write_predictions(file, paths, "/data", labels, ["a", "b"], {"logits": logits})
