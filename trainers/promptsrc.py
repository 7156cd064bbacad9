"""PromptSRC: Self-regulating Prompts (Khattak et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import clip
from clip import CLIP
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .base import TEXT_BATCH, Prompts, trainer_defaults
from .ivlp import IndependentCLIP, IndependentTrainer

N_TEMPLATES = 60  # the public code takes the first 60 of OpenAI's 80 ImageNet templates


class SelfRegulatedCLIP(IndependentCLIP):
    """IVLP's prompts, held near the frozen CLIP in features of both towers and in logits.

    Frozen text features are the mean over ImageNet's templates, whatever the dataset.
    """

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        self._frozen_text: Tensor | None = None

    @property
    def frozen_text(self) -> Tensor:
        """Unit features (K, d), computed when training first asks: 60 texts for each class."""
        if self._frozen_text is None:
            self._frozen_text = self.ensemble_features()
        return self._frozen_text

    @torch.no_grad()
    def ensemble_features(self) -> Tensor:
        """As in the public code the mean is one of features that are not normalised."""
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES as templates

        total = torch.zeros((), device=self.device)
        for template in templates[:N_TEMPLATES]:
            texts = [template(name) for name in self.class_names]
            try:
                ids = clip.tokenize(texts, self.clip.context_length).to(self.device)
            except ValueError as error:
                raise UserError(f"an ImageNet template does not fit: {error}") from error
            parts = [self.clip.encode_text(part).float() for part in ids.split(TEXT_BATCH)]
            total = total + torch.cat(parts)
        return F.normalize(total, dim=-1)

    def forward(
        self, images: Tensor, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, K); with labels also cross-entropy and the three consistency terms.

        L1 distances are means over all elements, and so is, over the B * K logits, the
        divergence KL(frozen || prompted) of the predictions.
        """
        prompts, text = self.class_features()
        image = self.image_features(images, prompts)
        scale = self.clip.logit_scale.exp().float()
        logits = scale * image @ text.t()
        if labels is None:
            return logits
        with torch.no_grad():
            frozen_image = self.image_features(images, Prompts())
            frozen_logits = scale * frozen_image @ self.frozen_text.t()
        log_prompted, log_frozen = logits.log_softmax(dim=1), frozen_logits.log_softmax(dim=1)
        divergence = F.kl_div(log_prompted, log_frozen, reduction="sum", log_target=True)
        settings = self.settings
        return logits, {
            "loss_ce": F.cross_entropy(logits, labels),
            "loss_scl_text": settings.TEXT_LOSS_WEIGHT * F.l1_loss(text, self.frozen_text),
            "loss_scl_image": settings.IMAGE_LOSS_WEIGHT * F.l1_loss(image, frozen_image),
            "loss_scl_logits": divergence / logits.numel(),
        }


def epoch_weights(n_epochs: int, mean: float, std: float) -> Tensor:
    """Gaussian weights of the epochs 1..n, which sum to 1: (n,), fp64."""
    epochs = torch.arange(1, n_epochs + 1, dtype=torch.float64)
    # A softmax of the exponents: with a mean far behind the last epoch the densities are all 0.
    return torch.softmax(-0.5 * ((epochs - mean) / std) ** 2, dim=0)


@TRAINER_REGISTRY.register()
class PromptSRC(IndependentTrainer):
    """The model of the last epoch is the Gaussian-weighted sum of those of all epochs (GPA)."""

    model_class = SelfRegulatedCLIP
    config_node = trainer_defaults(
        "PROMPTSRC",
        N_CTX_VISION=4,
        N_CTX_TEXT=4,
        CTX_INIT="a photo of a",  # used where N_CTX_TEXT <= 4
        PROMPT_DEPTH_VISION=9,  # 0: no vision prompts
        PROMPT_DEPTH_TEXT=9,
        TEXT_LOSS_WEIGHT=25.0,
        IMAGE_LOSS_WEIGHT=10.0,
        GPA_MEAN=15.0,  # epoch, counted from 1
        GPA_STD=1.0,  # epochs
    )

    def check_settings(self, settings: Any, clip_model: CLIP) -> None:
        super().check_settings(settings, clip_model)
        if settings.GPA_STD <= 0:
            raise UserError(f"TRAINER.PROMPTSRC.GPA_STD is {settings.GPA_STD}, allowed: above 0")

    def build_model(self) -> None:
        super().build_model()
        settings = self.settings
        self.gpa_weights = epoch_weights(self.max_epoch, settings.GPA_MEAN, settings.GPA_STD)
        self.aggregate = {
            name: torch.zeros_like(tensor)
            for name, tensor in self.learned_state_dict(self.checkpoint_name).items()
        }

    def after_epoch(self) -> None:
        weight = self.gpa_weights[self.epoch].item()
        for name, tensor in self.learned_state_dict(self.checkpoint_name).items():
            self.aggregate[name] += weight * tensor
            if self.epoch + 1 == self.max_epoch:
                tensor.copy_(self.aggregate[name])
        super().after_epoch()

    def extra_state(self) -> dict[str, Any]:
        return {"aggregate": self.aggregate}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        for name, tensor in state["aggregate"].items():
            self.aggregate[name].copy_(tensor)
