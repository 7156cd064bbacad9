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
from dassl.config import check_domains, get_cfg_default
from dassl.engine import TRAINER_REGISTRY, TrainerBase
from trainers.base import Method

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


def settings(method: type[Method], **values: Any) -> Any:
    """Return (cfg, the method's node in it) with fp32 and these values."""
    cfg = get_cfg_default(method.__name__)
    node = cfg.TRAINER[method.config_node]
    for key, value in {"PREC": "fp32", **values}.items():
        assert key in node, key
        node[key] = value
    return cfg, node


def build(method: type[Method], model: CLIP, seed: int = 1, **values: Any) -> Any:
    """Make the method around ``model``, for NAMES, with a random seed."""
    cfg, _ = settings(method, **values)
    torch.manual_seed(seed)
    return method(cfg, model, NAMES, TEMPLATES)


def check(method: type[Method], model: CLIP, **values: Any) -> None:
    """Raise what the method raises if it does not support these settings on ``model``."""
    cfg, node = settings(method, **values)
    check_domains(cfg, method.__name__, section=f"TRAINER.{method.config_node}.")
    method.check_settings(node, model)


def bare_trainer(method: Method) -> Any:
    """Make the trainer of a built method, without data, optimizer or output folder."""
    bare = object.__new__(TRAINER_REGISTRY.get(type(method).__name__))
    TrainerBase.__init__(bare)
    bare.cfg, bare.model, bare._config = get_cfg_default(), method, {}
    bare.register_model(method.checkpoint_name, method.get_submodule(method.checkpoint_scope))
    return bare


def load_public(
    method: Method, state: Mapping[str, Tensor], path: str, class_names: list[str] | None = None
) -> None:
    """Load a public state dict into a built method the way the trainer does.

    ``class_names`` are those that the checkpoint names, if it is known to name some or none.
    """
    trainer = bare_trainer(method)
    if class_names is not None:
        trainer.check_classes(class_names, path)
    trainer.load_learned_state_dict(method.checkpoint_name, state, path)


def learned(module: nn.Module) -> dict[str, nn.Parameter]:
    """List the names of the trained tensors."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def class_ids(pattern: str, names: Sequence[str] = NAMES) -> list[Tensor]:
    """Tokenize a template with each class name in place of ``{}``: K times (77,)."""
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
