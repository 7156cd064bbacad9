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

    def ensemble(self) -> list[str]:
        """The templates over which a class's unit features are averaged."""
        return self.templates[:1]

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.prompt_learner = nn.Module()

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        return self.prompt_tokens(class_names, "", 0)

    def text_features(self, prompts: Prompts) -> Tensor:
        return self.template_features(self.ensemble())


class EnsembleCLIP(TemplateCLIP):
    """All of the dataset's templates and the seven that CLIP's authors recommend for ImageNet."""

    def ensemble(self) -> list[str]:
        from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

        return [*self.templates, *(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES)]


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    model_class = TemplateCLIP
    config_node = trainer_defaults("ZSCLIP")


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Zero-shot CLIP with an ensemble of templates."""

    model_class = EnsembleCLIP
