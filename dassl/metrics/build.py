"""The registry of metrics."""

from __future__ import annotations

from dassl.utils.registry import Registry

# A metric is a function of finite logits (n, K) and labels (n,), both on the CPU and n at least 1.
# It returns a number, None where it is not defined, or a dict from label to number.
METRIC_REGISTRY = Registry("METRIC")
