"""CLIP (Radford et al., 2021): both towers, with one hook for all that a method does to them.

Module and parameter names are OpenAI's, so that any OpenAI, open_clip or published few-shot
checkpoint loads by name.  The hook is ``layers``, an argument of each forward call: see ``Layer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .blocks import LayerNorm, QuickGELU, ResidualAttentionBlock, Transformer
from .layer import Layer, Layers, as_layers
from .text import hidden_at_ends
from .tokens import PromptTokens
from .vision import AttentionPool2d, Bottleneck, ModifiedResNet, VisionTransformer

# Code written for OpenAI's package imports all of these from here.
__all__ = [
    "CLIP",
    "AttentionPool2d",
    "Bottleneck",
    "CLIPConfig",
    "LayerNorm",
    "ModifiedResNet",
    "Preprocess",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "convert_weights",
]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
UNIT_TOLERANCE = 1e-5  # rounding of normalized vectors in fp32, with a margin


def __getattr__(attribute: str) -> Any:
    if attribute == "build_model":  # OpenAI's package has it in this module
        from .clip import build_model

        return build_model
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


@dataclass(frozen=True)
class CLIPConfig:
    """An architecture as data.

    ``vision_layers`` is a number of blocks (ViT) or the four stage depths (ModifiedResNet).
    ``head_width`` is the width of one attention head; ``vision_head_width`` overrides it for the
    vision tower (ViT-H and larger).
    """

    embed_dim: int
    image_resolution: int
    vision_layers: int | tuple[int, int, int, int]
    vision_width: int
    vision_patch_size: int | None
    context_length: int
    vocab_size: int
    text_width: int
    text_layers: int
    head_width: int = 64
    vision_head_width: int | None = None
    quick_gelu: bool = True


@dataclass(frozen=True)
class Preprocess:
    """The transform that a backbone was trained with; called as OpenAI's ``preprocess`` is.

    Attributes:
        size: side of the square image that the backbone takes, in pixels.
        mean, std: of the three colors, in 0..1.
        interpolation: bicubic or bilinear.
    """

    size: int
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    interpolation: str = "bicubic"

    @property
    def transforms(self) -> list[Callable[[Any], Any]]:
        """The steps, of which code written for OpenAI's ``preprocess`` takes single ones."""
        from torchvision import transforms

        return [
            transforms.Resize(self.size, transforms.InterpolationMode(self.interpolation)),
            transforms.CenterCrop(self.size),
            methodcaller("convert", "RGB"),
            transforms.ToTensor(),
            transforms.Normalize(self.mean, self.std),
        ]

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize the shorter side, cut out the middle and normalize: (3, size, size)."""
        result: Any = image
        for step in self.transforms:
            result = step(result)
        return result


class CLIP(nn.Module):
    """Both towers.  Text-tower modules live at the top level, as in OpenAI's model."""

    def __init__(self, config: CLIPConfig, preprocess: Preprocess | None = None):
        super().__init__()
        self.config = config
        self.preprocess = preprocess or Preprocess(config.image_resolution)
        head_width = config.vision_head_width or config.head_width
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(config.vision_layers, int):
            assert config.vision_patch_size is not None
            self.visual = VisionTransformer(
                config.image_resolution,
                config.vision_patch_size,
                config.vision_width,
                config.vision_layers,
                config.vision_width // head_width,
                config.embed_dim,
                config.quick_gelu,
            )
        else:
            self.visual = ModifiedResNet(
                config.vision_layers,
                config.embed_dim,
                config.vision_width * 32 // head_width,
                config.image_resolution,
                config.vision_width,
            )
        width = config.text_width
        self.context_length = config.context_length
        self.transformer = Transformer(
            width,
            config.text_layers,
            width // config.head_width,
            causal=True,
            quick_gelu=config.quick_gelu,
        )
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the towers compute in."""
        return self.visual.conv1.weight.dtype

    @property
    def transformers(self) -> list[Transformer]:
        """Those of the text tower and of the vision tower, if this is no ResNet."""
        towers = [self.transformer]
        if isinstance(self.visual, VisionTransformer):
            towers.append(self.visual.transformer)
        return towers

    def encode_image(
        self, images: Tensor, layers: Layers = (), through_ln_pre: bool = True
    ) -> Tensor:
        """Return image features (B, embed_dim), not normalized; arguments as for its ``read``."""
        return self.read_image(images, layers, ("class",), through_ln_pre)["class"]

    def read_image(
        self, images: Tensor, layers: Layers, parts: Sequence[str], through_ln_pre: bool = True
    ) -> dict[str, Tensor]:
        """Return parts of what the vision tower makes of images, as its ``read`` names them."""
        return self.visual.read(images.to(self.dtype), layers, parts, through_ln_pre)

    def encode_text(self, tokens: Tensor | PromptTokens, layers: Layers = ()) -> Tensor:
        """Return text features, not normalized.

        Args:
            tokens: token ids (K, length) of plain texts, or the ``PromptTokens`` of K class names.
            layers: what is done to each of the first blocks.  Prompts take the m places that the
                tokens have for them: (m, width) shared by all classes; (K, m, width)
                class-specific; (V, 1, m, width) in variants, such as one for each image, every
                variant with every class; in general anything that broadcasts to (V, K, m, width).
                A function of the previous tokens gets (V, K, m, width), or (V, 1, m, width) where
                all classes share them.  Where the tokens have no places, prompts that begin at a
                layer after the first are inserted after the start token there.

        Returns:
            (K, embed_dim), or (V, K, embed_dim) where prompts have variants.

        Raises:
            ValueError: more layers than blocks, or another number of prompts than of places.
        """
        if isinstance(tokens, Tensor):
            tokens = PromptTokens.plain(tokens)
        entries = as_layers(layers, self.transformer.layers, "text")
        embedded = self.token_embedding(tokens.ids).to(self.dtype)
        position = self.positional_embedding[: tokens.ids.shape[1]].to(self.dtype)
        x = hidden_at_ends(self.transformer, entries, tokens, embedded, position)
        x = self.ln_final(x)
        x = x @ self.text_projection.to(x.dtype)
        return x if any(map(_has_variants, entries)) or x.shape[0] > 1 else x.squeeze(0)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Return cosines of features, times the logit scale: (B, K), fp32.

        Args:
            image: (B, d), of any length.
            text: (K, d), or (B, K, d) where every image has texts of its own.
        """
        image, text = _unit(image.float()), _unit(text.float())
        scale = self.logit_scale.exp().float()
        if text.dim() == 2:
            return scale * image @ text.t()
        return scale * (text @ image[:, :, None]).squeeze(-1)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return similarities per image (B, N) and per text (N, B)."""
        logits = self.similarity(self.encode_image(images), self.encode_text(texts))
        return logits, logits.t()


def _unit(x: Tensor) -> Tensor:
    """Normalize vectors; those that are of unit length up to rounding stay as they are."""
    length = x.norm(dim=-1, keepdim=True)
    return torch.where((length - 1).abs() < UNIT_TOLERANCE, x, x / length.clamp_min(1e-12))


def _has_variants(layer: Layer) -> bool:
    return isinstance(layer.prompts, Tensor) and layer.prompts.dim() == 4


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Cast a model in place; norms and the logit scale stay fp32, where precision matters."""
    for module in model.modules():
        if not isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            for name, parameter in module.named_parameters(recurse=False):
                if name != "logit_scale":
                    parameter.data = parameter.data.to(dtype)
