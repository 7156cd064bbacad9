"""Predictions on the standard output, one at a time."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from dassl.command import say
from inference.classifier import Prediction

NONE = "none of these"

Write = Callable[[Prediction, str | None], None]


def answer(prediction: Prediction, threshold: float) -> str | None:
    """Return the most probable class, ``NONE`` where that is not probable enough, or None.

    None is the answer where the picture could not be classified.
    """
    if prediction.probability is not None and prediction.probability < threshold:
        return NONE
    return prediction.label


def record_of(prediction: Prediction, label: str | None) -> dict[str, Any]:
    """Return a prediction as JSON has it."""
    top = zip(prediction.labels, prediction.probabilities, strict=True)
    return {
        "image": prediction.image,
        "label": label,
        "probability": prediction.probability,
        "top": [{"label": name, "probability": p} for name, p in top],
        "error": prediction.error or None,
    }


def as_json(value: Any) -> str:
    """Return JSON in one line, without characters that a terminal obeys."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)


@contextmanager
def table(top: int) -> Iterator[Write]:
    """Write columns, as wide as what they have held so far."""
    widths = [0, 0]

    def write(prediction: Prediction, label: str | None) -> None:
        if label is None:
            say(f"{prediction.image}  error: {prediction.error}")
            return
        cells = [prediction.image, label]
        widths[:] = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=True)]
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        named = zip(prediction.labels, prediction.probabilities, strict=True)
        shares = [f"{name} {100 * p:.1f}%" for name, p in named]
        say("  ".join([*padded, ", ".join(shares)]))

    yield write


@contextmanager
def json_array(top: int) -> Iterator[Write]:
    """Write one JSON array, an entry a line."""
    separator = "["

    def write(prediction: Prediction, label: str | None) -> None:
        nonlocal separator
        say(f"{separator}\n  {as_json(record_of(prediction, label))}", end="")
        separator = ","

    yield write
    say("\n]")


@contextmanager
def json_lines(top: int) -> Iterator[Write]:
    """Write a JSON object a line."""
    yield lambda prediction, label: say(as_json(record_of(prediction, label)))


@contextmanager
def comma_separated(top: int) -> Iterator[Write]:
    """Write CSV with columns for the most probable classes."""

    def row(cells: list[Any]) -> None:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(cells)
        say(buffer.getvalue(), end="")

    places = [name for i in range(1, top + 1) for name in (f"top_{i}", f"probability_{i}")]
    row(["image", "label", "error", *places])

    def write(prediction: Prediction, label: str | None) -> None:
        named = zip(prediction.labels, prediction.probabilities, strict=True)
        cells = [cell for pair in named for cell in pair]
        row([prediction.image, label, prediction.error, *cells, *[""] * (2 * top - len(cells))])

    yield write


WRITERS: dict[str, Callable[[int], AbstractContextManager[Write]]] = {
    "table": table,
    "json": json_array,
    "jsonl": json_lines,
    "csv": comma_separated,
}
