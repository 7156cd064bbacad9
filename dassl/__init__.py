"""A toolbox for supervised few-shot learning, with the names and behavior of Dassl.pytorch."""

#: For public files that ask for the version of Dassl.pytorch.
__version__ = "0.6.3"
