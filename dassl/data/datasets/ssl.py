"""The public toolbox's datasets for semi-supervised learning: none is here."""

from dassl.compat import absent_names

__getattr__ = absent_names(__name__)
