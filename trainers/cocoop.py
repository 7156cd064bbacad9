"""CoCoOp: Conditional Prompt Learning for Vision-Language Models (Zhou et al., CVPR 2022)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, PromptTokens
from dassl.engine import TRAINER_REGISTRY

from .base import (
    PromptedCLIP,
    Prompts,
    PromptTrainer,
    check_range,
    context_of_all_words,
    trainer_defaults,
)

REDUCTION = 16  # of the meta-net's hidden layer


class ConditionalContextLearner(nn.Module):
    """Context tokens, all shifted by what the meta-net makes of the image."""

    def __init__(self, ctx: Tensor, image_width: int):
        super().__init__()
        hidden = image_width // REDUCTION
        self.ctx = nn.Parameter(ctx)
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(image_width, hidden),
                relu=nn.ReLU(),
                linear2=nn.Linear(hidden, ctx.shape[-1]),
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """Unit image features (B, d) -> context of each image (B, 1, m, d_t) for the hook."""
        return self.ctx + self.meta_net(image)[:, None, None]


class ConditionalCLIP(PromptedCLIP):
    """Every image is compared with text features of its own.

    ``CTX_INIT`` gives the words to start from and then also their number; otherwise ``N_CTX``
    tokens start from normal(0, 0.02).
    """

    prompt_learner: ConditionalContextLearner
    text_depends_on_image = True

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings = self.settings
        self.context = context_of_all_words(self.clip, settings.CTX_INIT, settings.N_CTX)
        ctx = self.context.start(self.clip.config.text_width)
        self.prompt_learner = ConditionalContextLearner(ctx, self.clip.config.embed_dim)

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        return self.prompt_tokens(class_names, self.context.words, self.context.n_prompts)

    def forward(
        self, images: Tensor, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, K); with labels also the cross-entropy."""
        image = self.image_features(images, Prompts())
        similarities = self.similarities(image, self.prompt_learner(image))
        logits = self.clip.logit_scale.exp().float() * similarities
        if labels is None:
            return logits
        return logits, {"loss_ce": F.cross_entropy(logits, labels)}

    def similarities(self, image: Tensor, context: Tensor) -> Tensor:
        """Cosines (B, K) of unit image features (B, d) with the texts of their own context."""
        size = self.images_per_pass
        rows = [
            (self.conditional_text_features(shifted) @ features[:, :, None]).squeeze(-1)
            for features, shifted in zip(image.split(size), context.split(size), strict=True)
        ]
        return torch.cat(rows)


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    model_class = ConditionalCLIP
    checkpoint_name = checkpoint_scope = "prompt_learner"
    config_node = trainer_defaults("COCOOP", N_CTX=16, CTX_INIT="")

    def check_settings(self, settings: Any, clip_model: CLIP) -> None:
        if not settings.CTX_INIT:
            check_range("TRAINER.COCOOP.N_CTX", settings.N_CTX, 1)
