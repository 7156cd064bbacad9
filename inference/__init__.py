"""A trained run at work: prediction, other class names, saving and sharing."""

from inference.classifier import Classifier, Prediction

__all__ = ["Classifier", "Prediction"]
