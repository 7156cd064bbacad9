"""Helpers of semi-supervised training, at the path by which public files import them."""

from dassl.compat import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)

__all__ = [
    "create_onehot",
    "ema_model_update",
    "linear_rampup",
    "reverse_index",
    "sharpen_prob",
    "shuffle_index",
    "sigmoid_rampup",
]
