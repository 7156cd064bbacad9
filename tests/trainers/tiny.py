"""A tiny random CLIP and configs for it, shared by the tests of the methods."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import trainers
from clip import CLIP, CLIPConfig, tokenize
from dassl.config import get_cfg_default
from dassl.engine import TrainerBase
from trainers.base import PromptTrainer

NAMES = ["red_circle", "very large dog", "blue square"]
TEMPLATES = ["a photo of a {}.", "this is a {}."]

assert trainers  # registers every method's defaults


def tiny_clip(layers: int = 4) -> CLIP:
    torch.manual_seed(0)
    config = CLIPConfig(
        embed_dim=24,
        image_resolution=16,
        vision_layers=layers,
        vision_width=48,
        vision_patch_size=8,
        context_length=77,
        vocab_size=49408,
        text_width=32,
        text_layers=layers,
        head_width=16,
    )
    model = CLIP(config).eval()
    model.logit_scale.data.fill_(2.0)
    return model.requires_grad_(False)


def settings(trainer: type[PromptTrainer], **values: Any) -> Any:
    """(cfg, the method's node of it) with fp32 and these values."""
    cfg = get_cfg_default()
    node = cfg.TRAINER[trainer.config_node]
    for key, value in {"PREC": "fp32", **values}.items():
        assert key in node, key
        node[key] = value
    return cfg, node


def build(trainer: type[PromptTrainer], model: CLIP, seed: int = 1, **values: Any) -> Any:
    """The method's ``PromptedCLIP`` around ``model``, for NAMES, with a random seed."""
    cfg, node = settings(trainer, **values)
    torch.manual_seed(seed)
    return trainer.model_class(cfg, node, model, NAMES, TEMPLATES)


def check(trainer: type[PromptTrainer], model: CLIP, **values: Any) -> None:
    """Raise what the trainer raises where its method cannot have these settings on ``model``."""
    _, node = settings(trainer, **values)
    object.__new__(trainer).check_settings(node, model)


def bare_trainer(trainer: type[PromptTrainer], model: nn.Module) -> Any:
    """Make the method's trainer around a built model, without data, optimizer or output folder."""
    bare = object.__new__(trainer)
    TrainerBase.__init__(bare)
    bare.register_model(trainer.checkpoint_name, model.get_submodule(trainer.checkpoint_scope))
    return bare


def load_public(
    trainer: type[PromptTrainer], model: nn.Module, state: Mapping[str, Tensor], path: str
) -> None:
    """Load a public state dict into a built model the way the trainer does."""
    bare = bare_trainer(trainer, model)
    bare.load_learned_state_dict(trainer.checkpoint_name, state, path)


def learned(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name the tensors that are trained."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def class_ids(pattern: str, names: Sequence[str] = NAMES) -> list[Tensor]:
    """Tokenize each class name in a text with ``{}`` for it: K times (77,)."""
    return [tokenize([pattern.format(name.replace("_", " "))])[0] for name in names]


def write_descriptions(path: Path) -> dict[str, list[str]]:
    texts = {
        name.replace("_", " "): [
            f"A {name} is seen.",
            f"You look at some {name} here, one of many.",
        ]
        for name in NAMES
    }
    path.write_text(json.dumps(texts))
    return texts
