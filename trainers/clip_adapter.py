"""CLIP-Adapter: Better Vision-Language Models with Feature Adapters (Gao et al., IJCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dassl.config.domains import Float

from .adapters import OutputAdapter
from .base import Batch, Features, Method, Towers
from .trainer import register_method


@register_method(
    "CLIPADAPTER",
    RATIO=Float(0.2, min=0, max=1, help="share of the adapter's output in the image features"),
    PREC="fp32",
)
class CLIPAdapter(Method):
    """A bottleneck behind the image tower: f <- unit(r ReLU(W_2 ReLU(W_1 f)) + (1 - r) f).

    Texts are in the dataset's first template. The released code has the ratio r = 0.2 and an inner
    width of a quarter as constants, 1024 as the width of RN50, and no config of its own: it is
    trained as CoOp is.
    """

    checkpoint_name = "clip_adapter"
    checkpoint_scope = "adapter"

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.adapter = OutputAdapter(self.clip.config.embed_dim)

    def image_features(self, batch: Batch, towers: Towers) -> Features:
        features = super().image_features(batch, towers)
        return {"image": self.adapter(features["image"], self.settings.RATIO)}
