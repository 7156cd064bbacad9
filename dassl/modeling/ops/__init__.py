"""Layers of the public toolbox, none of which is here, and its helpers (``utils``)."""

from dassl.compat import absent_names
from dassl.modeling.ops import utils

__all__ = ["utils"]

__getattr__ = absent_names(__name__)
