"""CLIP (Radford et al., 2021) with one prompt hook in both towers.

Module and parameter names are OpenAI's, so that any OpenAI, open_clip or published few-shot
checkpoint loads by name.  Tensors are batch-first inside: (N, T, width).

The prompt hook: both towers take ``prompts``, a sequence with one entry for each of the first
layers.  An entry is ``None`` (the prompt tokens that the previous layer put out flow on) or a
tensor of prompt tokens that takes their place.

The text tower is causal and its feature is read at the end token.  Two exact consequences are
used: what follows the longest end token is never computed, and what all classes have in common
(start token, shared prompts, leading words) is computed once, not once per class.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tokens import PromptTokens

Prompts = Sequence[Tensor | None]


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


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in fp32 whatever the input's type is."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return y.to(x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head attention with the parameter names of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(N, T, parts * width) -> ``parts`` tensors (N, heads, T, head width)."""
        n, t, _ = x.shape
        return x.view(n, t, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _merge(self, x: Tensor) -> Tensor:
        """(N, heads, T, head width) -> (N, T, width), through the output projection."""
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (N, heads, T, head width), of ``x`` (N, T, width)."""
        return self._split(F.linear(x, self.in_proj_weight, self.in_proj_bias), 3)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """Self-attention over ``x`` (N, T, width)."""
        q, k, v = self.qkv(x)
        return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    def first_token(self, x: Tensor) -> Tensor:
        """Self-attention of the first token alone over all of ``x``: (N, 1, width)."""
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        (q,) = self._split(F.linear(x[:, :1], weight[:width], bias[:width]), 1)
        k, v = self._split(F.linear(x, weight[width:], bias[width:]), 2)
        return self._merge(F.scaled_dot_product_attention(q, k, v))

    def after_prefix(self, x: Tensor, prefix_k: Tensor, prefix_v: Tensor, n_classes: int) -> Tensor:
        """Causal attention of class suffixes over one common prefix and over themselves.

        Args:
            x: (P * K, S, width), K suffixes for each of P prefixes.
            prefix_k, prefix_v: (P, heads, n, head width), computed once for all K suffixes.
            n_classes: K.
        """
        length = x.shape[1]
        q, k, v = (
            t.unflatten(0, (-1, n_classes)).transpose(1, 2) for t in self.qkv(x)
        )  # (P, heads, K, S, head width)
        q = q * q.shape[-1] ** -0.5
        # All K * S queries meet the same prefix keys: one matrix product instead of K copies.
        to_prefix = (q.flatten(2, 3) @ prefix_k.mT).unflatten(2, (n_classes, length))
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        to_suffix = (q @ k.mT).masked_fill(future, -math.inf)
        weights = torch.cat([to_prefix, to_suffix], dim=-1).softmax(dim=-1).to(v.dtype)
        from_prefix, from_suffix = weights.split([prefix_k.shape[2], length], dim=-1)
        out = (from_prefix.flatten(2, 3) @ prefix_v).unflatten(2, (n_classes, length))
        out = out + from_suffix @ v
        return self._merge(out.transpose(1, 2).flatten(0, 1))


class ResidualAttentionBlock(nn.Module):
    """The one pre-norm transformer block of both towers."""

    def __init__(self, width: int, heads: int, quick_gelu: bool = True):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.ln_2 = LayerNorm(width)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln_2(x))

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        return self._feed_forward(x + self.attn(self.ln_1(x), causal))

    def first_token(self, x: Tensor) -> Tensor:
        """The block's output at the first token only: (N, T, width) -> (N, 1, width)."""
        return self._feed_forward(x[:, :1] + self.attn.first_token(self.ln_1(x)))

    def with_prefix(self, prefix: Tensor, suffix: Tensor) -> tuple[Tensor, Tensor]:
        """One causal layer over P prefixes (P, n, width) and their suffixes (P * K, S, width)."""
        q, k, v = self.attn.qkv(self.ln_1(prefix))
        attended = self.attn._merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        n_classes = suffix.shape[0] // prefix.shape[0]
        suffix = suffix + self.attn.after_prefix(self.ln_1(suffix), k, v, n_classes)
        return self._feed_forward(prefix + attended), self._feed_forward(suffix)


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, causal: bool, quick_gelu: bool = True):
        super().__init__()
        self.width = width
        self.layers = layers
        self.causal = causal
        self.resblocks = nn.Sequential(
            *[ResidualAttentionBlock(width, heads, quick_gelu) for _ in range(layers)]
        )

    @property
    def blocks(self) -> list[ResidualAttentionBlock]:
        return cast("list[ResidualAttentionBlock]", list(self.resblocks))

    def forward(self, x: Tensor) -> Tensor:
        """(T, N, width) -> (T, N, width): the layout in which trainers written for OpenAI's
        model call it.  The towers here go through ``resblocks``."""
        x = x.transpose(0, 1)
        for block in self.resblocks:
            x = block(x, self.causal)
        return x.transpose(0, 1)


def _check_depth(prompts: Prompts, layers: int, tower: str) -> None:
    if len(prompts) > layers:
        raise ValueError(
            f"prompts for {len(prompts)} layers, but the {tower} tower has {layers} layers"
        )


class VisionTransformer(nn.Module):
    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        quick_gelu: bool = True,
    ):
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        n_tokens = (input_resolution // patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(n_tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, causal=False, quick_gelu=quick_gelu)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, output_dim))

    def forward(self, images: Tensor, prompts: Prompts = ()) -> Tensor:
        """Image features (B, output_dim), not normalised.

        Args:
            images: (B, 3, resolution, resolution).
            prompts: per layer, None or (m, width) for all images or (B, m, width) per image.
                Those of layer 0 are appended behind the patches, after the positional embedding
                and before ``ln_pre``; those of a later layer replace the last m tokens.

        Raises:
            ValueError: more prompts than layers, or a later layer has prompts of another number
                than layer 0.
        """
        _check_depth(prompts, self.transformer.layers, "vision")
        x = self.conv1(images).flatten(2).mT  # (B, patches, width)
        class_token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([class_token, x], dim=1) + self.positional_embedding.to(x.dtype)
        n_prompts = 0
        if len(prompts) > 0 and prompts[0] is not None:
            n_prompts = prompts[0].shape[-2]
            x = self._with_prompts(x, prompts[0])
        x = self.ln_pre(x)
        blocks = self.transformer.blocks
        for i, block in enumerate(blocks):
            if i > 0 and i < len(prompts):
                prompt = prompts[i]
                if prompt is not None:
                    if prompt.shape[-2] != n_prompts:
                        raise ValueError(
                            f"layer {i} has {prompt.shape[-2]} vision prompts to replace the "
                            f"{n_prompts} of layer 0"
                        )
                    x = self._with_prompts(x[:, : x.shape[1] - n_prompts], prompt)
            # Nothing but the class token is read behind the last block.
            x = block.first_token(x) if block is blocks[-1] else block(x)
        return self.ln_post(x[:, 0]) @ self.proj.to(x.dtype)

    @staticmethod
    def _with_prompts(x: Tensor, prompts: Tensor) -> Tensor:
        return torch.cat([x, prompts.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)


class Bottleneck(nn.Module):
    """Residual bottleneck whose striding is an average pool in front of the last convolution."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1):
        super().__init__()
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inplanes != outplanes:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(inplanes, outplanes, 1, bias=False)),
                        ("1", nn.BatchNorm2d(outplanes)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return self.relu3(out + (x if self.downsample is None else self.downsample(x)))


class AttentionPool2d(nn.Module):
    """Attention pooling: the mean token asks, the mean token and all positions answer."""

    def __init__(self, grid: int, width: int, heads: int, output_dim: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) * width**-0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, grid, grid) -> (B, output_dim)."""
        x = x.flatten(2).mT
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        q, k, v = (
            proj(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj, t in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        pooled = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(pooled.transpose(1, 2).flatten(2)).squeeze(1)


class ModifiedResNet(nn.Module):
    """CLIP's ResNet: a three-convolution stem, anti-aliased strides, attention pooling."""

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        output_dim: int,
        heads: int,
        input_resolution: int,
        width: int,
    ):
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        inplanes = width
        for stage, depth in enumerate(layers):
            planes = width * 2**stage
            blocks = [Bottleneck(inplanes, planes, stride=1 if stage == 0 else 2)]
            inplanes = planes * Bottleneck.expansion
            blocks += [Bottleneck(inplanes, planes) for _ in range(depth - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool2d(input_resolution // 32, inplanes, heads, output_dim)

    def forward(self, images: Tensor, prompts: Prompts = ()) -> Tensor:
        """Image features (B, output_dim), not normalised.

        Raises:
            ValueError: prompts are given; a convolutional tower has no tokens to put them behind.
        """
        if any(p is not None for p in prompts):
            raise ValueError("a ResNet takes no vision prompts; use a ViT")
        x = self.relu1(self.bn1(self.conv1(images)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.avgpool(self.relu3(self.bn3(self.conv3(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.attnpool(x)


class CLIP(nn.Module):
    """Both towers.  Text-tower modules live at the top level, as in OpenAI's model."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
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
        """The type in which the towers compute."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, images: Tensor, prompts: Prompts = ()) -> Tensor:
        """Image features (B, embed_dim), not normalised; ``prompts`` as in the vision tower."""
        return self.visual(images.to(self.dtype), prompts)

    def encode_text(self, tokens: Tensor | PromptTokens, prompts: Prompts = ()) -> Tensor:
        """Text features, not normalised.

        Args:
            tokens: token ids (K, length) of plain texts, or the ``PromptTokens`` of K class names.
            prompts: per layer, None or a tensor that takes the m prompt positions:
                (m, width) shared by all classes; (K, m, width) class-specific;
                (B, 1, m, width) image-specific, every image against every class; in general
                anything that broadcasts to (B, K, m, width).

        Returns:
            (K, embed_dim), or (B, K, embed_dim) where a prompt has four dimensions.

        Raises:
            ValueError: more prompts than layers, or their number is not that of the positions.
        """
        if isinstance(tokens, Tensor):
            tokens = PromptTokens.plain(tokens)
        _check_depth(prompts, self.transformer.layers, "text")
        m = tokens.slots.shape[1]
        layers: list[Tensor | None] = []
        for i, p in enumerate(prompts):
            if p is not None and p.shape[-2] != m:
                raise ValueError(f"layer {i} has {p.shape[-2]} text prompts for {m} positions")
            layers.append(p if p is None else p[(None,) * (4 - p.dim())].to(self.dtype))
        given = [p for p in layers if p is not None]
        n_images = max([p.shape[0] for p in given], default=1)
        shared = bool(given) and tokens.prefix > 0 and all(p.shape[1] == 1 for p in given)
        encode = self._encode_shared if shared else self._encode_trimmed
        x = self.ln_final(encode(tokens, layers, n_images))
        x = x @ self.text_projection.to(x.dtype)
        per_image = any(p is not None and p.dim() == 4 for p in prompts)
        return x if per_image else x.squeeze(0)

    def _embed(self, ids: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Token embeddings (..., T, width) and the positional embeddings (T, width) for them."""
        position = self.positional_embedding[start : start + ids.shape[-1]]
        return self.token_embedding(ids).to(self.dtype), position.to(self.dtype)

    def _encode_trimmed(self, tokens: PromptTokens, prompts: Prompts, n_images: int) -> Tensor:
        """Every class in full, up to the longest end token: (n_images, K, width) at the ends."""
        n_classes, length = tokens.ids.shape
        x, position = self._embed(tokens.ids)
        x = x.expand(n_images, -1, -1, -1)
        slots = tokens.slots[..., None].expand(n_images, -1, -1, x.shape[-1])
        for i, block in enumerate(self.transformer.blocks):
            prompt = prompts[i] if i < len(prompts) else None
            if prompt is not None:
                x = x.scatter(2, slots, prompt.expand_as(slots))
            if i == 0:
                x = x + position
            x = block(x.reshape(-1, length, x.shape[-1]), causal=True)
            x = x.unflatten(0, (n_images, n_classes))
        return x[:, torch.arange(n_classes, device=x.device), tokens.eot]

    def _encode_shared(self, tokens: PromptTokens, prompts: Prompts, n_images: int) -> Tensor:
        """The common prefix once for each image (or once at all), then the class suffixes."""
        n_classes, n = tokens.ids.shape[0], tokens.prefix
        m = tokens.slots.shape[1]
        prefix, prefix_position = self._embed(tokens.ids[0, :n])
        suffix, suffix_position = self._embed(tokens.ids[:, n:], start=n)
        prefix = prefix.expand(n_images, -1, -1)
        suffix = (suffix + suffix_position).repeat(n_images, 1, 1)
        for i, block in enumerate(self.transformer.blocks):
            prompt = prompts[i] if i < len(prompts) else None
            if prompt is not None:  # where the prefix is shared, the prompts follow its first token
                prompt = prompt.squeeze(1).expand(n_images, -1, -1)
                prefix = torch.cat([prefix[:, :1], prompt, prefix[:, 1 + m :]], dim=1)
            if i == 0:
                prefix = prefix + prefix_position
            prefix, suffix = block.with_prefix(prefix, suffix)
        suffix = suffix.unflatten(0, (n_images, n_classes))
        return suffix[:, torch.arange(n_classes, device=suffix.device), tokens.eot - n]

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosine similarities: per image (B, N) and per text (N, B)."""
        image_features = F.normalize(self.encode_image(images), dim=-1)
        text_features = F.normalize(self.encode_text(texts), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        return logits, logits.t()


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Cast a model in place; norms and the logit scale stay fp32, where precision matters."""
    for module in model.modules():
        if not isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            for name, parameter in module.named_parameters(recurse=False):
                if name != "logit_scale":
                    parameter.data = parameter.data.to(dtype)
