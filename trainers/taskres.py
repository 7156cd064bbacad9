"""TaskRes: Task Residual for Tuning Vision-Language Models (Yu et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.config.domains import Float
from dassl.utils import UserError

from .base import Features, Method, Towers
from .classes import is_near, trained_rows
from .descriptions import of_imagenet
from .trainer import register_method

ROUNDING = 0.05  # of features of any length, which half precision makes coarse


class TaskResLearner(nn.Module):
    """Owns the residuals, under the name that published checkpoints give them."""

    def __init__(self, n_classes: int, width: int):
        super().__init__()
        self.text_feature_residuals = nn.Parameter(torch.zeros(n_classes, width))


@register_method(
    "TaskRes",
    RESIDUAL_SCALE=Float(0.5, min=0, help="alpha, what the residuals are multiplied by"),
)
class TaskRes(Method):
    """Residuals of the classes' text features: t_k <- unit(t_k + alpha x_k), x_k = 0 at first.

    t_k (d,) is the feature of the frozen text tower, of any length: in the dataset's first template
    or, for ImageNet and its versions, the mean over eight. A class that was trained has its own
    residual in any selection and order, and any other has none, as in zero-shot CLIP.

    Left open or odd in the released code, and what is done here:

    - It takes the rows of ImageNet-A's and -R's classes from a list; here names are compared.
    - Its checkpoints hold t_k, too, which here come from the backbone; those of an enhanced base,
      whose text projection was tuned before, are refused.
    - Its checkpoints do not name their classes; those of the dataset are taken for them.
    """

    checkpoint_name = checkpoint_scope = "prompt_learner"
    rows_by_class = True

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.own_templates = [self.templates[0], *of_imagenet(cfg.DATASET.NAME)]
        self.prompt_learner = TaskResLearner(len(class_names), self.clip.config.embed_dim)

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        sums = self.summed_text_features(self.own_templates)
        self.base = sums / len(self.own_templates)
        index = trained_rows(class_names, self.trained_names).to(self.device)
        self.trained, self.rows = index.unbind(dim=1)  # classes, and their rows

    def class_features(self, towers: Towers) -> Features:
        residuals = self.prompt_learner.text_feature_residuals[self.rows]
        added = self.settings.RESIDUAL_SCALE * residuals
        return {"text": F.normalize(self.base.index_add(0, self.trained, added), dim=-1)}

    def prepare_to_load(self, state: Mapping[str, Any], path: str) -> None:
        """Make room for the residuals of the classes that a checkpoint was trained on.

        Raises:
            UserError: it was trained on other features than this backbone has for its classes.
        """
        found = state.get("text_feature_residuals")
        if not (isinstance(found, Tensor) and found.dim() == 2):
            return  # loading says so
        names = self.class_names
        self.trained_names = self.trained_names or list(names)
        learner = self.prompt_learner
        if len(found) == len(self.trained_names) != len(learner.text_feature_residuals):
            zeros = learner.text_feature_residuals.new_zeros(len(found), found.shape[1])
            learner.text_feature_residuals = nn.Parameter(zeros)
        if "base_text_features" in state:
            self.set_classes(self.trained_names)
            base = state["base_text_features"]
            if not is_near(base, self.base, ROUNDING * float(self.base.norm(dim=-1).mean())):
                raise UserError(
                    f"checkpoint '{path}' does not fit: its 'base_text_features' are not those of "
                    "this backbone and the dataset's template for its classes"
                )
        self.set_classes(names)

    def public_copies(self) -> set[str]:
        return {"base_text_features"}
