"""What a finished run leaves, for tests of what reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dassl.config import read_yaml
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


def leave_results(run: Run, correct: int, total: int = 100, **changes: object) -> Path:
    """Write results as a run does, with a config of which some keys are set; return the folder.

    Args:
        run: the run, in whose folder they are.
        correct, total: test images.
        changes: of the config, by dotted key with "__" for the dots, or of the results in lower
            case; None removes a key.
    """
    name = read_yaml(f"configs/datasets/{run.target}.yaml")["DATASET"]["NAME"]
    shots = -1 if run.step.transfers or not run.is_trained else run.shots
    dataset = {"NAME": name, "NUM_SHOTS": shots, "SUBSAMPLE_CLASSES": run.step.test}
    config = {
        "VERSION": 1,
        "OUTPUT_DIR": str(run.folder),
        "SEED": run.seed,
        "TRAINER": {"NAME": run.trainer},
        "DATASET": dataset,
        "MODEL": {"BACKBONE": {"NAME": "ViT-Mini-2"}},
    }
    results: dict[str, object] = {
        **{"accuracy": 100 * correct / total, "correct": correct, "total": total},
        **{"split": "test", "trainer": run.trainer, "precision": "fp32"},
        **{"versions": {"torch": "2.14.1"}, "config": config},
    }
    for key, value in changes.items():
        *nodes, last = key.split("__")
        node = config if key.isupper() or nodes else results
        for part in nodes:
            node = node.setdefault(part, {})  # type: ignore[assignment]
        if value is None:
            del node[last]
        else:
            node[last] = value
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "results.json").write_text(json.dumps(results))
    return run.folder
