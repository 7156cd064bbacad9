"""The public toolbox's trainers for semi-supervised learning: none is here."""

from dassl.compat import absent_names

__getattr__ = absent_names(__name__)
