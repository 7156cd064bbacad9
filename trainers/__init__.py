"""Registered trainers, one file each."""

from . import cocoop, coop, hicropl, ivlp, kgcoop, linear_probe, maple, promp, promptsrc, zsclip

__all__ = [
    "cocoop",
    "coop",
    "hicropl",
    "ivlp",
    "kgcoop",
    "linear_probe",
    "maple",
    "promp",
    "promptsrc",
    "zsclip",
]
