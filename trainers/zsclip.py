"""Zero-shot CLIP (Radford et al., 2021): class names in the dataset's template, no learning."""

from __future__ import annotations

from .base import Features, Method, Towers
from .trainer import register_method


@register_method("ZSCLIP")
class ZeroshotCLIP(Method):
    """Text features are those of the first of the dataset's templates."""

    def ensemble(self) -> list[str]:
        """Return the templates over which a class's unit features are averaged."""
        return self.templates[:1]

    def class_features(self, towers: Towers) -> Features:
        return {"text": self.template_features(self.ensemble())}


@register_method("ZSCLIP")
class ZeroshotCLIP2(ZeroshotCLIP):
    """All of the dataset's templates and the seven that CLIP's authors recommend for ImageNet."""

    def ensemble(self) -> list[str]:
        from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

        return [*self.templates, *(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES)]
