"""MetaPrompt: Learning Domain Invariant Prompt for Vision-Language Models (Zhao et al., IEEE TIP
2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import CLIP, PromptTokens
from dassl.config.domains import Float, Int
from dassl.distributed import gather
from dassl.engine.optimize import Update

from .base import Batch, Features, Method, Towers
from .context import ContextLearner, context_from_words, random_prompts
from .descriptions import of_imagenet
from .settings import MOST_PROMPTS, deepest_layer
from .trainer import register_method


class Half(NamedTuple):
    """Some of the classes, and what a batch has of them."""

    classes: Tensor  # (h,) indices, on the CPU
    images: Tensor  # (b, d) unit features of the frozen tower
    labels: Tensor  # (b,) places among ``classes``


@register_method(
    "META",
    N_CTX=Int(2, min=1, max=MOST_PROMPTS, help="prompts of a text layer"),
    N_PRO=Int(2, min=1, max=MOST_PROMPTS, help="prompts of a vision layer"),
    LAYERS=Int(12, min=1, help="first layers of both towers that have prompts"),
    META_STEP=Float(0.2, above=0, help="factor of the learning rate in the meta step"),
)
class MetaPrompt(Method):
    """Prompts in both towers, each beside the other tower's frozen features, and a meta step.

    Text and vision prompts are independent: ``prompt_learner.ctx`` (LAYERS, N_CTX, d_t) and
    ``vision_prompt_learner.ctx`` (LAYERS, N_PRO, d_v), normal(0, 0.02). The logits are the mean of
    those of prompted images with frozen texts and those of frozen images with prompted texts; each
    of the three has a cross-entropy. Frozen texts are in the dataset's template without its period;
    for ImageNet and its versions, the mean over eight templates.

    A training step is one ordinary step, then the meta step of the public ``Meta_B2N``: the
    classes fall at random into two halves; for each half, the text prompts take a step on its
    images and classes, and the gradient is taken there on the other half's (of first order). From
    where the ordinary step left them the text prompts then move by -lr * META_STEP * the sum of
    both gradients. The inner step is the optimizer's: with its momentum, which keeps the inner
    gradients, weight decay and current rate. Nothing happens where a half has no image in the
    batch; a half of fewer than two classes gives no gradient.

    What is in the public code and not here: after the second half its text prompts stay where the
    inner step put them (the copy that is to restore them shares their memory by then); with
    PyTorch before 2.0 the vision prompts drift during inner steps by momentum and weight decay; in
    frozen texts class names keep their underscores, and Food-101's template has an article more.
    ``Meta_DG``, which splits by domain, needs several training domains, which no dataset here has.
    """

    checkpoint_name = "model"

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        Int(min=1, max=deepest_layer(clip_model)).check("TRAINER.META.LAYERS", settings.LAYERS)

    @classmethod
    def needs_whole_batch(cls, cfg: Any) -> bool:
        return False  # the ordinary step is in parts, and the meta step has no gradients of images

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings, config = self.settings, self.clip.config
        self.context = context_from_words(self.clip, "", settings.N_CTX)
        self.prompt_learner = ContextLearner(self.context.start(config.text_width, settings.LAYERS))
        self.vision_prompt_learner = ContextLearner(
            random_prompts(settings.LAYERS, settings.N_PRO, config.vision_width).data
        )
        templates = [self.templates[0], *of_imagenet(cfg.DATASET.NAME)]
        self.frozen_templates = [template.removesuffix(".") for template in templates]

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words, n_prompts, _ = self.context
        return self.prompt_tokens(class_names, words, n_prompts, key="N_CTX")

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        self.frozen_text = self.template_features(self.frozen_templates)

    def layers(self, condition: Tensor | None = None) -> Towers:
        return Towers(list(self.prompt_learner.ctx), list(self.vision_prompt_learner.ctx))

    def class_features(self, towers: Towers) -> Features:
        return {**super().class_features(towers), "frozen_text": self.frozen_text}

    def image_features(self, batch: Batch, towers: Towers) -> Features:
        frozen = self.encode_image(self.views(batch)[0])
        return {**super().image_features(batch, towers), "frozen_image": frozen}

    def both_logits(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return the logits of prompted images and those of prompted texts."""
        similarity = self.clip.similarity
        return (
            similarity(features["image"], features["frozen_text"]),
            similarity(features["frozen_image"], features["text"]),
        )

    def logits(self, features: Features) -> Tensor:
        return torch.stack(self.both_logits(features)).mean(dim=0)

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        of_image, of_text = self.both_logits(features)
        return {
            **super().losses(features, logits, labels),
            "loss_image": F.cross_entropy(of_image, labels),
            "loss_text": F.cross_entropy(of_text, labels),
        }

    # The meta step -----------------------------------------------------------------------------

    def step(
        self, batch: Batch, labels: Tensor, update: Update
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, terms = super().step(batch, labels, update)
        with torch.no_grad(), self.autocast():
            images = gather(self.encode_image(self.views(batch)[0]))
        first, second = self.halves(images, labels)
        ctx = self.prompt_learner.ctx
        start, gradients = ctx.detach().clone(), []
        for here, there in ((second, first), (first, second)):
            if len(here.images) and len(there.images) and len(there.classes) > 1:
                update(self.loss_among(here))
                gradients += update.gradients(self.loss_among(there), [ctx])
                ctx.data.copy_(start)
        for gradient in gradients:
            ctx.data -= update.lr * self.settings.META_STEP * gradient
        return logits, terms

    def halves(self, images: Tensor, labels: Tensor) -> tuple[Half, Half]:
        """Split the classes at random; the first half is the larger one of an odd number."""
        order = torch.randperm(len(self.class_names))  # on the CPU, where texts are chosen
        middle = (len(order) + 1) // 2
        places = order.argsort().to(labels.device)[labels]
        is_first = places < middle
        return (
            Half(order[:middle], images[is_first], places[is_first]),
            Half(order[middle:], images[~is_first], places[~is_first] - middle),
        )

    def loss_among(self, half: Half) -> Tensor:
        """Return the cross-entropy of prompted texts over the half's classes, for its images."""
        with self.autocast():
            tokens = self.tokens.of_classes(half.classes)
            text = self.encode_text(self.layers().text, tokens)
            return F.cross_entropy(self.clip.similarity(half.images, text), half.labels)

    def public_copies(self) -> set[str]:
        """Name the frozen tensors, which public checkpoints hold several times each."""
        names = {"logit_scale"}
        for name in self.clip.state_dict():
            own = name.removeprefix("visual.")
            short = own.replace("resblocks.", "")
            names |= {f"model.{name}", f"text_encoder.{short}"}
            if name.startswith("visual."):
                names |= {f"image_encoder.{short}", f"vision_prompt_learner.{own}"}
                names.add(f"vision_prompt_learner.{name}")
        return names
