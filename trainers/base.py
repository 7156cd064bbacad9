"""What the prompt-learning methods share.

A method is a ``PromptedCLIP`` (its prompt learner, how it turns learnable tensors into prompts
for the two towers, its logits and loss terms) and a ``PromptTrainer`` that names it.
"""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clip
from clip import CLIP, ClipError, PromptTokens
from clip.clip import OPEN_CLIP
from clip.tokens import tokenizer
from dassl.config import register_defaults
from dassl.engine import TrainerX
from dassl.engine.optimize import PRECISIONS, grad_scaler, optimizer_step, precision
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, load_pretrained_weights, log, nearest

# Tensors of public checkpoints that are made anew from CLIP and the class names.
NOT_LEARNED = re.compile(
    r"(^|\.)token_(prefix|suffix)$|^logit_scale$|(^|\.)ZS_image_encoder\."
    r"|^(image|text)_encoder\.(?!.*VPT)"
)
TEXT_BATCH = 256  # texts that one frozen forward encodes at a time
TEXT_TOKENS = 2**14  # tokens that image-conditional text takes at a time, over images and classes


class Prompts(NamedTuple):
    """Prompt tokens for each of the first layers of the two towers; see the hook in clip."""

    text: Sequence[Tensor | None] = ()
    vision: Sequence[Tensor | None] = ()


def load_clip(cfg: Any) -> CLIP:
    """The frozen backbone that ``MODEL.BACKBONE.NAME`` names, in fp32 on the CPU.

    Raises:
        UserError: an unknown backbone, unreadable weights, or an ``INPUT.SIZE`` that the model
            does not take.
    """
    model = load_frozen("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME)
    size, resolution = tuple(cfg.INPUT.SIZE), model.visual.input_resolution
    if size != (resolution, resolution):
        raise UserError(
            f"INPUT.SIZE is {size}, {cfg.MODEL.BACKBONE.NAME} takes ({resolution}, {resolution})"
        )
    return model


def load_frozen(key: str, name: str) -> CLIP:
    """The CLIP that the config's ``key`` names, frozen, in fp32 on the CPU."""
    known = clip.available_models()
    if not (name in known or name.startswith(OPEN_CLIP) or osp.exists(name)):
        raise UserError(
            f"{key}: unknown backbone '{name}'; {nearest(name, known)}, a weights file, "
            f"or {OPEN_CLIP}<model>/<tag>"
        )
    try:
        model = clip.load(name)
    except ClipError as error:
        raise UserError(f"{key}: {error}") from error
    return model.requires_grad_(False)


class PromptedCLIP(nn.Module):
    """A frozen CLIP, tokenised class names and the prompt learner of one method.

    Args:
        cfg: the whole config.
        settings: the method's own node of it.
        clip_model: frozen, in the precision and on the device of the run.
        class_names: K readable names.
        templates: the dataset's templates, "{}" standing for the class name.

    A method assigns ``prompt_learner`` and defines ``prompts`` and, where it differs from the
    plain one, ``loss_terms``.
    """

    prompt_learner: nn.Module
    text_depends_on_image = False

    def __init__(
        self,
        cfg: Any,
        settings: Any,
        clip_model: CLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
    ):
        super().__init__()
        self.settings = settings
        self.clip = clip_model
        self.templates = list(templates)
        self._fixed: tuple[Prompts, Tensor] | None = None
        self.build(cfg, class_names)
        self.to(self.device)  # what is learned stays fp32 beside a half-precision CLIP
        self.set_classes(class_names)

    # What a method defines ---------------------------------------------------------------------

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        """Create ``prompt_learner`` (fp32)."""
        raise NotImplementedError

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        """Class names with places for the method's prompts (``self.prompt_tokens`` helps)."""
        raise NotImplementedError

    def prompts(self) -> Prompts:
        """Prompt tokens made from the learnable tensors."""
        return Prompts()

    def loss_terms(
        self, logits: Tensor, labels: Tensor, image: Tensor, text: Tensor
    ) -> dict[str, Tensor]:
        """Named terms whose sum is optimised; ``image`` and ``text`` are unit features."""
        return {"loss_ce": F.cross_entropy(logits, labels)}

    # What all share ----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    def set_classes(self, class_names: Sequence[str]) -> None:
        """Use the same learned prompts for these class names from now on.

        Raises:
            UserError: a prompt with its class name is longer than the model's context.
        """
        self.class_names = [name.replace("_", " ") for name in class_names]
        self._fixed = None
        try:
            self.tokens = self.tokenize_classes(self.class_names).to(self.device)
        except ValueError as error:
            raise UserError(f"prompt and class name do not fit: {error}") from error

    def prompt_tokens(
        self, class_names: Sequence[str], context: str, n_prompts: int, position: str = "end"
    ) -> PromptTokens:
        return PromptTokens.from_names(
            class_names, context, n_prompts, position, self.clip.context_length
        )

    @torch.no_grad()
    def frozen_text_features(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Per class the renormalised mean of the unit features of its texts: (K, d), fp32."""
        flat = [text for class_texts in texts for text in class_texts]
        try:
            ids = clip.tokenize(flat, self.clip.context_length)
        except ValueError as error:
            raise UserError(f"a description or template does not fit: {error}") from error
        features = [
            F.normalize(self.clip.encode_text(chunk.to(self.device)).float(), dim=-1)
            for chunk in ids.split(TEXT_BATCH)
        ]
        groups = torch.cat(features).split([len(class_texts) for class_texts in texts])
        return F.normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=-1)

    def template_features(self, templates: Sequence[str]) -> Tensor:
        """Frozen features of the class names in these templates: (K, d)."""
        return self.frozen_text_features(
            [[template.format(name) for template in templates] for name in self.class_names]
        )

    def text_features(self, prompts: Prompts) -> Tensor:
        """Unit text features (K, d), or (B, K, d) where the prompts depend on the image; fp32."""
        return F.normalize(self.clip.encode_text(self.tokens, prompts.text).float(), dim=-1)

    # Image-conditional text: B * K texts are too many for one pass where batch or classes are
    # many.  Images, and where need be classes, are taken in groups of at most TEXT_TOKENS tokens:
    # without gradients memory does not grow with the batch, and with K by the features alone.

    @property
    def classes_per_pass(self) -> int:
        """How many of the K classes the text tower takes at a time."""
        length = self.tokens.ids.shape[1] - self.tokens.prefix
        return max(1, min(len(self.tokens.ids), (TEXT_TOKENS - self.tokens.prefix) // length))

    @property
    def images_per_pass(self) -> int:
        """How many images ``conditional_text_features`` should get at a time."""
        length = self.tokens.ids.shape[1] - self.tokens.prefix
        return max(1, TEXT_TOKENS // (self.tokens.prefix + self.classes_per_pass * length))

    def conditional_text_features(self, context: Tensor) -> Tensor:
        """Unit features (n, K, d), fp32, of all classes for each of n images' first-layer context.

        Args:
            context: (n, 1, m, d_t), of at most ``images_per_pass`` images.
        """
        size, tokens = self.classes_per_pass, self.tokens
        groups = zip(
            tokens.ids.split(size), tokens.eot.split(size), tokens.slots.split(size), strict=True
        )
        features = [
            self.clip.encode_text(replace(tokens, ids=ids, eot=eot, slots=slots), [context])
            for ids, eot, slots in groups
        ]
        return F.normalize(torch.cat(features, dim=1).float(), dim=-1)

    def image_features(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Unit image features (B, d), fp32."""
        return F.normalize(self.clip.encode_image(images, prompts.vision).float(), dim=-1)

    def class_features(self) -> tuple[Prompts, Tensor]:
        """Prompts and text features; those that were fixed, if they were."""
        if self._fixed is not None:
            return self._fixed
        prompts = self.prompts()
        return prompts, self.text_features(prompts)

    @contextmanager
    def fixed_classes(self) -> Iterator[None]:
        """For one evaluation or deployment: compute the text features once, for all batches."""
        if not self.text_depends_on_image:
            with torch.no_grad():
                self._fixed = self.class_features()
        try:
            yield
        finally:
            self._fixed = None

    def forward(
        self, images: Tensor, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, K); with labels also the named loss terms."""
        prompts, text = self.class_features()
        image = self.image_features(images, prompts)
        logits = self.clip.logit_scale.exp().float() * image @ text.t()
        if labels is None:
            return logits
        return logits, self.loss_terms(logits, labels, image, text)


class Context(NamedTuple):
    """Where a method's first-layer text prompts stand and what they start from."""

    words: str
    n_prompts: int
    init: Tensor | None  # (n_prompts, text width), or None for a random start

    def start(self, text_width: int, *leading: int) -> Tensor:
        """The words' embeddings, or normal(0, 0.02) of shape (*leading, n_prompts, text width)."""
        if self.init is not None:
            return self.init.clone()
        return random_prompts(*leading, self.n_prompts, text_width).data


def context_from_words(clip_model: CLIP, words: str, n_prompts: int) -> Context:
    """The first ``n_prompts`` tokens of ``words`` as a start; without words "X" placeholders."""
    if not words:
        return Context(" ".join(["X"] * n_prompts), n_prompts, None)
    words = words.replace("_", " ")
    ids = tokenizer().encode(words)[:n_prompts]
    weight = clip_model.token_embedding.weight
    return Context(words, n_prompts, weight[torch.tensor(ids, device=weight.device)].float())


def context_of_all_words(clip_model: CLIP, words: str, n_prompts: int) -> Context:
    """As ``context_from_words``, but words also say how many prompts there are (CoOp, CoCoOp)."""
    if words:
        n_prompts = len(tokenizer().encode(words.replace("_", " ")))
    return context_from_words(clip_model, words, n_prompts)


def context_of_few_words(clip_model: CLIP, words: str, n_prompts: int) -> Context:
    """As ``context_from_words``, but words count for at most four prompts (MaPLe and after)."""
    if words and n_prompts > 4:
        log.info(f'CTX_INIT "{words}" is ignored: {n_prompts} context tokens > 4, random context')
        words = ""
    return context_from_words(clip_model, words, n_prompts)


def random_prompts(*shape: int, std: float = 0.02) -> nn.Parameter:
    """Learnable prompt tokens, normal(0, std)."""
    return nn.Parameter(torch.randn(*shape) * std)


def check_range(key: str, value: int, low: int, high: int | None = None) -> None:
    """Raise UserError unless ``low <= value <= high``."""
    if value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"{low}..{high}"
        raise UserError(f"{key} is {value}, allowed: {allowed}")


def check_vit(clip_model: CLIP) -> int:
    """Number of vision layers; raise UserError for a ResNet, which takes no vision prompts."""
    layers = clip_model.config.vision_layers
    if not isinstance(layers, int):
        raise UserError("MODEL.BACKBONE.NAME is a ResNet, vision prompts need a ViT")
    return layers


def trainer_defaults(node: str, **defaults: Any) -> str:
    """Register a method's config node (``TRAINER.<node>``) and return the node's name."""
    register_defaults(f"TRAINER.{node}", {"PREC": "fp16", **defaults})
    return node


class PromptTrainer(TrainerX):
    """Trains and evaluates one ``PromptedCLIP``.

    A method's trainer sets the three class attributes below and nothing else.  Where settings
    leave nothing to learn, training is an evaluation.
    """

    model_class: type[PromptedCLIP]
    config_node: str  # cfg.TRAINER.<config_node>
    checkpoint_name = "VLPromptLearner"  # folder of the checkpoints, as in the public code
    checkpoint_scope = ""  # the part of the model whose tensors it holds; "" for all of it

    def check_cfg(self, cfg: Any) -> None:
        """Everything that can be found wrong before any data is touched."""
        self.settings = cfg.TRAINER[self.config_node]
        prec = self.settings.PREC
        if prec not in PRECISIONS:
            raise UserError(
                f"TRAINER.{self.config_node}.PREC is '{prec}', allowed: {', '.join(PRECISIONS)}"
            )
        self.clip_model = load_clip(cfg)
        self.check_settings(self.settings, self.clip_model)

    def check_settings(self, settings: Any, clip_model: CLIP) -> None:
        """Raise UserError for settings that this model cannot have."""

    def build_model(self) -> None:
        cfg = self.cfg
        types = precision(self.settings.PREC, self.device)
        dtype, self.autocast_dtype = types
        clip_model = self.clip_model.to(self.device)
        if dtype != torch.float32:
            clip.convert_weights(clip_model, dtype)
        dataset = self.dm.dataset
        templates = getattr(dataset, "templates", ["a photo of a {}."])
        self.model = self.model_class(cfg, self.settings, clip_model, dataset.classnames, templates)
        learned = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        scope = self.model.get_submodule(self.checkpoint_scope)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(scope, cfg.MODEL.INIT_WEIGHTS)
        self.optim = self.sched = None
        if learned:
            n_values = sum(tensor.numel() for tensor in learned.values())
            log.info(f"Learnable tensors: {len(learned)} ({n_values:,} values)")
            self.optim = build_optimizer(self.model, cfg.OPTIM, self.param_groups(learned))
            self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.checkpoint_name, scope, self.optim, self.sched)
        self.scaler = grad_scaler(types, self.device)

    def param_groups(self, learned: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
        """The optimizer's groups of the learnable tensors (under their names in the model)."""
        return [{"params": list(learned.values())}]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    def forward_backward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        images, labels = self.parse_batch_train(batch)
        with self._autocast():
            logits, terms = self.model(images, labels)
        loss = torch.stack(list(terms.values())).sum()
        assert self.optim is not None
        optimizer_step(loss, [self.optim], self.scaler)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        # tensors: reading them here would make each step wait for the device
        summary = {"loss": loss, "acc": compute_accuracy(logits.detach(), labels)[0]}
        return summary | (terms if len(terms) > 1 else {})

    def train(self) -> None:
        if not self.learned_state_dict(self.checkpoint_name):
            log.info(f"{self.cfg.TRAINER.NAME} learns nothing: evaluating")
            self.test()
        else:
            super().train()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        if not self.learned_state_dict(self.checkpoint_name):
            log.info(f"{self.cfg.TRAINER.NAME} learns nothing: no checkpoint is loaded")
        else:
            super().load_model(directory, epoch)

    def parse_batch_train(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def model_inference(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model(images)

    def test(self, split: str | None = None) -> float:
        self.set_model_mode("eval")
        with self._autocast(), self.model.fixed_classes():
            return super().test(split)

    # Checkpoints hold what was learned, never the frozen CLIP ----------------------------------

    def learned_state_dict(self, name: str) -> dict[str, Tensor]:
        """The learnable tensors under the names of the public code."""
        module = self._models[name]
        return {
            key: parameter.detach()
            for key, parameter in module.named_parameters(remove_duplicate=False)
            if parameter.requires_grad
        }

    def load_learned_state_dict(
        self, name: str, state_dict: Mapping[str, Tensor], path: str
    ) -> None:
        """Take the learnable tensors from a checkpoint of ours or of the public code.

        What public checkpoints hold besides is left aside: the frozen CLIP's tensors and the
        buffers that depend on the class names.

        Raises:
            UserError: a tensor is missing, unexpected or of another shape: the checkpoint is one
                of another method, of other settings or of another width.
        """
        learned = self.learned_state_dict(name)
        kept = {k: v for k, v in state_dict.items() if k in learned or not NOT_LEARNED.search(k)}
        super().load_learned_state_dict(name, kept, path)
