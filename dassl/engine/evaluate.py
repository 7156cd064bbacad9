"""One pass over validation or test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from tqdm import tqdm

from dassl.engine.progress import shows_bar
from dassl.engine.recorders import Recorder
from dassl.evaluation import EvaluatorBase, check_logits
from dassl.utils.logger import log


def evaluate(
    loader: Any,
    split: str,
    parse_batch: Callable[[Any], tuple[Any, Tensor]],
    predict: Callable[[Any], Tensor],
    evaluator: EvaluatorBase,
    recorders: Sequence[Recorder],
) -> Mapping[str, float]:
    """Return the evaluator's figures for the images of a loader.

    Args:
        loader: of the batches.
        split: what it is called, "val" or "test".
        parse_batch: returns the model's input and the labels (n,) of a batch.
        predict: returns the model's output (n, classes).
        evaluator: forgets what it has seen before.
        recorders: see every batch.

    Raises:
        LogitsError: an output is not finite.
    """
    evaluator.reset()
    log.info(f"Evaluate on the *{split}* set")
    for batch in tqdm(loader, desc=split, disable=not shows_bar()):
        input, label = parse_batch(batch)
        output = predict(input)
        check_logits(output, batch.get("impath", []) if isinstance(batch, Mapping) else [])
        evaluator.process(output, label)
        for recorder in recorders:
            recorder.batch(batch, output)
    return evaluator.evaluate()
