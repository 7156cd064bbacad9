"""Say what a training run will take, before anyone waits for it.

    python -m experiments plan --trainer CoOp --dataset caltech101
    python -m experiments plan --trainer CoCoOp --dataset imagenet --classes 1000 \\
        --overrides DATALOADER.TRAIN_X.BATCH_SIZE 8

Takes training steps on random images with the run's own settings, two on a CPU and three on a GPU:
the first ones show the memory, the last one the time. With fixed views (DATALOADER.VIEWS) their
frozen features are known, and two batches of these are encoded beforehand. Nothing is written, and
no backbone downloaded: the weights of one that is loaded by its name are random. With
``--classes`` the dataset need not be there; one that a run would draw need not be in any case.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from configs.choice import is_embedded
from configs.protocols import BASE2NEW, PROTOCOLS
from dassl.command import Parser
from dassl.errors import UserError
from experiments.runs import runs_of
from experiments.table import (
    add_setting_arguments,
    known_datasets,
    known_methods,
    number_above_0,
)


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        classes, images, batch: of its training.
        learned: number of values.
        model_bytes: of the frozen model and what is learned.
        step_bytes: most that a step takes besides.
        kept_bytes: estimate of the part of it that blocks keep for their gradients at one time.
        whole_bytes: what this would be without recomputation.
        steps: of an epoch.
        epochs: of the run.
        total_steps: of the run.
        seconds: of a step.
        views: fixed views of each image whose frozen features the steps read; 0 if none.
        views_bytes: most that encoding a batch of these takes beside the model.
        views_seconds: of encoding all of these, once.
    """

    classes: int
    images: int
    batch: int
    learned: int
    model_bytes: int
    step_bytes: int
    kept_bytes: int
    whole_bytes: int
    steps: int
    epochs: int
    total_steps: int
    seconds: float
    views: int = 0
    views_bytes: int = 0
    views_seconds: float = 0.0


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; report an invalid one in one line and exit with code 2."""
    parser = Parser(
        prog="python -m experiments plan",
        description="Say what memory and time a training run will take.",
    )
    parser.add_argument("--trainer", required=True, choices=known_methods())
    parser.add_argument("--dataset", required=True, choices=known_datasets())
    parser.add_argument(
        "--protocol",
        default=BASE2NEW.name,
        choices=PROTOCOLS,
        help=f"whose training is meant (default: {BASE2NEW.name}, on the base classes)",
    )
    parser.add_argument("--shots", type=number_above_0, default=16)
    parser.add_argument(
        "--classes", type=number_above_0, help="train on so many, and leave the dataset unread"
    )
    parser.add_argument(
        "--images", type=number_above_0, help="with --classes: training images (default: shots)"
    )
    parser.add_argument("--root", default="data", help="folder of the datasets (default: data)")
    add_setting_arguments(parser, transfers=False)
    arguments = parser.parse_args(argv)
    if arguments.images and not arguments.classes:
        parser.error("--images: expected together with --classes")
    return arguments


def stand_in(names: Sequence[str], templates: Sequence[str], n_images: int) -> Any:
    """Make a dataset of classes with these names, without the files of its images."""
    labels = [i % len(names) for i in range(n_images)]
    items = [SimpleNamespace(impath="", label=i, domain=0, classname=names[i]) for i in labels]
    return SimpleNamespace(
        classnames=list(names),
        test_classnames=list(names),
        lab2cname=dict(enumerate(names)),
        templates=list(templates),
        domains=[],
        train_x=items,
        val=items,
        is_drawn=True,
        val_is_disjoint=True,
    )


def imagenet_names(count: int) -> list[str]:
    """Return so many class names of ImageNet's, from the first again after the last."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES as known

    return [known[i % len(known)] for i in range(count)]


def dataset_to_plan(cfg: Any) -> Any:
    """Read the dataset of a config, writing nothing; one to be drawn yet has a stand-in.

    Raises:
        UserError: it is not there, or is damaged.
    """
    from dassl.data.datasets import DATASET_REGISTRY, build_dataset
    from dassl.data.datasets.base_dataset import class_subset
    from dassl.data.shared_files import writing_nothing
    from datasets.embedded import EmbeddedDataset

    kind = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    root = os.path.expanduser(cfg.DATASET.ROOT)
    if issubclass(kind, EmbeddedDataset) and not os.path.isdir(os.path.join(root, kind.folder)):
        every, subset = kind.class_names(), cfg.DATASET.SUBSAMPLE_CLASSES
        names = [every[label] for label in class_subset(range(len(every)), subset)]
        drawn, shots = kind.numbers.get("train", 0), cfg.DATASET.NUM_SHOTS
        count = len(names) * (drawn if shots < 1 else min(shots, drawn))
        return stand_in(names, kind.templates, count)
    try:
        with writing_nothing():
            return build_dataset(cfg)
    except UserError as error:
        raise UserError(f"{error}; or give --classes") from error


def random_clip(name: str) -> Any:
    """Make the CLIP of a name in fp32 with random weights; that of a file is loaded.

    Raises:
        UserError: there is none.
    """
    from clip.clip import OPEN_CLIP, OPENAI_MODELS, from_open_clip
    from trainers.trainer import load_frozen

    is_pair = name.startswith(OPEN_CLIP)
    if name not in OPENAI_MODELS and not is_pair:
        return load_frozen("MODEL.BACKBONE.NAME", name)
    import open_clip

    pair = name.removeprefix(OPEN_CLIP).partition("/")[0]
    known = name.replace("/", "-").replace("@336px", "-336")
    reference = open_clip.create_model(pair if is_pair else known, force_quick_gelu=not is_pair)
    return from_open_clip(reference).eval().requires_grad_(False)


def trainer_to_plan(cfg: Any, n_classes: int | None, n_images: int | None) -> Any:
    """Make the trainer of a config, with random weights and, for ``n_classes``, without a dataset.

    Raises:
        UserError: the trainer cannot train, or a setting is wrong.
    """
    from dassl.data.data_manager import build_data_loader, check_sampler
    from dassl.data.datasets import check_training
    from dassl.data.transforms import build_transform
    from dassl.engine import TRAINER_REGISTRY, check_cfg
    from trainers.trainer import MethodTrainer

    check_cfg(cfg)
    whole: type[MethodTrainer] = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)

    class Method(whole.method):  # type: ignore[misc, name-defined]
        def sentences(self, path: str, key: str, other: str) -> list[list[str]]:
            """Describe the classes, which the file of descriptions does not know."""
            if n_classes is None:
                described: list[list[str]] = super().sentences(path, key, other)
                return described
            return [[f"a photo of a {name}."] for name in self.class_names]

    class Planned(whole):  # type: ignore[misc, valid-type]
        method = Method

        def load_clip(self, cfg: Any) -> Any:
            return random_clip(cfg.MODEL.BACKBONE.NAME)

        def build_data_loader(self) -> None:
            if n_classes is None:
                dataset = dataset_to_plan(cfg)
            else:
                count = n_images or n_classes * max(1, cfg.DATASET.NUM_SHOTS)
                dataset = stand_in(imagenet_names(n_classes), ["a photo of a {}."], count)
            check_sampler(cfg, dataset)
            check_training(cfg, dataset)
            data = cfg.DATALOADER.TRAIN_X
            self.dm: Any = SimpleNamespace(dataset=dataset)
            self.train_loader_x = build_data_loader(
                *(cfg, data.SAMPLER, dataset.train_x, data.BATCH_SIZE, data.N_DOMAIN, data.N_INS),
                tfm=build_transform(cfg),
            )
            self.val_loader = self.test_loader = None
            self.num_classes, self.lab2cname = len(dataset.classnames), dataset.lab2cname
            self._class_names = list(dataset.classnames)

    Planned.__name__, Method.__name__ = whole.__name__, whole.method.__name__
    trainer = Planned(cfg)
    if trainer.optim is None or trainer.model.fit is not None:
        raise UserError(
            f"--trainer: expected a method that is trained in steps, got {cfg.TRAINER.NAME}"
        )
    return trainer


def measured(act: Callable[[], Any], device: Any) -> tuple[int, float]:
    """Act a few times, and return the bytes of the first times and the seconds of the last."""
    import torch

    from dassl.utils.memory import PeakMemory

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        act()  # MODEL.CUDA_GRAPH records the second step, which later ones replay
        torch.cuda.synchronize(device)
        n_bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with PeakMemory() as memory:
            act()
        n_bytes = memory.peak
    begin = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return n_bytes, time.perf_counter() - begin


def plan(trainer: Any) -> Plan:
    """Take training steps on random images and sum up."""
    import torch

    from clip import CLIP
    from trainers.features import Images, unit_features

    cfg, device, model = trainer.cfg, trainer.device, trainer.model
    n_images = len(trainer.dm.dataset.train_x)
    batch = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, n_images)
    labels = torch.arange(batch) % trainer.num_classes
    images = torch.randn(batch, 3, *cfg.INPUT.SIZE)
    steps = len(trainer.train_loader_x)
    tensors = {t.untyped_storage().data_ptr(): t for t in model.state_dict(keep_vars=True).values()}

    n_encoded = min(cfg.DATALOADER.TEST.BATCH_SIZE, n_images)  # as FeatureCache encodes views
    to_encode = torch.randn(n_encoded, 3, *cfg.INPUT.SIZE)
    known: dict[Any, Any] = {}
    asked = set()

    @torch.no_grad()
    def encode(frozen: Any) -> None:
        with model.autocast():
            known[frozen] = unit_features(frozen, to_encode.to(device)).cpu()

    def features(frozen: Any) -> Any:
        asked.add(frozen)
        return known[frozen][torch.arange(batch) % n_encoded].to(device)

    def step() -> None:
        data: dict[str, Any] = {"label": labels}
        if cfg.DATALOADER.VIEWS:
            views = range(model.n_views)
            data["images"] = [Images(lambda: images.to(device), features) for _ in views]
        else:
            data["img"] = images if model.n_views == 1 else [images] * model.n_views
        trainer.forward_backward(data)

    clips = [each for each in model.modules() if isinstance(each, CLIP)]
    trainer.set_model_mode("train")
    encoding = {
        each: measured(partial(encode, each), device) for each in clips if cfg.DATALOADER.VIEWS
    }
    trainer.batch_idx, trainer.num_batches = 0, steps + 1  # not an epoch's last
    told: list[list[Any]] = [[]]  # the passes between one computation of gradients and the next
    for transformer in model.clip.transformers:
        transformer.observe = lambda kept: told[-1].append(kept)
    for tensor in model.learned().values():
        tensor.register_hook(lambda gradient: told.append([]))
    step_bytes, seconds = measured(step, device)
    views = min(cfg.DATALOADER.VIEWS, trainer.max_epoch) if asked else 0
    n_batches = views * model.n_views * math.ceil(n_images / n_encoded)
    return Plan(
        classes=trainer.num_classes,
        images=n_images,
        batch=batch,
        learned=sum(tensor.numel() for tensor in model.learned().values()),
        model_bytes=sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()),
        step_bytes=step_bytes,
        kept_bytes=max(sum(each.n_bytes for each in kept) for kept in told),
        whole_bytes=max(sum(each.whole for each in kept) for kept in told),
        steps=steps,
        epochs=trainer.max_epoch,
        total_steps=trainer.max_iter or trainer.max_epoch * steps,
        seconds=seconds,
        views=views,
        views_bytes=max((encoding[each][0] for each in asked), default=0),
        views_seconds=n_batches * sum(encoding[each][1] for each in asked),
    )


def size(n_bytes: int) -> str:
    """Write a number of bytes in GB, or in MB below one of these."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def took(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def report(cfg: Any, found: Plan) -> str:
    """Write a plan in a few lines."""
    again = ""
    if found.kept_bytes < found.whole_bytes:
        again = f" with recomputation, {size(found.whole_bytes)} without"
    encoding, with_views = [], ""
    if found.views:
        encoding.append(
            f"views:   {found.views} of each image, encoded once: {took(found.views_seconds)} in "
            f"all, {size(found.views_bytes)} for a batch"
        )
        with_views = " with the views"
    total = found.total_steps * found.seconds + found.views_seconds
    return "\n".join(
        [
            f"{cfg.TRAINER.NAME}, {cfg.MODEL.BACKBONE.NAME}, {cfg.DATASET.NAME}: "
            f"{found.classes} classes, {found.images} images, batch {found.batch}",
            f"learned: {found.learned:,} values",
            f"memory:  {size(found.model_bytes)} for the model, "
            f"{size(found.step_bytes)} for a step",
            f"         (estimate for gradients: {size(found.kept_bytes)}{again})",
            f"steps:   {found.total_steps:,} in {found.epochs} epochs of {found.steps:,}",
            *encoding,
            f"time:    {found.seconds:.3g} s a step, {took(found.steps * found.seconds)} an epoch, "
            f"{took(total)} in all{with_views}, without reading images and testing",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    root = "." if arguments.classes else arguments.root  # which need not be there, and is not read
    try:
        if not (is_embedded(arguments.dataset) or os.path.isdir(os.path.expanduser(root))):
            raise UserError(f"--root: expected a folder, or --classes instead, got '{root}'")
        protocol = PROTOCOLS[arguments.protocol]
        (run,) = runs_of(
            replace(protocol, steps=protocol.steps[:1]),
            *(arguments.trainer, arguments.dataset),
            shots=arguments.shots,
            config=arguments.config,
            overrides=arguments.overrides,
            backbone=arguments.backbone,
            root=root,
        )
        import train

        with redirect_stdout(sys.stderr):  # what building a trainer logs
            cfg = train.setup_cfg(train.build_parser().parse_args(run.arguments))
            trainer = trainer_to_plan(cfg, arguments.classes, arguments.images)
            found = plan(trainer)
        print(report(cfg, found))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
