"""The vision towers: ViT and ModifiedResNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import LayerNorm, Transformer, attend_in_sequences, attend_to_all
from .layer import Layers, Prompts, as_layers

# What can be read of an image, besides the feature of the class token.
PARTS = ("class", "prompts", "patches", "attention")


def check_parts(parts: Sequence[str]) -> None:
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"part of an image: expected {', '.join(PARTS)}, got '{part}'")


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

    def forward(self, images: Tensor, layers: Layers = ()) -> Tensor:
        """Return image features (B, output_dim), not normalized; see ``read``."""
        return self.read(images, layers)["class"]

    def read(
        self,
        images: Tensor,
        layers: Layers = (),
        parts: Sequence[str] = ("class",),
        through_ln_pre: bool = True,
    ) -> dict[str, Tensor]:
        """Return what the tower makes of images, part by part.

        Args:
            images: (B, 3, resolution, resolution).
            layers: what is done to each of the first blocks.  Prompts (m, width) are for all
                images, (B, m, width) for each of them.  The first layer that has any appends them
                after the patches, without positional embedding; those of a later layer replace
                the last m tokens.
            parts: which of the following to return; only what they need is computed.
            through_ln_pre: whether prompts of layer 0 go through ``ln_pre``, as the patches do.

        Returns:
            ``class``: the class token's features (B, output_dim).
            ``prompts``: the mean over the prompt tokens (B, width), after ``ln_post``.
            ``patches``: the patch tokens (B, patches, width), after ``ln_post``.
            ``attention``: weights (B, layers, heads, T, T) of all tokens (rows) to all; where
            prompts begin at a later layer, zero for tokens that are not there yet.

        Raises:
            ValueError: more layers than blocks, more or fewer prompts than in the first layer that
                has any, a function without earlier prompts, or ``prompts`` where there are none.
        """
        check_parts(parts)
        entries = as_layers(layers, self.transformer.layers, "vision")
        x = self.conv1(images).flatten(2).mT  # (B, patches, width)
        class_token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([class_token, x], dim=1) + self.positional_embedding.to(x.dtype)
        n_own = x.shape[1]
        if not through_ln_pre:
            x = self.ln_pre(x)
        weights: list[Tensor] = []

        def attend_and_keep(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            weights.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1))
            return weights[-1] @ v

        how = attend_and_keep if "attention" in parts else attend_to_all
        attend = partial(attend_in_sequences, how)
        blocks, tower_pass = self.transformer.blocks, self.transformer.start()
        rows: slice | Tensor | None = None
        for i, (block, layer) in enumerate(zip(blocks, entries, strict=True)):
            if layer.prompts is not None:
                x = self._with_prompts(x, layer.prompts, i, n_own)
            if i == 0 and through_ln_pre:
                x = self.ln_pre(x)
            if block is blocks[-1] and not {"patches", "attention"} & set(parts):
                # After the last block, only what is read is computed.
                rows = slice(0, 1)
                if "prompts" in parts:
                    positions = torch.arange(x.shape[1], device=x.device)
                    rows = torch.cat([positions[:1], positions[n_own:]])
                n_own = 1
            x = tower_pass.run(block.run, x, attend, layer, rows)
        x = self.ln_post(x)
        found = {}
        if "class" in parts:
            found["class"] = x[:, 0] @ self.proj.to(x.dtype)
        if "prompts" in parts:
            if x.shape[1] == n_own:
                raise ValueError("there are no vision prompts to read")
            found["prompts"] = x[:, n_own:].mean(dim=1)
        if "patches" in parts:
            found["patches"] = x[:, 1:n_own]
        if "attention" in parts:
            length = x.shape[1]
            missing = [length - w.shape[-1] for w in weights]
            padded = [F.pad(w, (0, n, 0, n)) for w, n in zip(weights, missing, strict=True)]
            found["attention"] = torch.stack(padded, dim=1)
        return found

    @staticmethod
    def _with_prompts(x: Tensor, prompts: Prompts, layer: int, n_own: int) -> Tensor:
        """Put prompts after the tower's own tokens, replacing those that are there."""
        own, before = x[:, :n_own], x[:, n_own:]
        n_before = before.shape[1]
        if not isinstance(prompts, Tensor):
            if n_before == 0:
                raise ValueError(f"layer {layer}: a function needs prompts in an earlier layer")
            prompts = prompts(before.float())
        if n_before not in (0, prompts.shape[-2]):
            raise ValueError(
                f"layer {layer} has {prompts.shape[-2]} vision prompts to replace the {n_before} "
                "of the earlier layers"
            )
        return torch.cat([own, prompts.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)


class Bottleneck(nn.Module):
    """Residual bottleneck whose stride is an average pool before the last convolution."""

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
        """Pool (B, width, grid, grid) to (B, output_dim)."""
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

    def forward(self, images: Tensor, layers: Layers = ()) -> Tensor:
        """Return image features (B, output_dim), not normalized; see ``read``."""
        return self.read(images, layers)["class"]

    def read(
        self,
        images: Tensor,
        layers: Layers = (),
        parts: Sequence[str] = ("class",),
        through_ln_pre: bool = True,
    ) -> dict[str, Tensor]:
        """Return ``class``: image features (B, output_dim).

        Raises:
            ValueError: a layer is to be changed, or another part is asked for; a convolutional
                tower has no tokens.
        """
        check_parts(parts)
        if set(parts) != {"class"}:
            raise ValueError(f"a ResNet has no {', '.join(set(parts) - {'class'})}; use a ViT")
        if not all(layer.is_untouched for layer in as_layers(layers, len(layers), "vision")):
            raise ValueError("a ResNet takes no vision prompts or adapters; use a ViT")
        x = self.relu1(self.bn1(self.conv1(images)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.avgpool(self.relu3(self.bn3(self.conv3(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return {"class": self.attnpool(x)}
