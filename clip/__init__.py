"""CLIP with one hook for all that a method does to it, weights by name, tokenization."""

from .clip import (
    ClipError,
    available_models,
    build_model,
    is_here,
    load,
    load_model,
    preprocess_of,
)
from .layer import Layer
from .model import CLIP, CLIPConfig, Preprocess, convert_weights
from .tokens import PromptTokens, tokenize

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ClipError",
    "Layer",
    "Preprocess",
    "PromptTokens",
    "available_models",
    "build_model",
    "convert_weights",
    "is_here",
    "load",
    "load_model",
    "preprocess_of",
    "tokenize",
]
