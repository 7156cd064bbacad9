"""Registered trainers, one file each."""

from . import cocoop, coop, hicropl, ivlp, kgcoop, maple, promptsrc, zsclip

__all__ = ["cocoop", "coop", "hicropl", "ivlp", "kgcoop", "maple", "promptsrc", "zsclip"]
