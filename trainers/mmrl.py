"""MMRL: Multi-Modal Representation Learning for Vision-Language Models (Guo and Gu, CVPR 2025)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, CLIPConfig
from dassl.config.domains import Float, Int, Layers
from dassl.utils import UserError, log

from .base import Batch, Features, Method, Towers
from .classes import trained_rows
from .context import random_prompts
from .features import pixels_of
from .settings import MOST_PROMPTS, deepest_layer
from .trainer import register_method


class RepresentationLearner(nn.Module):
    """Tokens of a shared space, and their maps into each layer of the towers.

    Names and shapes are those of the released code.
    """

    def __init__(self, settings: Any, clip_config: CLIPConfig):
        super().__init__()
        width, count = settings.REP_DIM, len(settings.REP_LAYERS)
        self.compound_rep_tokens = random_prompts(settings.N_REP_TOKENS, width)
        to_vision = nn.Linear(width, clip_config.vision_width)
        to_text = nn.Linear(width, clip_config.text_width)
        self.compound_rep_tokens_r2vproj = clones(to_vision, count)
        self.compound_rep_tokens_r2tproj = clones(to_text, count)


def clones(module: nn.Module, count: int) -> nn.ModuleList:
    return nn.ModuleList(copy.deepcopy(module) for _ in range(count))


class SecondProjection(nn.Module):
    """Projects what the tower makes of the tokens, as ``proj`` does the class token."""

    def __init__(self, clip_config: CLIPConfig):
        super().__init__()
        shape = clip_config.vision_width, clip_config.embed_dim
        self.proj_rep = random_prompts(*shape, std=clip_config.vision_width**-0.5)


@register_method(
    "MMRL",
    ALPHA=Float(0.7, min=0, max=1, help="share of the class token in losses and predictions"),
    REG_WEIGHT=Float(1.0, min=0, help="weight of the distances to the frozen features"),
    N_REP_TOKENS=Int(5, min=1, max=MOST_PROMPTS, help="representation tokens of a layer"),
    REP_LAYERS=Layers((6, 7, 8, 9, 10, 11, 12), help="layers with tokens, from 2 on"),
    REP_DIM=Int(512, min=1, max=10000, help="width of the shared space"),
    PREC="amp",
)
class MMRL(Method):
    """Tokens in the upper layers of both towers, and a second read-out of the image tower.

    The tokens of a shared space are mapped into each of ``REP_LAYERS`` of each tower. An image has
    two features: f_c of the class token, and f_r, the mean of the tokens behind ``proj_rep``.
    The loss is a CE(f_c) + (1 - a) CE(f_r) + R (1 - cos(f_c, frozen)) + R (1 - cos(t, frozen)) for
    text features t in the dataset's first template, a = ALPHA and R = REG_WEIGHT.

    A class that was trained has the logit a s f_c . t + (1 - a) s f_r . t, and any other s f_c . t
    alone, with CLIP's logit scale s. Which ones were trained, their names say.

    Left open or odd in the released code, and what is done here:

    - ``TASK`` and the dataset's name decide there what is new; so all classes of ImageNet's
      versions are, which here are those that were trained.
    - s is 100 there, which is the scale of OpenAI's models.
    - Its checkpoints do not name their classes; all count as trained, which is logged.
    - Its settings for a dataset override the command line; here they are config files.
    """

    checkpoint_name = "MultiModalRepresentationLearner"
    prompts_through_ln_pre = False

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        key, layers = "TRAINER.MMRL.REP_LAYERS", settings.REP_LAYERS
        Layers(max=deepest_layer(clip_model)).check(key, layers)
        if layers[0] == 1:
            raise UserError(f"{key}: expected layers from 2 on, got {list(layers)}")

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.representation_learner = RepresentationLearner(self.settings, self.clip.config)
        self.image_encoder = SecondProjection(self.clip.config)

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        trained = trained_rows(class_names, self.trained_names)[:, 0]
        share = torch.zeros(len(class_names)).index_fill(0, trained, 1 - self.settings.ALPHA)
        self.second_share = share.to(self.device)  # of f_r in the logits (K,)

    def layers(self, condition: Tensor | None = None) -> Towers:
        learner, layers = self.representation_learner, self.settings.REP_LAYERS

        def tower(maps: Any) -> list[Tensor | None]:
            entries: list[Tensor | None] = [None] * layers[-1]
            for layer, to_tower in zip(layers, maps, strict=True):
                entries[layer - 1] = to_tower(learner.compound_rep_tokens)
            return entries

        return Towers(
            tower(learner.compound_rep_tokens_r2tproj), tower(learner.compound_rep_tokens_r2vproj)
        )

    def image_features(self, batch: Batch, towers: Towers) -> Features:
        """Return ``image`` and ``second``, the two features, and in training ``frozen_image``."""
        (view,) = self.views(batch)
        parts = ("class", "prompts")
        found = self.clip.read_image(
            pixels_of(view), towers.vision, parts, self.prompts_through_ln_pre
        )
        second = found["prompts"].float() @ self.image_encoder.proj_rep
        features = {
            "image": F.normalize(found["class"].float(), dim=-1),
            "second": F.normalize(second.float(), dim=-1),
        }
        if self.training:
            with torch.no_grad():
                features["frozen_image"] = self.frozen_image(view)
        return features

    def both_logits(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return the logits of the class token and those of the tokens (B, K)."""
        text = features["text"]
        return (
            self.clip.similarity(features["image"], text),
            self.clip.similarity(features["second"], text),
        )

    def logits(self, features: Features) -> Tensor:
        first, second = self.both_logits(features)
        return first + self.second_share * (second - first)

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        first, second = self.both_logits(features)
        share, weight = self.settings.ALPHA, self.settings.REG_WEIGHT
        image = (features["image"] * features["frozen_image"]).sum(dim=-1)
        text = (features["text"] * self.frozen_text).sum(dim=-1)
        return {
            "loss_ce": share * F.cross_entropy(first, labels),
            "loss_ce_second": (1 - share) * F.cross_entropy(second, labels),
            "loss_image": weight * (1 - image.mean()),
            "loss_text": weight * (1 - text.mean()),
        }

    def prepare_to_load(self, state: Mapping[str, Any], path: str) -> None:
        """Find out which classes a checkpoint was trained on."""
        if not self.trained_names:
            log.warning(f"'{path}' does not name its classes: all count as trained")
            self.trained_names = list(self.class_names)
        self.set_classes(self.class_names)

    def public_copies(self) -> set[str]:
        own = {"prompt_embeddings", "representation_learner.prompt_embeddings"}
        return self.copies_of_clip() | own
