"""Registered trainers, one file each."""

from . import (
    cliplora,
    cocoop,
    coop,
    coprompt,
    hicropl,
    hisf,
    ivlp,
    kgcoop,
    linear_probe,
    maple,
    mma,
    promp,
    promptsrc,
    provp,
    vpt,
    zsclip,
)

__all__ = [
    "cliplora",
    "cocoop",
    "coop",
    "coprompt",
    "hicropl",
    "hisf",
    "ivlp",
    "kgcoop",
    "linear_probe",
    "maple",
    "mma",
    "promp",
    "promptsrc",
    "provp",
    "vpt",
    "zsclip",
]
