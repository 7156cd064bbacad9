"""The registry of heads, at the path by which public files import it."""

from dassl.compat import absent_names
from dassl.modeling import HEAD_REGISTRY, build_head

__all__ = ["HEAD_REGISTRY", "build_head"]

__getattr__ = absent_names(__name__)
