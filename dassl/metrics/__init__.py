"""Numbers that say how good a prediction is."""

from dassl.metrics.accuracy import compute_accuracy

__all__ = ["compute_accuracy"]
