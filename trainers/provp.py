"""ProVP-Ref: Progressive Visual Prompt Learning with Contrastive Feature Re-formation (Xu et al.,
2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, Layer
from dassl.config import register_defaults
from dassl.config.domains import Bool, Float, Int

from .base import Batch, Features, Method, Towers
from .settings import MOST_PROMPTS, check_vit
from .trainer import register_method

ALPHA = 0.01  # share of the previous layer's output in the prompts of a layer

# Beside the method's node, as in the public code.
register_defaults(
    "OPTIM", {"USE_REF": Bool(False, help="with the re-formation loss")}, trainer="ProVP"
)
register_defaults(
    "LOSS",
    {"LAMBDA": Float(1.0, min=0, help="weight of the re-formation loss of OPTIM.USE_REF")},
    trainer="ProVP",
)


class PromptLearner(nn.Module):
    """Vision prompts of all layers (L, m, d_v), under the name of the public code.

    Args:
        n_layers: L.
        n_prompts: m.
        width: d_v.
        grid: patches on a side of an image.
    """

    def __init__(self, n_layers: int, n_prompts: int, width: int, grid: int):
        super().__init__()
        bound = math.sqrt(6 / (3 * grid**2 + width))
        start = torch.empty(n_layers, n_prompts, width).uniform_(-bound, bound)
        self.prompt_embeddings = nn.Parameter(start)

    def forward(self) -> list[Layer | Tensor]:
        """Return the progressive connection: p_1, then alpha * o_{i-1} + (1 - alpha) * p_i."""

        def connected(own: Tensor, previous: Tensor) -> Tensor:
            return ALPHA * previous + (1 - ALPHA) * own

        first, *deeper = self.prompt_embeddings
        return [first, *(Layer(prompts=partial(connected, own)) for own in deeper)]


@register_method("COOP", N_CTX=Int(16, min=1, max=MOST_PROMPTS, help="prompts of a vision layer"))
class ProVP(Method):
    """Vision prompts of all layers, each joined with what the layer before made of its prompts.

    The text tower is frozen.  With ``OPTIM.USE_REF`` (ProVP-Ref) the image features of a batch are
    told apart by those of the frozen tower: image i is to be nearest to its own frozen feature.

    What differs from the public code, and why:

    - Its prompts stand behind the class token, here behind the patches.  They have no positional
      embedding, so the order of tokens changes nothing.
    - With at most four prompts it inserts none, and the later layers overwrite the first patches
      instead; here every number of prompts is inserted.
    - Its start has the constant 14 in the place of VPT's patch size, which is the number of patches
      on a side of ViT-B/16; here that number is the model's.
    - It has a table of templates of its own; here it is the dataset's first template.
    - ``LOSS.LAMBDA`` is passed to it and not used; here it is the weight, 1 by default as there.
    - Its re-formation cannot run with autocast; here it can.
    """

    checkpoint_name = "Prompt_learner"
    checkpoint_scope = "prompt_learner"
    prompts_through_ln_pre = False

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        check_vit(clip_model)

    @classmethod
    def needs_whole_batch(cls, cfg: Any) -> bool:
        return bool(cfg.OPTIM.USE_REF)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        config, n_layers = self.clip.config, check_vit(self.clip)
        assert config.vision_patch_size is not None
        grid = config.image_resolution // config.vision_patch_size
        self.prompt_learner = PromptLearner(
            n_layers, self.settings.N_CTX, config.vision_width, grid
        )
        self.reforms, self.weight = cfg.OPTIM.USE_REF, cfg.LOSS.LAMBDA

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        self.frozen_text = self.encode_text(()).detach()

    def layers(self, condition: Tensor | None = None) -> Towers:
        return Towers(vision=self.prompt_learner())

    def class_features(self, towers: Towers) -> Features:
        return {"text": self.frozen_text}

    def image_features(self, batch: Batch, towers: Towers) -> Features:
        """Add ``frozen_image``, plain CLIP's features of the same view, in training."""
        features = super().image_features(batch, towers)
        if self.training and self.reforms:
            with torch.no_grad():
                features["frozen_image"] = self.encode_image(self.views(batch)[0])
        return features

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return cross-entropy and the re-formation, a cross-entropy over the images of the batch.

        Its logits are cosines of prompted and frozen features (B, B), without a temperature.
        """
        terms = super().losses(features, logits, labels)
        if self.reforms:
            cosines = features["image"] @ features["frozen_image"].t()
            own = torch.arange(len(cosines), device=cosines.device)
            terms["loss_ref"] = self.weight * F.cross_entropy(cosines, own)
        return terms
