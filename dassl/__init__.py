"""A toolbox for supervised few-shot learning, with the names and behavior of Dassl.pytorch."""

#: The version of Dassl.pytorch whose behavior this has, for public files that ask.
__version__ = "0.6.3"
