"""Patched CLIP: one model, one prompt hook, weights loading, tokenisation."""

from .clip import ClipError, available_models, build_model, load
from .model import CLIP, CLIPConfig, convert_weights
from .tokens import PromptTokens, tokenize

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ClipError",
    "PromptTokens",
    "available_models",
    "build_model",
    "convert_weights",
    "load",
    "tokenize",
]
