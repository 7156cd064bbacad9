"""One pass over validation or test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from tqdm import tqdm

from dassl import distributed
from dassl.engine.progress import shows_bar
from dassl.engine.recorders import Recorder
from dassl.evaluation import EvaluatorBase, check_logits
from dassl.utils.logger import log
from dassl.utils.tools import keep_random

Outputs = Iterator[tuple[Any, Tensor, Tensor]]  # batches, their labels (n,) and model outputs

# What recorders see of a batch of another process.
KEPT = ("label", "domain", "impath", "index")


def evaluate(
    loader: Any,
    split: str,
    parse_batch: Callable[[Any], tuple[Any, Tensor]],
    predict: Callable[[Any], Tensor],
    evaluator: EvaluatorBase,
    recorders: Sequence[Recorder],
    in_shares: bool = False,
) -> Mapping[str, float]:
    """Return the evaluator's figures for the images of a loader.

    Args:
        loader: of the batches.
        split: what it is called, "val" or "test".
        parse_batch: returns the model's input and the labels (n,) of a batch.
        predict: returns the model's output (n, classes).
        evaluator: forgets what it has seen before.
        recorders: see every batch.
        in_shares: each of several processes computes its share of the batches, and the first one's
            evaluator and recorders see all of them, in the loader's order; otherwise each process
            computes all.

    Raises:
        LogitsError: an output is not finite.
    """
    evaluator.reset()
    log.info(f"Evaluate on the *{split}* set")
    in_shares = in_shares and distributed.count() > 1
    outputs = _outputs(
        loader.of_this_process() if in_shares else loader, split, parse_batch, predict
    )
    for batch, label, output in _of_all(outputs, recorders) if in_shares else outputs:
        evaluator.process(output, label)
        for recorder in recorders:
            recorder.batch(batch, output)
    with keep_random():  # metrics import scikit-learn
        return distributed.from_first(evaluator.evaluate)


def _outputs(
    loader: Any,
    split: str,
    parse_batch: Callable[[Any], tuple[Any, Tensor]],
    predict: Callable[[Any], Tensor],
) -> Outputs:
    for batch in tqdm(loader, desc=split, disable=not shows_bar()):
        input, label = parse_batch(batch)
        output = predict(input)
        check_logits(output, batch.get("impath", []) if isinstance(batch, Mapping) else [])
        yield batch, label, output


def _of_all(outputs: Outputs, recorders: Sequence[Recorder]) -> Outputs:
    """Yield in the first process what all have, and let recorders read the features of each."""
    names = {name for recorder in recorders for name in recorder.reads}
    own = []
    for batch, label, output in outputs:
        read = {name: recorders[0].trainer.features[name].cpu() for name in names}
        own.append(({key: batch[key] for key in KEPT}, label.cpu(), output.cpu(), read))
    for batch, label, output, read in distributed.in_turn(own):
        for recorder in recorders:
            recorder.trainer.features = read
        yield batch, label, output
