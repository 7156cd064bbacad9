"""Registered trainers, one file each."""

from . import coop, hicropl, zsclip

__all__ = ["coop", "hicropl", "zsclip"]
