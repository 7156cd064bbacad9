"""What a method is: features, logits, losses.

A method is one class: it owns what is learned, says what happens to the layers of the two towers,
and where it differs from the plain computation, how features, logits and losses come from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

import clip
from clip import CLIP, Layer, PromptTokens
from clip.layer import Layers
from clip.tokens import tokenizer
from dassl.distributed import gather
from dassl.engine.optimize import Update
from dassl.optim import build_lr_scheduler
from dassl.utils import UserError

from .descriptions import chosen_sentences, descriptions_of
from .features import (
    Images,
    View,
    is_untouched,
    parts_of,
    pixels_of,
    unit_features,
    views_in,
)

TEXT_BATCH = 256  # texts that one frozen forward pass encodes at a time
TEXT_TOKENS = 2**14  # tokens that text in variants takes at a time, over variants and classes
N_TEMPLATES = 60  # PromptSRC's public code takes the first 60 of OpenAI's 80 ImageNet templates

Batch = View | Sequence[View]  # images (B, 3, R, R), or several views of them
Features = dict[str, Tensor]


class Towers(NamedTuple):
    """What is done to each of the first layers of the two towers; see ``clip.Layer``."""

    text: Layers = ()
    vision: Layers = ()


class Method(nn.Module):
    """A frozen CLIP, tokenized class names, and what one method learns around them.

    Args:
        cfg: the whole config.
        clip_model: frozen, in the precision and on the device of the run.
        class_names: K readable names.
        templates: the dataset's templates, with "{}" for the class name.
        descriptions: sentences by class name, for methods that compare with some; None leaves
            these to the method's own file.

    Attributes:
        config_node: its settings are ``cfg.TRAINER.<config_node>``; set by ``register_method``.
        checkpoint_name: folder of the checkpoints, as in the public code.
        checkpoint_scope: the submodule whose tensors they hold; "" for the whole method.
        conditional: text prompts depend on the image: ``layers`` gets unit image features of the
            frozen tower (B, d), and class features are (B, K, d).
        rows_by_class: what is learned has a row for each class of training, which is found again
            by the class's name; ``trained_names`` says whose rows they are.
        trained_names: names of the classes of training, [] where a checkpoint does not say; set
            before ``prepare_to_load``.
        fixable: class features may be kept for all batches of an evaluation.
        layers_suffice: ``layers`` gives prompts as tensors that do not depend on the classes, and
            nothing else reads what is learned: a deployment holds the prompts in its place.
        finished: those of a deployment, instead of what ``layers`` gives.
        given: ``descriptions``.
        described: the sentences that were used, by class name.
        kept: layers and class features that are computed no more, or None.
        n_views: views of each image that a training batch holds (DATALOADER.K_TRANSFORMS).
        prompts_through_ln_pre: vision prompts of the first layer pass ``ln_pre``, as patches do.
        public_files: names of the files that the public code saves instead of a Dassl checkpoint;
            "{shots}" stands for DATASET.NUM_SHOTS.
        fit: what replaces the epochs where there are none: ``fit(train, val)`` gets loaders of the
            training images and of the validation images (or None), both in the test transform.
        fits_augmented: the training images of ``fit`` are augmented, anew in each pass over them.
        wraps: names of other methods whose config keys it reads, too.
    """

    config_node: str
    checkpoint_name = "VLPromptLearner"
    checkpoint_scope = ""
    conditional = False
    rows_by_class = False
    fixable = True
    layers_suffice = False
    n_views = 1
    prompts_through_ln_pre = True
    public_files: tuple[str, ...] = ()
    fit: Callable[..., None] | None = None
    fits_augmented = False
    wraps: tuple[str, ...] = ()

    def __init__(
        self,
        cfg: Any,
        clip_model: CLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        descriptions: Mapping[str, Sequence[str]] | None = None,
    ):
        super().__init__()
        self.settings = cfg.TRAINER[self.config_node]
        self.clip = clip_model
        self.templates = list(templates)
        self.autocast_dtype: torch.dtype | None = None
        self.trained_names = list(class_names)
        self.given = descriptions
        self.described: dict[str, list[str]] = {}
        self.finished: Towers | None = None
        self.kept: tuple[Towers, Features] | None = None
        self.build(cfg, class_names)
        self.to(self.device)  # what is learned stays fp32 next to a half-precision CLIP
        self.set_classes(class_names)

    # What a method defines ---------------------------------------------------------------------

    @classmethod
    def of_config(cls, config: Any) -> type[Method]:
        """Return the class that serves a config, of which a wrapper's base may depend on it."""
        return cls

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        """Raise UserError for settings that this model cannot have."""

    @classmethod
    def bound_to_classes(cls, settings: Any) -> bool:
        """Return whether what is learned serves only the classes of training."""
        return False

    @classmethod
    def needs_whole_batch(cls, cfg: Any) -> bool:
        """Return whether a training step cannot compute its batch in parts (OPTIM.ACCUMULATE).

        That is so where a loss is no mean over the images, and for a ``step`` of its own, unless
        this says that it leaves the batch to ``Method.step``.
        """
        return cls.step is not Method.step

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        """Create what is learned (fp32)."""

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens | Sequence[PromptTokens]:
        """Tokenize class names with places for prompts (``self.prompt_tokens`` helps).

        Without prompts: the dataset's first template.
        """
        return self.plain_tokens(self.templates[0].format(name) for name in class_names)

    def layers(self, condition: Tensor | None = None) -> Towers:
        """Make what is done to the layers from the learned tensors."""
        return Towers()

    def class_features(self, towers: Towers) -> Features:
        """Return ``text``, unit features (K, d) of the classes, and what else losses need.

        What depends only on the classes belongs here: it is computed once per evaluation.
        """
        return {"text": self.encode_text(towers.text)}

    def image_features(self, batch: Batch, towers: Towers) -> Features:
        """Return ``image``, unit features (B, d), and what else losses need."""
        return {"image": self.encode_image(self.views(batch)[0], towers.vision)}

    def features(self, batch: Batch) -> Features:
        """Compose class and image features, those of the images of all processes in training."""
        if self.conditional:
            own = self.image_features(batch, Towers())
            own |= self.class_features(self.layers(own["image"]))
            return {name: gather(rows) for name, rows in own.items()}
        towers, classes = self.fixed_or_new()
        own = self.image_features(batch, towers)
        return {**classes, **{name: gather(rows) for name, rows in own.items()}}

    def logits(self, features: Features) -> Tensor:
        """Return logits (B, K), by default scaled cosines of ``image`` and ``text``."""
        return self.clip.similarity(features["image"], features["text"])

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return named terms, whose sum is minimized: by default the cross-entropy."""
        return {"loss_ce": F.cross_entropy(logits, labels)}

    def step(
        self, batch: Batch, labels: Tensor, update: Update
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one training step and return logits and loss terms.

        Args:
            batch: images; in several processes this one's share of them.
            labels: of all images (B,).
            update: ``update(loss)`` is one optimizer step; it also knows the learning rate and
                takes gradients without a step.
        """
        if update.parts > 1:
            return self.step_in_parts(batch, labels, update)
        logits, terms = self(batch, labels)
        update(torch.stack(list(terms.values())).sum())
        return logits, terms

    def step_in_parts(
        self, batch: Batch, labels: Tensor, update: Update
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take the step of ``step`` with ``update.parts`` parts of the batch in turn.

        Each counts by its share of the images, so that the gradient is that of the batch. What is
        random is drawn for each part.
        """
        n_parts = min(update.parts, len(labels))
        logits: list[Tensor] = []
        terms: list[dict[str, Tensor]] = []

        def losses() -> Iterator[Tensor]:
            views = zip(*(parts_of(view, n_parts) for view in self.views(batch)), strict=True)
            for images, own in zip(views, labels.tensor_split(n_parts), strict=True):
                part, found = self(images[0] if isinstance(batch, View) else images, own)
                share = len(own) / len(labels)
                logits.append(part.detach())
                terms.append({name: share * term.detach() for name, term in found.items()})
                yield share * torch.stack(list(found.values())).sum()

        update.on_sum(losses())
        sums = {name: torch.stack([each[name] for each in terms]).sum() for name in terms[0]}
        return torch.cat(logits), sums

    def param_groups(self, optim_cfg: Any) -> list[dict[str, Any]]:
        """Return the optimizer's groups of the learned tensors."""
        return [{"params": list(self.learned().values())}]

    def iterations(self, cfg: Any, n_images: int) -> int | None:
        """Return how many iterations training takes; None where OPTIM.MAX_EPOCH says so."""
        return None

    def build_schedule(
        self, optimizer: torch.optim.Optimizer, optim_cfg: Any, n_steps: int
    ) -> LRScheduler:
        """Build the schedule.

        Args:
            optimizer: of what is learned.
            optim_cfg: ``cfg.OPTIM``.
            n_steps: how often it is stepped: MAX_EPOCH, or ``iterations`` where these are counted.
        """
        return build_lr_scheduler(optimizer, optim_cfg)

    def after_epoch(self, epoch: int, n_epochs: int) -> None:
        """Act at the end of an epoch, counted from 0, before anything is saved; a hook."""

    def extra_state(self) -> dict[str, Any]:
        """Return what else an interrupted training needs: tensors and plain values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what ``extra_state`` gave."""

    def prepare_to_load(self, state: Mapping[str, Any], path: str) -> None:
        """Prepare for the tensors of a checkpoint, before these are checked and loaded; a hook."""

    def public_copies(self) -> set[str]:
        """Name the tensors of public checkpoints that are rebuilt from CLIP and class names."""
        return set()

    def read_public_files(self, *contents: Any) -> dict[str, Tensor]:
        """Turn what each of ``public_files`` holds into the tensors of a checkpoint."""
        raise NotImplementedError

    # What all methods share --------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    def autocast(self) -> torch.autocast:
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def forward(
        self, batch: Batch, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, K); with labels also the named loss terms."""
        with self.autocast():
            features = self.features(batch)
            logits = self.logits(features)
            if labels is None:
                return logits
            return logits, self.losses(features, logits, labels)

    def train(self, mode: bool = True) -> Method:
        """Set the mode of what is learned; a frozen CLIP, whose statistics are data, stays put."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, CLIP):
                module.eval()
        return self

    def views(self, batch: Batch) -> Sequence[View]:
        """Return what ``encode_image`` takes; ``pixels_of`` a view is its tensor (B, 3, R, R)."""
        return [batch] if isinstance(batch, View) else batch

    def learned(self) -> dict[str, nn.Parameter]:
        """Return the tensors that training changes."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def saved(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds: learned tensors and buffers, nothing of a frozen CLIP."""
        scope = self.get_submodule(self.checkpoint_scope)
        frozen = tuple(
            f"{name}." for name, module in scope.named_modules() if isinstance(module, CLIP)
        )
        learned = {
            name: parameter.detach()
            for name, parameter in scope.named_parameters(remove_duplicate=False)
            if parameter.requires_grad
        }
        kept = scope.state_dict()
        buffers = {
            name: buffer
            for name, buffer in scope.named_buffers()
            if name in kept and not name.startswith(frozen)
        }
        return {**learned, **buffers}

    def copies_of_clip(self) -> set[str]:
        """Name the frozen tensors in the public code's checkpoints of the whole model."""
        names = {"logit_scale"}
        for name in self.clip.state_dict():
            is_visual = name.startswith("visual.")
            tower = "image_encoder" if is_visual else "text_encoder"
            names.add(f"{tower}.{name.removeprefix('visual.')}")
        return names

    def copies_of_teacher(self) -> set[str]:
        """Name the second vision tower in the public checkpoints of PromptSRC and HiCroPL."""
        return {f"prompt_learner.ZS_image_encoder.{name}" for name in self.clip.visual.state_dict()}

    def set_classes(self, class_names: Sequence[str]) -> None:
        """Use what was learned for these class names from now on.

        Raises:
            UserError: a prompt with its class name is longer than the model's context.
        """
        self.class_names = [name.replace("_", " ") for name in class_names]
        self.kept = None
        self.__dict__.pop("frozen_text", None)  # that of other classes
        try:
            tokens = self.tokenize_classes(self.class_names)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                "a prompt, or a template (of an ImageFolder: templates.txt), does not fit with its "
                f"class name: {error}"
            ) from error
        self.tokens: Any = (
            tokens.to(self.device)
            if isinstance(tokens, PromptTokens)
            else [each.to(self.device) for each in tokens]
        )

    def sentences(self, path: str, key: str, other: str) -> list[list[str]]:
        """Choose the sentences of each class: those given, or else those of a file.

        Args:
            path, key, other: as for ``descriptions_of``.

        Raises:
            UserError: as there.
        """
        if self.given is None:
            chosen = descriptions_of(path, self.class_names, key, other)
        else:
            other = "give it {class name: [sentences]} of them"
            chosen = chosen_sentences(self.given, self.class_names, "descriptions", other)
        self.described.update(zip(self.class_names, chosen, strict=True))
        return chosen

    def prompt_tokens(
        self,
        class_names: Sequence[str],
        context: str,
        n_prompts: int,
        position: str = "end",
        key: str = "",
        tail: str = ".",
    ) -> PromptTokens:
        """Tokenize "<context> <class name><tail>", whose first context tokens are prompts.

        Raises:
            ValueError: that is longer than the model's context; a ``UserError`` where ``key`` names
                the setting that says how long the prompts are.
        """
        length = self.clip.context_length
        try:
            return PromptTokens.from_names(class_names, context, n_prompts, position, length, tail)
        except ValueError as error:
            encode = tokenizer().encode
            longest = max(class_names, key=lambda name: len(encode(name)))
            got = 2 + len(encode(f"{context} {longest}{tail}"))
            if not key or got <= length:
                raise
            raise UserError(
                f"TRAINER.{self.config_node}.{key}: expected a context that leaves room for "
                f"'{longest}', got {got} tokens with it, but the model takes {length}"
            ) from error

    def plain_tokens(self, texts: Any) -> PromptTokens:
        """Tokenize texts without prompts."""
        return PromptTokens.plain(clip.tokenize(list(texts), self.clip.context_length))

    @torch.no_grad()
    def unit_text_features(self, texts: Sequence[str]) -> Tensor:
        """Return the unit features of texts without prompts: (N, d), fp32."""
        try:
            ids = clip.tokenize(list(texts), self.clip.context_length)
        except ValueError as error:
            raise UserError(
                "a description, or a template (of an ImageFolder: templates.txt), does not fit: "
                f"{error}"
            ) from error
        features = [
            F.normalize(self.clip.encode_text(chunk.to(self.device)).float(), dim=-1)
            for chunk in ids.split(TEXT_BATCH)
        ]
        return torch.cat(features)

    def frozen_text_features(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Return per class the renormalized mean of its texts' unit features: (K, d), fp32."""
        flat = [text for class_texts in texts for text in class_texts]
        return unit_means(self.unit_text_features(flat), list(map(len, texts)))

    def template_features(self, templates: Sequence[str]) -> Tensor:
        """Return frozen features of the class names in these templates: (K, d)."""
        return self.frozen_text_features(
            [[template.format(name) for template in templates] for name in self.class_names]
        )

    def compute_frozen_text(self) -> Tensor:
        """Return what ``frozen_text`` is; by default features of the dataset's first template."""
        return self.template_features(self.templates[:1])

    @cached_property
    def frozen_text(self) -> Tensor:
        """Unit features (K, d) of the classes by the frozen tower, computed when first asked for.

        Only training asks in most methods, so an evaluation does not compute them.
        """
        return self.compute_frozen_text()

    @torch.no_grad()
    def ensemble_features(self) -> Tensor:
        """Return unit features of the class names in ImageNet's templates: (K, d), fp32.

        They are averaged before they are normalized, as in PromptSRC's public code.
        """
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES[:N_TEMPLATES]]
        return F.normalize(self.summed_text_features(templates), dim=-1)

    @torch.no_grad()
    def summed_text_features(self, templates: Sequence[str]) -> Tensor:
        """Return the class names' features of any length, summed over templates: (K, d), fp32."""
        total = torch.zeros((), device=self.device)
        for template in templates:
            texts = [template.format(name) for name in self.class_names]
            try:
                ids = clip.tokenize(texts, self.clip.context_length).to(self.device)
            except ValueError as error:
                raise UserError(f"the template '{template}' does not fit: {error}") from error
            parts = [self.clip.encode_text(part).float() for part in ids.split(TEXT_BATCH)]
            total = total + torch.cat(parts)
        return total

    def encode_image(self, images: View, layers: Layers = ()) -> Tensor:
        """Return unit image features (B, d), fp32; where no layer is touched, ``frozen_image``."""
        if is_untouched(layers):
            return self.frozen_image(images)
        pixels = pixels_of(images)
        return unit_features(self.clip, pixels, layers, self.prompts_through_ln_pre)

    def frozen_image(self, images: View, teacher: CLIP | None = None) -> Tensor:
        """Return unit image features (B, d) of a plain CLIP, by default the backbone; fp32.

        Where these are kept, no pixels are read.
        """
        teacher = self.clip if teacher is None else teacher
        if isinstance(images, Images):
            return images.features(teacher)
        return unit_features(teacher, images)

    @torch.no_grad()
    def frozen_features(self, loader: Any) -> tuple[Tensor, Tensor]:
        """Return unit features (N, d) and labels (N,) of a loader's images, on the CPU."""
        features, labels = [], []
        for batch in loader:
            with self.autocast():
                features.append(self.frozen_image(views_in(batch, self.device)[0]).cpu())
            labels.append(batch["label"])
        return torch.cat(features), torch.cat(labels)

    def encode_text(self, layers: Layers, tokens: PromptTokens | None = None) -> Tensor:
        """Return unit text features (K, d), or (V, K, d) where prompts have variants; fp32.

        V * K texts are too many for one pass where variants (images) or classes are many: both
        are taken in groups of at most TEXT_TOKENS tokens. An exported graph, which serves any
        number of images and so has no loop over them, takes all in one pass.
        """
        tokens = self.tokens if tokens is None else tokens
        n_variants = max(map(_variants, layers), default=0)
        if n_variants == 0 or torch.compiler.is_compiling():
            return F.normalize(self.clip.encode_text(tokens, layers).float(), dim=-1)
        n_classes, length = tokens.ids.shape[0], tokens.ids.shape[1] - tokens.prefix
        classes = max(1, min(n_classes, (TEXT_TOKENS - tokens.prefix) // length))
        variants = max(1, TEXT_TOKENS // (tokens.prefix + classes * length))
        rows = []
        for v in range(0, n_variants, variants):
            part = [_of_variants(entry, slice(v, v + variants)) for entry in layers]
            columns = [
                self.clip.encode_text(tokens.of_classes(slice(k, k + classes)), part)
                for k in range(0, n_classes, classes)
            ]
            rows.append(F.normalize(torch.cat(columns, dim=1).float(), dim=-1))
        return torch.cat(rows)

    def fixed_or_new(self) -> tuple[Towers, Features]:
        """Return layers and class features; those that were fixed, if they were."""
        if self.kept is not None:
            return self.kept
        towers = self.layers() if self.finished is None else self.finished
        return towers, self.class_features(towers)

    def keep_classes(self) -> None:
        """Compute class features now, and no more until other classes are set."""
        if self.fixable and not self.conditional:
            with torch.no_grad(), self.autocast():
                self.kept = self.fixed_or_new()

    @contextmanager
    def fixed_classes(self) -> Iterator[None]:
        """Compute class features once for one evaluation, not for each batch."""
        self.keep_classes()
        try:
            yield
        finally:
            self.kept = None


def unit_means(features: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the renormalized mean of each group of rows (sum of ``sizes``, d): (groups, d)."""
    means = [group.mean(dim=0) for group in features.split(list(sizes))]
    return F.normalize(torch.stack(means), dim=-1)


def _prompts(entry: Layer | Tensor | None) -> Any:
    return entry.prompts if isinstance(entry, Layer) else entry


def _variants(entry: Layer | Tensor | None) -> int:
    """Return the number of variants of a layer's prompts; 0 where they have none."""
    prompts = _prompts(entry)
    return prompts.shape[0] if isinstance(prompts, Tensor) and prompts.dim() == 4 else 0


def _of_variants(entry: Layer | Tensor | None, variants: slice) -> Layer | Tensor | None:
    """Return the layer with some of the variants of its prompts."""
    if _variants(entry) < 2:
        return entry
    prompts = _prompts(entry)[variants]
    return replace(entry, prompts=prompts) if isinstance(entry, Layer) else prompts
