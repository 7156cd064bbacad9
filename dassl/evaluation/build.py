"""From a config to an evaluator."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl.utils.registry import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> Any:
    """Make the evaluator ``cfg.TEST.EVALUATOR``; ``kwargs`` (such as lab2cname) go to it.

    Raises:
        UserError: the name is unknown.
    """
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)
