"""VPT: Visual Prompt Tuning (Jia et al., ECCV 2022) on CLIP, as MaPLe's authors compare with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from clip import CLIP, PromptTokens
from dassl.config.domains import Int, Words

from .base import Features, Method, Towers
from .context import chosen_words
from .ivlp import TowerPrompts
from .settings import MOST_PROMPTS, check_vit
from .trainer import register_method


@register_method(
    "VPT",
    N_CTX_VISION=Int(2, min=1, max=MOST_PROMPTS, help="prompts of a vision layer"),
    CTX_INIT=Words("a photo of a", help="words in front of the class name"),
    PROMPT_DEPTH_VISION=Int(1, min=1, help="first vision layers that have prompts"),
)
class VPT(Method):
    """Prompts in the vision tower only; the text is "<CTX_INIT> <class name>." and frozen."""

    checkpoint_name = "prompt_learner"  # the public code puts the whole model into it

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        layers, depth = check_vit(clip_model), settings.PROMPT_DEPTH_VISION
        Int(min=1, max=layers).check("TRAINER.VPT.PROMPT_DEPTH_VISION", depth)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, width = self.settings, self.clip.config.vision_width
        self.image_encoder = TowerPrompts(
            settings.PROMPT_DEPTH_VISION, settings.N_CTX_VISION, width, first_layer=True
        )

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words = chosen_words(self.settings.CTX_INIT)
        return self.prompt_tokens(class_names, words, 0, key="CTX_INIT")

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        self.frozen_text = self.encode_text(()).detach()

    def layers(self, condition: Tensor | None = None) -> Towers:
        return Towers(vision=self.image_encoder.prompts())

    def class_features(self, towers: Towers) -> Features:
        return {"text": self.frozen_text}

    def public_copies(self) -> set[str]:
        return self.copies_of_clip()
