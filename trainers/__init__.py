"""Registered trainers, one file each."""

from . import (
    cliplora,
    cocoop,
    coop,
    hicropl,
    hisf,
    ivlp,
    kgcoop,
    linear_probe,
    maple,
    metaprompt,
    mma,
    proda,
    promp,
    promptsrc,
    vpt,
    zsclip,
)

__all__ = [
    "cliplora",
    "cocoop",
    "coop",
    "hicropl",
    "hisf",
    "ivlp",
    "kgcoop",
    "linear_probe",
    "maple",
    "metaprompt",
    "mma",
    "proda",
    "promp",
    "promptsrc",
    "vpt",
    "zsclip",
]
