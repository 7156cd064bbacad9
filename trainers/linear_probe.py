"""The linear probe of CLIP (Radford et al., 2021): logistic regression on frozen image features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clip import PromptTokens
from dassl.data.data_manager import build_data_loader
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .base import PromptedCLIP, Prompts, PromptTrainer, trainer_defaults

# Inverse regularisation strengths to choose from; unit features need little regularisation.
STRENGTHS = tuple(10.0**power for power in range(-2, 6))


class ProbedCLIP(PromptedCLIP):
    """Logits are a linear function of the unit image features."""

    prompt_learner: nn.Linear

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.prompt_learner = nn.Linear(self.clip.config.embed_dim, len(class_names))

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        return self.prompt_tokens(class_names, "", 0)

    def class_features(self) -> tuple[Prompts, Tensor]:
        return Prompts(), self.prompt_learner.weight

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.prompt_learner(self.image_features(images, Prompts()))


@TRAINER_REGISTRY.register()
class LinearProbe(PromptTrainer):
    """Fits scikit-learn's logistic regression; C is the one with the best validation accuracy.

    Images are seen once and without augmentation, so there are no epochs.  The classifier knows
    the classes that it was trained on and no others.
    """

    model_class = ProbedCLIP
    checkpoint_name = "linear_probe"
    checkpoint_scope = "prompt_learner"
    config_node = trainer_defaults("LINEAR_PROBE")

    def train(self) -> None:
        self.before_train()
        if self.start_epoch < self.max_epoch:
            self.epoch = self.max_epoch - 1
            self.fit()
            self.model_epoch = self.max_epoch
            self.save_model(self.epoch, self.output_dir)
        self.after_train()

    def fit(self) -> None:
        from sklearn.linear_model import LogisticRegression

        dataset = self.dm.dataset
        train, labels = self.features(dataset.train_x)
        if len(set(labels)) < 2:
            raise UserError(f"{self.cfg.DATASET.NAME} has one class, a linear probe needs two")
        validation = self.features(dataset.val) if dataset.val else None
        best: tuple[float, Any] = (-1.0, None)
        # Without a validation split nothing can be chosen: scikit-learn's default.
        for strength in STRENGTHS if validation else (1.0,):
            classifier = LogisticRegression(C=strength, max_iter=2000).fit(train, labels)
            accuracy = classifier.score(*validation) if validation else 0.0
            print(f"C {strength:g}: validation accuracy {100 * accuracy:.1f}%")
            if accuracy > best[0]:
                best = (accuracy, classifier)
        classifier = best[1]
        weight, bias = classifier.coef_, classifier.intercept_
        if len(classifier.classes_) == 2:  # one row that speaks for the second class
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        linear = self.model.prompt_learner
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))

    @torch.no_grad()
    def features(self, items: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Unit image features (N, d) and labels (N,), in the test transform."""
        cfg = self.cfg
        loader = build_data_loader(
            cfg,
            data_source=items,
            batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=build_transform(cfg, is_train=False),
            is_train=False,
        )
        features, labels = [], []
        for batch in loader:
            images, targets = self.parse_batch_test(batch)
            with self._autocast():
                features.append(self.model.image_features(images, Prompts()).cpu())
            labels.append(targets.cpu())
        return torch.cat(features).numpy(), torch.cat(labels).numpy()
