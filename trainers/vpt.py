"""VPT: Visual Prompt Tuning (Jia et al., ECCV 2022) on CLIP, as MaPLe's authors compare with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip import CLIP, PromptTokens
from dassl.engine import TRAINER_REGISTRY

from .base import PromptedCLIP, Prompts, PromptTrainer, trainer_defaults
from .ivlp import TowerPrompts, check_vision_prompts


class VisionPromptedCLIP(PromptedCLIP):
    """Prompts in the vision tower only; the text is "<CTX_INIT> <class name>." and frozen."""

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, width = self.settings, self.clip.config.vision_width
        self.prompt_learner = nn.Module()
        self.image_encoder = TowerPrompts(
            settings.PROMPT_DEPTH_VISION, settings.N_CTX_VISION, width, first_layer=True
        )

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words = self.settings.CTX_INIT.replace("_", " ")
        return self.prompt_tokens(class_names, words, 0)

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        self.frozen_text = super().text_features(Prompts()).detach()

    def prompts(self) -> Prompts:
        return Prompts(vision=self.image_encoder.prompts())

    def text_features(self, prompts: Prompts) -> Tensor:
        return self.frozen_text


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    model_class = VisionPromptedCLIP
    checkpoint_name = "prompt_learner"  # that the public code puts the whole model into
    config_node = trainer_defaults(
        "VPT", N_CTX_VISION=2, CTX_INIT="a photo of a", PROMPT_DEPTH_VISION=1
    )

    def check_settings(self, settings: Any, clip_model: CLIP) -> None:
        check_vision_prompts(self.config_node, settings, clip_model, lowest_depth=1)
