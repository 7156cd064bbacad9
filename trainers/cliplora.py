"""CLIP-LoRA: Low-Rank Few-Shot Adaptation (Zanella and Ben Ayed, CVPR workshops 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from clip import CLIP, Layer
from dassl.config.domains import Choice, Float, Int, Names
from dassl.utils import UserError

from .adapters import LowRank
from .base import Method, Towers
from .settings import check_vit
from .trainer import register_method

PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}  # in the saved file


class AttentionLoRA(nn.ModuleDict):
    """The low-rank updates of one block's attention, by the names of the saved file."""

    def qkv(self, x: Tensor) -> Tensor:
        names = ("q_proj", "k_proj", "v_proj")
        return torch.cat([self[n](x) if n in self else 0 * x for n in names], dim=-1)

    def layer(self) -> Layer:
        return Layer(qkv=self.qkv, out=self["proj"] if "proj" in self else None)


@register_method(
    "CLIPLORA",
    R=Int(2, min=1, max=10000, help="rank of the updates"),
    ALPHA=Int(1, min=1, help="the updates are scaled by ALPHA / sqrt(R)"),
    DROPOUT_RATE=Float(0.25, min=0, max=1, help="dropout of what the updates read"),
    PARAMS=Names(("q", "k", "v"), *PROJECTIONS, some=True, help="projections that have an update"),
    ENCODER=Choice("both", "both", "text", "vision", help="towers that have updates"),
    N_ITERS=Int(500, min=1, help="iterations for each shot"),
    PREC="amp",
)
class CLIPLoRA(Method):
    """Low-rank updates of the attention in all blocks, texts in the dataset's first template."""

    checkpoint_name = checkpoint_scope = "lora"
    public_files = ("lora_weights.pt",)

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        if settings.ENCODER != "text":
            check_vit(clip_model)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, visual = self.settings, cast(Any, self.clip.visual)
        names = [name for param, name in PROJECTIONS.items() if param in settings.PARAMS]
        # the towers' blocks in the order of the saved file
        text = self.clip.transformer.blocks if settings.ENCODER != "vision" else []
        vision = visual.transformer.blocks if settings.ENCODER != "text" else []
        self.n_text = len(text)
        self.lora = nn.ModuleDict()
        for i, block in enumerate([*text, *vision]):
            shape = (block.attn.embed_dim, settings.R, settings.ALPHA, settings.DROPOUT_RATE)
            updates = {name: LowRank(*shape, of_images=i >= self.n_text) for name in names}
            self.lora[f"layer_{i}"] = AttentionLoRA(updates)

    def layers(self, condition: Tensor | None = None) -> Towers:
        layers = [cast(AttentionLoRA, block).layer() for block in self.lora.values()]
        return Towers(layers[: self.n_text], layers[self.n_text :])

    def iterations(self, cfg: Any, n_images: int) -> int:
        """Return N_ITERS per shot, which without DATASET.NUM_SHOTS is an image of each class."""
        shots = cfg.DATASET.NUM_SHOTS
        shots = shots if shots > 0 else math.ceil(n_images / len(self.class_names))
        return self.settings.N_ITERS * shots

    def build_schedule(self, optimizer: Any, optim_cfg: Any, n_steps: int) -> CosineAnnealingLR:
        return CosineAnnealingLR(optimizer, n_steps, eta_min=1e-6)

    def read_public_files(self, *contents: Any) -> dict[str, Tensor]:
        (content,) = contents
        for name, value in content["metadata"].items():
            own = "all" if name == "position" else self.settings[name.upper()]
            if value != (list(own) if name == "params" else own):
                raise UserError(f"TRAINER.CLIPLORA.{name.upper()}: expected {value}, got {own}")
        return {
            f"{layer}.{projection}.{name}": tensor
            for layer, parts in content["weights"].items()
            for projection, tensors in parts.items()
            for name, tensor in tensors.items()
        }
