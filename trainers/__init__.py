"""Registered trainers, one file each."""

from . import (
    cocoop,
    coop,
    hicropl,
    hisf,
    ivlp,
    kgcoop,
    linear_probe,
    maple,
    promp,
    promptsrc,
    vpt,
    zsclip,
)

__all__ = [
    "cocoop",
    "coop",
    "hicropl",
    "hisf",
    "ivlp",
    "kgcoop",
    "linear_probe",
    "maple",
    "promp",
    "promptsrc",
    "vpt",
    "zsclip",
]
