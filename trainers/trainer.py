"""The one trainer of all methods."""

from __future__ import annotations

import math
import os.path as osp
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import reduce
from operator import getitem
from typing import Any, TypeVar

import torch
from torch import Tensor

import clip
from clip import CLIP, ClipError, Preprocess
from clip.clip import OF_DRAWINGS, OPEN_CLIP
from dassl import distributed
from dassl.config import register_defaults, set_keys
from dassl.config.defaults import declared
from dassl.config.domains import Choice
from dassl.data.data_manager import build_data_loader
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.engine.checkpoints import check_classes, class_names_of
from dassl.engine.classes_file import Classes, write_classes
from dassl.engine.optimize import (
    PRECISIONS,
    Update,
    device_of,
    fastest,
    grad_scaler,
    precision,
)
from dassl.engine.same_run import model_difference
from dassl.evaluation import build_evaluator
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer
from dassl.utils import UserError, load_checkpoint, load_pretrained_weights, log, nearest

from .base import Batch, Features, Method
from .features import FeatureCache, check_features_dir, views_in
from .step_graph import StepGraph

AnyMethod = TypeVar("AnyMethod", bound=type[Method])

# What CLIP's few-shot methods train with.
TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")


def register_method(
    node: str, PREC: str | None = "fp16", **defaults: Any
) -> Callable[[AnyMethod], AnyMethod]:
    """Register a ``Method`` as the trainer of its name; a decorator.

    Args:
        node: its settings are ``TRAINER.<node>``, a node that several methods may share.
        PREC: default of that key, the type that the method computes in; None: there is no such
            key, as the method that it wraps has one.
        defaults: its other keys, with their domains (``dassl.config.domains``) or plain defaults.
    """

    def register(method: AnyMethod) -> AnyMethod:
        method.config_node = node
        name = method.__name__
        about = "type to compute in; amp: autocast to fp16; auto: bf16, fp16 or fp32, by the device"
        types = {} if PREC is None else {"PREC": Choice(PREC, *PRECISIONS, help=about)}
        register_defaults(f"TRAINER.{node}", {**types, **defaults}, trainer=name)
        attributes = {"method": method, "__doc__": method.__doc__, "__module__": method.__module__}
        TRAINER_REGISTRY.register(type(name, (MethodTrainer,), attributes))
        return method

    return register


@distributed.one_first()
def load_frozen(key: str, name: str) -> CLIP:
    """Load the CLIP that the config's ``key`` names, frozen, in fp32 on the CPU.

    Raises:
        UserError: an unknown backbone, or unreadable weights.
    """
    known = clip.available_models()
    if not (name in known or name.startswith(OPEN_CLIP) or osp.exists(name)):
        raise UserError(
            f"{key}: unknown backbone '{name}'; {nearest(name, known)}, a weights file, "
            f"or {OPEN_CLIP}<model>/<tag>"
        )
    try:
        model = clip.load_model(name)
    except ClipError as error:
        raise UserError(f"{key}: {error}") from error
    return model.requires_grad_(False)


def input_of(preprocess: Preprocess) -> dict[str, Any]:
    """Return the ``INPUT`` keys that say what a backbone takes, with their values."""
    return {
        "SIZE": (preprocess.size, preprocess.size),
        "INTERPOLATION": preprocess.interpolation,
        "PIXEL_MEAN": list(preprocess.mean),
        "PIXEL_STD": list(preprocess.std),
    }


def method_of(cfg: Any) -> type[Method] | None:
    """Return the method that serves a config; None for an unknown name or another trainer's."""
    name = cfg.TRAINER.NAME
    trainer = TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY.registered_names() else None
    if trainer is None or not issubclass(trainer, MethodTrainer):
        return None
    return trainer.method.of_config(cfg)


def follow_wrapped(cfg: Any) -> None:
    """Let the keys of a wrapped method that nobody set have its own defaults, in place."""
    method = method_of(cfg)
    for name in method.wraps if method is not None else ():
        for key in declared(name).keys() - declared().keys() - set_keys(cfg):
            *nodes, leaf = key.split(".")
            reduce(getitem, nodes, cfg)[leaf] = deepcopy(declared(name)[key].default)


def follow_backbone(cfg: Any) -> None:
    """Let the ``INPUT`` keys that nobody set follow the backbone, in place.

    This is only for trainers of a ``Method``; others get the public defaults. Where nobody chose
    transforms, they are CLIP's. A backbone that is not known leaves everything as it is, and is
    reported where it is loaded.
    """
    known = method_of(cfg) is not None
    preprocess = clip.preprocess_of(cfg.MODEL.BACKBONE.NAME) if known else None
    if preprocess is None:
        return
    user_set = set_keys(cfg)
    for key, value in {**input_of(preprocess), "TRANSFORMS": TRANSFORMS}.items():
        if f"INPUT.{key}" not in user_set:
            cfg.INPUT[key] = value


def resolve_precision(cfg: Any) -> Any:
    """Return the config with what PREC auto means on this machine in its place, if it is auto.

    So a run's files say what it computes in, and it is not resumed in anything else.
    """
    method = method_of(cfg)
    if method is None or cfg.TRAINER[method.config_node].PREC != "auto":
        return cfg
    cfg, found = cfg.clone(), fastest(device_of(cfg))
    cfg.defrost()
    cfg.TRAINER[method.config_node].PREC = found
    cfg.freeze()
    log.info(f"TRAINER.{method.config_node}.PREC: auto is {found} on this machine")
    return cfg


class MethodTrainer(TrainerX):
    """Trains and evaluates one ``Method``.

    Where settings leave nothing to learn, training is an evaluation.

    Attributes:
        method: class of the method.
        model: the method.
        features: what the last evaluated batch gave, for recorders.
    """

    keeps_features = True  # reads the keys of the feature cache
    method: type[Method]
    model: Method
    features: Features
    in_processes = True
    step_graph: StepGraph | None = None

    def __init__(self, cfg: Any) -> None:
        self.method = self.method.of_config(cfg)
        super().__init__(resolve_precision(cfg))

    @classmethod
    def tests_other_classes(cls, cfg: Any) -> bool:
        """Return whether TEST.SUBSAMPLE_CLASSES may differ from DATASET.SUBSAMPLE_CLASSES."""
        method = cls.method.of_config(cfg)
        return not method.bound_to_classes(cfg.TRAINER[method.config_node])

    @classmethod
    def splits_batches(cls, cfg: Any) -> bool:
        """Return whether OPTIM.ACCUMULATE may be above 1."""
        method = cls.method.of_config(cfg)
        return method.fit is None and not method.needs_whole_batch(cfg)

    @classmethod
    def wraps(cls, cfg: Any) -> tuple[str, ...]:
        """Name other trainers whose config keys are read, too."""
        return cls.method.of_config(cfg).wraps

    def check_cfg(self, cfg: Any) -> None:
        """Find everything that can be found wrong before any data is touched."""
        settings = cfg.TRAINER[self.method.config_node]
        self.check_unused(cfg)
        n_views = self.method.n_views
        if cfg.DATALOADER.K_TRANSFORMS != n_views:
            raise UserError(
                f"DATALOADER.K_TRANSFORMS: expected {n_views} for {cfg.TRAINER.NAME}, "
                f"got {cfg.DATALOADER.K_TRANSFORMS}"
            )
        views = cfg.DATALOADER.VIEWS
        if views > 0 and self.method.fit is not None:
            raise UserError(
                f"DATALOADER.VIEWS: expected 0 for {cfg.TRAINER.NAME}, whose training has no "
                f"epochs, got {views}"
            )
        if views > 0 and cfg.SEED < 0:
            raise UserError(
                f"SEED: expected a seed >= 0, from which the {views} DATALOADER.VIEWS are drawn, "
                f"got {cfg.SEED}"
            )
        check_features_dir(cfg)
        self.check_cuda_graph(cfg)
        self.clip_model = self.load_clip(cfg)
        self.check_input(cfg)
        self.method.check_settings(settings, self.clip_model)

    def check_cuda_graph(self, cfg: Any) -> None:
        """Refuse a graph of steps where none can be recorded."""
        if not cfg.MODEL.CUDA_GRAPH:
            return
        if device_of(cfg).type != "cuda":
            raise UserError("MODEL.CUDA_GRAPH: expected False without a CUDA device, got True")
        if distributed.count() > 1:
            raise UserError("MODEL.CUDA_GRAPH: expected False in several processes, got True")
        if cfg.MODEL.RECOMPUTE == "always":
            raise UserError(
                "MODEL.RECOMPUTE: expected auto or never with MODEL.CUDA_GRAPH, got always"
            )

    def load_clip(self, cfg: Any) -> CLIP:
        """Load the backbone, frozen, in fp32 on the CPU."""
        return load_frozen("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME)

    def check_unused(self, cfg: Any) -> None:
        """Refuse settings that only public trainers use."""
        optim = ("STAGED_LR", "NEW_LAYERS", "BASE_LR_MULT")
        unused = {
            "INPUT.NO_TRANSFORM": cfg.INPUT.NO_TRANSFORM,
            "DATALOADER.RETURN_IMG0": cfg.DATALOADER.RETURN_IMG0,
            "MODEL.BACKBONE.PRETRAINED": cfg.MODEL.BACKBONE.PRETRAINED,
            **{f"MODEL.HEAD.{name}": value for name, value in cfg.MODEL.HEAD.items()},
            **{f"OPTIM.{name}": cfg.OPTIM[name] for name in optim},
        }
        if self.method.fit is not None:  # there are no steps
            unused["OPTIM.CLIP_NORM"] = cfg.OPTIM.CLIP_NORM
        for key, value in unused.items():
            default = declared()[key].default
            if value != default:
                raise UserError(
                    f"{key}: expected {default!r} for {cfg.TRAINER.NAME}, which does not use it, "
                    f"got {value!r}"
                )

    def check_input(self, cfg: Any) -> None:
        """Refuse images of another size than the backbone's; warn of other preprocessing."""
        backbone = cfg.MODEL.BACKBONE.NAME
        expected = input_of(self.clip_model.preprocess)
        size, resolution = tuple(cfg.INPUT.SIZE), expected.pop("SIZE")
        if size != resolution:
            raise UserError(f"INPUT.SIZE: expected {resolution} for {backbone}, got {size}")
        for key, value in expected.items():
            if type(value)(cfg.INPUT[key]) != value:
                log.warning(
                    f"INPUT.{key}: {backbone} was trained with {value}, got {cfg.INPUT[key]}"
                )
        if "normalize" not in cfg.INPUT.TRANSFORMS:
            names = list(cfg.INPUT.TRANSFORMS)
            log.warning(f"INPUT.TRANSFORMS: {backbone} was trained with 'normalize', got {names}")

    def check_pictures(self, cfg: Any) -> None:
        """Warn of photographs for a model that knows drawings alone."""
        name = cfg.MODEL.BACKBONE.NAME
        if name in OF_DRAWINGS and not getattr(self.dm.dataset, "is_drawn", False):
            self.warnings.append(
                f"MODEL.BACKBONE.NAME: {name} has learned from drawings and seen no photograph; on "
                f"those of {cfg.DATASET.NAME} it may do no better than chance, use ViT-B/16"
            )
            log.warning(self.warnings[-1])

    def build_model(self) -> None:
        cfg = self.cfg
        self.check_pictures(cfg)
        types = precision(cfg.TRAINER[self.method.config_node].PREC, self.device)
        clip_model = self.clip_model.to(self.device)
        if types.dtype != torch.float32:
            clip.convert_weights(clip_model, types.dtype)
        for transformer in clip_model.transformers:
            transformer.recompute = "never" if cfg.MODEL.CUDA_GRAPH else cfg.MODEL.RECOMPUTE
            if cfg.MODEL.COMPILE:
                transformer.compile_blocks()
        dataset = self.dm.dataset
        templates = getattr(dataset, "templates", ["a photo of a {}."])
        self.model = self.method(cfg, clip_model, dataset.classnames, templates)
        self.model.autocast_dtype = types.autocast_dtype
        self.recorded["precision"] = types.name
        self.step_graph = StepGraph(self.model) if cfg.MODEL.CUDA_GRAPH else None
        self.shares_tests = self.model.fixable
        self.cache = FeatureCache(cfg, self.model)
        if dataset.test_classnames != dataset.classnames:
            # problems with these class names are found before training
            self.model.set_classes(dataset.test_classnames)
            self.model.set_classes(dataset.classnames)
        scope = self.model.get_submodule(self.method.checkpoint_scope)
        if cfg.MODEL.INIT_WEIGHTS:
            weights = load_pretrained_weights(scope, cfg.MODEL.INIT_WEIGHTS)
            trained = class_names_of(weights, cfg.MODEL.INIT_WEIGHTS)
            if self.method.rows_by_class or self.method.bound_to_classes(self.model.settings):
                check_classes(trained, self._class_names, cfg.MODEL.INIT_WEIGHTS)
        self.optim = self.sched = None
        learned = self.model.learned()
        if learned and self.train_loader_x is not None:
            n_values = sum(tensor.numel() for tensor in learned.values())
            log.info(f"Learnable tensors: {len(learned)} ({n_values:,} values)")
            self.optim = build_optimizer(self.model, cfg.OPTIM, self.model.param_groups(cfg.OPTIM))
            self.sched = self.build_schedule()
        self.register_model(self.method.checkpoint_name, scope, self.optim, self.sched)
        self.scaler = grad_scaler(types, self.device)

    def build_schedule(self) -> Any:
        """Build the schedule, and take the number of epochs from that of iterations, if need be."""
        n_images, n_batches = len(self.dm.dataset.train_x), len(self.train_loader_x)
        self.max_iter = self.model.iterations(self.cfg, n_images)
        if self.max_iter is not None:
            self.max_epoch = math.ceil(self.max_iter / n_batches)
            log.info(f"Training takes {self.max_iter} iterations ({self.max_epoch} epochs)")
        n_steps = self.max_iter or self.max_epoch
        return self.model.build_schedule(self.optim, self.cfg.OPTIM, n_steps)

    # Training ----------------------------------------------------------------------------------

    def train(self) -> None:
        name, weights = self.cfg.TRAINER.NAME, self.cfg.MODEL.INIT_WEIGHTS
        if self.model.fit is not None:
            if weights:
                raise UserError(
                    f"MODEL.INIT_WEIGHTS: expected '' for {name}, whose training starts from "
                    f"nothing, got '{weights}'"
                )
            self.before_train()
            if self.start_epoch < self.max_epoch:
                self.epoch = self.max_epoch - 1
                self.fit(self.model.fit)
                self.model_epoch = self.max_epoch
                self.save_model(self.epoch, self.output_dir)
            self.after_train()
        elif self.model.learned():
            super().train()
        elif self.cfg.RESUME:
            raise UserError(
                f"RESUME: expected '' for {name}, which learns nothing, got '{self.cfg.RESUME}'"
            )
        else:
            log.info(f"{name} learns nothing: evaluating")
            self.test()

    def before_train(self) -> None:
        super().before_train()
        distributed.copy_first(list(self.model.saved().values()))

    def fit(self, fit: Callable[..., None]) -> None:
        """Let the method fit itself to the training and validation images."""
        cfg, dataset, val = self.cfg, self.dm.dataset, self.val_loader
        is_augmented = self.method.fits_augmented
        if val is not None and not dataset.val_is_disjoint:
            log.info("The validation images are also test images: nothing is selected by them")
            val = None
        train = build_data_loader(
            cfg,
            data_source=dataset.train_x,
            batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=build_transform(cfg, is_train=is_augmented),
            is_train=False,
        )
        train = train if is_augmented else self.cache.of_test(train, "training")
        val = val if val is None else self.cache.of_test(val, "validation")
        fit(train, val)
        distributed.copy_first(list(self.model.saved().values()))

    def run_epoch(self) -> None:
        if self.step_graph is not None:
            self.step_graph.start_epoch()
        n_views = self.cfg.DATALOADER.VIEWS
        if n_views == 0:
            super().run_epoch()
            return
        served = self.cache.of_view(self.train_loader_x, self.epoch % n_views)
        with self.serving("train_loader_x", served):
            super().run_epoch()

    @contextmanager
    def serving(self, name: str, served: Any) -> Iterator[None]:
        """Let another loader take the place of one of the trainer's, by its name."""
        loader = getattr(self, name)
        setattr(self, name, served)
        try:
            yield
        finally:
            setattr(self, name, loader)

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")  # all of it, even where checkpoints hold only a part

    def forward_backward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        images, labels = self.parse_batch_train(batch)
        assert self.optim is not None
        update = Update(self.optim, self.scaler, self.cfg.OPTIM.ACCUMULATE)
        with self.shared_batch():
            labels = distributed.gather(labels)
            logits, terms = (self.step_graph or self.model.step)(images, labels, update)
        if self.max_iter is not None or self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        terms = {name: term.detach() for name, term in terms.items()}
        summary = {
            "loss": torch.stack(list(terms.values())).sum(),
            "acc": compute_accuracy(logits.detach(), labels)[0].squeeze(),
        }
        return {**summary, **terms} if len(terms) > 1 else summary

    def shared_batch(self) -> AbstractContextManager[None]:
        """Say how many images the present batch has, where several processes have shares of it."""
        if distributed.count() == 1:
            return nullcontext()
        return distributed.shared_batch(self.train_loader_x.batch_sampler.size(self.batch_idx))

    def parse_batch_train(self, batch: Mapping[str, Any]) -> tuple[Batch, Tensor]:
        views = views_in(batch, self.device)
        labels = batch["label"].to(self.device, non_blocking=True)
        return (views if len(views) > 1 else views[0]), labels

    def parse_batch_test(self, batch: Mapping[str, Any]) -> tuple[Batch, Tensor]:
        return views_in(batch, self.device)[0], batch["label"].to(self.device)

    def after_epoch(self) -> None:
        self.model.after_epoch(self.epoch, self.max_epoch)
        super().after_epoch()

    def extra_state(self) -> dict[str, Any]:
        return self.model.extra_state()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.model.load_extra_state(state)

    # Evaluation --------------------------------------------------------------------------------

    def test(self, split: str | None = None) -> float:
        """Evaluate, on test images for the test's classes, which may be others."""
        self.set_model_mode("eval")
        is_val = (split or self.cfg.TEST.SPLIT) == "val" and self.val_loader is not None
        name, called = ("val_loader", "validation") if is_val else ("test_loader", "test")
        with nullcontext() if is_val else self.test_classes(), self.model.fixed_classes():
            with self.serving(name, self.cache.of_test(getattr(self, name), called)):
                return super().test(split)

    @contextmanager
    def test_classes(self) -> Iterator[None]:
        """Set the test's classes where they differ from the training's, and put these back."""
        dataset = self.dm.dataset
        if dataset.test_classnames == dataset.classnames:
            yield
            return
        kept = self.evaluator, self.num_classes, self.lab2cname
        self.lab2cname = dict(enumerate(dataset.test_classnames))
        self.num_classes = len(self.lab2cname)
        self.evaluator = build_evaluator(self.cfg, lab2cname=self.lab2cname)
        self.model.set_classes(dataset.test_classnames)
        try:
            yield
        finally:
            self.evaluator, self.num_classes, self.lab2cname = kept
            self.model.set_classes(dataset.classnames)

    def write_results(self, results: Mapping[str, float], split: str | None) -> None:
        """Write classes.json and results.json: both mean that the run is finished."""
        model = self.model
        classes = Classes(list(self._class_names), model.templates, model.described)
        write_classes(classes, self.output_dir)
        super().write_results(results, split)

    def model_inference(self, images: Batch) -> Tensor:
        with self.model.autocast():
            self.features = self.model.features(images)
            return self.model.logits(self.features)

    # Checkpoints hold what was learned, never the frozen CLIP ----------------------------------

    def learned_state_dict(self, name: str) -> dict[str, Tensor]:
        return self.model.saved()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        shots = self.cfg.DATASET.NUM_SHOTS
        names = [name.format(shots=shots) for name in self.method.public_files]
        public_files = [osp.join(directory, name) for name in names]
        if not self.learned_state_dict(self.method.checkpoint_name):
            log.info(f"{self.method.__name__} learns nothing: no checkpoint is loaded")
        elif directory and public_files and all(map(osp.isfile, public_files)):
            path = public_files[0]
            try:
                state = self.model.read_public_files(*map(load_checkpoint, public_files))
            except (KeyError, TypeError, AttributeError) as error:
                name = self.method.__name__
                raise UserError(f"'{path}' is not what {name}'s code saves") from error
            self.load_learned_state_dict(self.method.checkpoint_name, state, path)
            log.info(f"Load {', '.join(public_files)} to {self.method.checkpoint_name}")
        else:
            self.compare_settings(directory)
            super().load_model(directory, epoch)

    def compare_settings(self, directory: str) -> None:
        """Warn where the run in a folder had another backbone, or other settings of the method."""
        own, wrapped = type(self).method.config_node, self.method.config_node  # the same, mostly
        found = model_difference(directory, self._config, own, wrapped)
        if found is not None:
            key, before, now = found
            log.warning(f"{key}: the run in '{directory}' had {before!r}, got {now!r}")

    def check_classes(self, trained: list[str], path: str) -> None:
        """Check that what is bound to its classes meets those that it was trained on.

        A method that is not bound to them is told their names.

        Raises:
            UserError: one differs, or their order does.
        """
        if self.method.bound_to_classes(self.model.settings):
            check_classes(trained, self._class_names, path)
        self.model.trained_names = trained

    def load_learned_state_dict(self, name: str, state_dict: Mapping[str, Any], path: str) -> None:
        """Take what was learned from a checkpoint of ours or of the public code.

        Raises:
            UserError: a tensor is missing, unexpected or of another shape: the checkpoint is one
                of another method, of other settings or of another width.
        """
        self.model.prepare_to_load(state_dict, path)
        copies = self.model.public_copies() - self.learned_state_dict(name).keys()
        kept = {key: value for key, value in state_dict.items() if key not in copies}
        super().load_learned_state_dict(name, kept, path)
