"""KgCoOp: Visual-Language Prompt Tuning with Knowledge-guided Context Optimization (Yao et al.,
CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY

from .base import trainer_defaults
from .coop import ContextCLIP, CoOp

# Tensors that the public code saves beside the context and never reads.
UNUSED = ("bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias")


class KnowledgeGuidedCLIP(ContextCLIP):
    """CoOp's context, held near the frozen features of the dataset's own template."""

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        self._frozen_text: Tensor | None = None

    @property
    def frozen_text(self) -> Tensor:
        """Unit features (K, d) of the first template, computed when training first asks."""
        if self._frozen_text is None:
            self._frozen_text = self.template_features(self.templates[:1])
        return self._frozen_text

    def loss_terms(
        self, logits: Tensor, labels: Tensor, image: Tensor, text: Tensor
    ) -> dict[str, Tensor]:
        """Cross-entropy and W times the mean of 1 - cos(learned, frozen) over the classes.

        For unit features that is half the squared distance of the paper's equation; the weight
        of the public code, 8, belongs to this form.
        """
        distance = 1 - (text * self.frozen_text).sum(dim=-1).mean()
        return {
            "loss_ce": F.cross_entropy(logits, labels),
            "loss_kg": self.settings.W * distance,
        }


@TRAINER_REGISTRY.register()
class KgCoOp(CoOp):
    """Settings are CoOp's, and ``W`` beside them, as in the public code."""

    model_class = KnowledgeGuidedCLIP
    config_node = trainer_defaults("COOP", W=1.0)

    def load_learned_state_dict(
        self, name: str, state_dict: Mapping[str, Tensor], path: str
    ) -> None:
        kept = {key: value for key, value in state_dict.items() if key not in UNUSED}
        super().load_learned_state_dict(name, kept, path)
