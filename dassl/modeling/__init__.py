"""Backbones and heads for public files, which register them themselves; there are none here.

Nothing of ours uses any of it: see ``dassl.compat``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.utils.logger import log
from dassl.utils.registry import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")
HEAD_REGISTRY = Registry("HEAD")
NETWORK_REGISTRY = Registry("NETWORK")


class Backbone(nn.Module):
    """The base of a backbone, which sets ``_out_features``: the width of its features."""

    _out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        return self._out_features


def _builder(registry: Registry, kind: str) -> Callable[..., Any]:
    def build(name: str, verbose: bool = True, **kwargs: Any) -> Any:
        """Make what is registered under a name; ``UserError`` where no file has registered it."""
        made = registry.get(name)(**kwargs)
        if verbose:
            log.info(f"{kind}: {name}")
        return made

    return build


build_backbone = _builder(BACKBONE_REGISTRY, "Backbone")
build_head = _builder(HEAD_REGISTRY, "Head")
build_network = _builder(NETWORK_REGISTRY, "Network")


class SimpleNet(nn.Module):
    """A backbone, a head if the config names one, and a linear classifier.

    Args:
        cfg: the config.
        model_cfg: a node such as ``cfg.MODEL``, with BACKBONE and HEAD.
        num_classes: of the classifier; 0 for none.
        kwargs: for the backbone and the head.

    Raises:
        UserError: no file has registered the backbone or the head.
    """

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs: Any) -> None:
        super().__init__()
        backbone, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone: Any = build_backbone(
            backbone.NAME, verbose=cfg.VERBOSE, pretrained=backbone.PRETRAINED, **kwargs
        )
        self.fdim: int = self.backbone.out_features  # width of the features
        self.head: Any = None
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME,
                verbose=cfg.VERBOSE,
                in_features=self.fdim,
                hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION,
                bn=head.BN,
                dropout=head.DROPOUT,
                **kwargs,
            )
            self.fdim = self.head.out_features
        self.classifier = nn.Linear(self.fdim, num_classes) if num_classes > 0 else None

    def forward(self, x: Tensor, return_feature: bool = False) -> Any:
        """Return logits, with the features if ``return_feature``; without classifier, features."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        logits = self.classifier(features)
        return (logits, features) if return_feature else logits
