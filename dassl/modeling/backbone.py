"""The registry of backbones, at the path by which public files import it."""

from dassl.compat import absent_names
from dassl.modeling import BACKBONE_REGISTRY, Backbone, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]

__getattr__ = absent_names(__name__)
