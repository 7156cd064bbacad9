"""Registered trainers, one file each."""

from . import (
    cliplora,
    cocoop,
    coop,
    hicropl,
    hisf,
    ivlp,
    kgcoop,
    lamm,
    linear_probe,
    maple,
    mma,
    promp,
    promptsrc,
    tcp,
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
    "lamm",
    "linear_probe",
    "maple",
    "mma",
    "promp",
    "promptsrc",
    "tcp",
    "vpt",
    "zsclip",
]
