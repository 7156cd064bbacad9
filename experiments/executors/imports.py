"""Imports what every run imports, which takes seconds; the processes of ``local`` have it from one.

Nothing here may compute or look for a GPU: after that a process cannot be forked.
"""

from contextlib import suppress

with suppress(Exception):  # a run that cannot import something says so
    import open_clip  # noqa: F401
    import sklearn.metrics  # noqa: F401

    import clip.simple_tokenizer  # noqa: F401
    import dassl.engine.curves  # noqa: F401
    import datasets  # noqa: F401
    import train  # noqa: F401
    import trainers.trainer  # noqa: F401
