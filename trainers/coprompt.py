"""CoPrompt: Consistency-guided Prompt Learning (Roy and Etemad, ICLR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.config import register_defaults
from dassl.config.domains import Choice, Float, Int, Text, Words

from .adapters import OutputAdapter
from .base import Batch, Features, Towers
from .descriptions import DESCRIPTIONS, cut_to_context
from .maple import MaPLe
from .settings import MOST_PROMPTS
from .trainer import register_method

IMAGE_SHARE, TEXT_SHARE = 0.1, 0.2  # of the adapters' output in the features

# Beside the method's node, as in the public code.
register_defaults(
    "TRAINER",
    {
        "W": Float(8.0, min=0, help="weight of the distances to the frozen features"),
        "DISTILL": Choice("cosine", "cosine", "mse", help="distance of features"),
    },
    trainer="CoPrompt",
)


@register_method(
    "CoPrompt",
    N_CTX=Int(2, min=1, max=MOST_PROMPTS, help="prompts of a layer, in each tower"),
    CTX_INIT=Words("a photo of a", help="words that the prompts start from where N_CTX <= 4"),
    PROMPT_DEPTH=Int(9, min=1, help="first layers that have prompts"),
    DESCRIPTIONS=Text(DESCRIPTIONS, help="JSON file {class name: [sentences]}"),
)
class CoPrompt(MaPLe):
    """MaPLe's prompts and an adapter behind each tower, held near the frozen CLIP.

    The prompted towers see the first of two views of each image, the frozen one the second, and
    the frozen text of a step is one sentence about each class, the same in all classes' lists.

    Left open by the public code, and decided here:

    - It takes as many sentences for every class; here shorter lists are read in turn.
    - Sentences that are too long are cut, as those of HiCroPL.
    - Any other ``TRAINER.DISTILL`` means mse there; here only that word does.
    - Its settings for a dataset override the command line; here they are config files.
    - It reads the sentences of the test classes, too, and does not use them.
    - It has no settings for transfer between datasets; ImageNet's are taken.
    """

    n_views = 2
    layers_suffice = False  # the adapters are learned, too

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        super().build(cfg, class_names)
        width = self.clip.config.embed_dim
        self.adapter_image = OutputAdapter(width)
        self.adapter_text = OutputAdapter(width)
        self.weight, self.criterion = cfg.TRAINER.W, cfg.TRAINER.DISTILL
        self.description_file = self.settings.DESCRIPTIONS.replace("{dataset}", cfg.DATASET.NAME)

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        self._sentence_features: Tensor | None = None

    @property
    def sentence_features(self) -> Tensor:
        """Unit features of each class's sentences (n, K, d), computed when training first asks."""
        if self._sentence_features is None:
            texts = self.sentences(
                self.description_file,
                key=f"TRAINER.{self.config_node}.DESCRIPTIONS",
                other="name another file",
            )
            texts = cut_to_context(texts, self.clip.context_length)
            sentences = [
                self.frozen_text_features([[own[i % len(own)]] for own in texts])
                for i in range(max(map(len, texts)))
            ]
            self._sentence_features = torch.stack(sentences)
        return self._sentence_features

    def class_features(self, towers: Towers) -> Features:
        return {"text": self.adapter_text(self.encode_text(towers.text), TEXT_SHARE)}

    def image_features(self, batch: Batch, towers: Towers) -> Features:
        """Add ``frozen_image``, plain CLIP's features of the second view, in training."""
        views = self.views(batch)
        prompted = self.encode_image(views[0], towers.vision)
        features = {"image": self.adapter_image(prompted, IMAGE_SHARE)}
        if self.training:
            with torch.no_grad():
                features["frozen_image"] = self.encode_image(views[1])
        return features

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return cross-entropy and W times the distances of text and image.

        The sentence is drawn by torch's generator, whose state an interrupted run takes up.
        """
        sentences = self.sentence_features
        frozen_text = sentences[torch.randint(len(sentences), ())]
        return {
            **super().losses(features, logits, labels),
            "loss_cons_text": self.weight * self.distance(features["text"], frozen_text),
            "loss_cons_image": self.weight
            * self.distance(features["image"], features["frozen_image"]),
        }

    def distance(self, features: Tensor, anchor: Tensor) -> Tensor:
        """Return the mean distance of unit features (N, d) by TRAINER.DISTILL."""
        if self.criterion == "cosine":
            return 1 - (features * anchor).sum(dim=-1).mean()
        return F.mse_loss(features, anchor)

    def public_copies(self) -> set[str]:
        """Name the frozen CLIP of the distances, too, which the public code saves."""
        teacher = {f"model_distill.{name}" for name in self.clip.state_dict()}
        return super().public_copies() | teacher
