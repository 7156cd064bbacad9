"""The registry of networks, at the path by which public files import it."""

from dassl.compat import absent_names
from dassl.modeling import NETWORK_REGISTRY, build_network

__all__ = ["NETWORK_REGISTRY", "build_network"]

__getattr__ = absent_names(__name__)
