"""Imports what every run imports, which takes seconds; the processes of ``local`` have it from one.

Nothing here may compute or look for a GPU: after that a process cannot be forked.
"""

from contextlib import suppress
from importlib import import_module

OURS = ("train", "clip.simple_tokenizer", "dassl.engine.curves", "datasets", "trainers.trainer")

with suppress(Exception):  # a run that cannot import something says so
    for name in (*OURS, "open_clip", "sklearn.metrics"):
        import_module(name)
