"""Zero-shot CLIP (Radford et al., 2021): class names in the dataset's template, no learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip import PromptTokens
from dassl.engine import TRAINER_REGISTRY

from .base import PromptedCLIP, Prompts, PromptTrainer, trainer_defaults


class TemplateCLIP(PromptedCLIP):
    """Text features are those of the first of the dataset's templates."""

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.prompt_learner = nn.Module()

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        return self.prompt_tokens(class_names, "", 0)

    def text_features(self, prompts: Prompts) -> Tensor:
        return self.template_features(self.templates[:1])


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    model_class = TemplateCLIP
    config_node = trainer_defaults("ZSCLIP")

    def train(self) -> None:
        print("ZeroshotCLIP learns nothing: evaluating")
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        print("ZeroshotCLIP learns nothing: no checkpoint is loaded")
