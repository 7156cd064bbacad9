"""Say what a training run will take, before anyone waits for it.

    python -m experiments plan --trainer CoOp --dataset caltech101
    python -m experiments plan --trainer CoCoOp --dataset imagenet --classes 1000 \\
        --overrides DATALOADER.TRAIN_X.BATCH_SIZE 8

Takes two training steps on random images with the run's own settings: the first shows the memory,
the second the time. Nothing is downloaded and nothing written: the weights of a CLIP that is loaded
by its name are random, and with ``--classes`` the dataset need not be there.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

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
        kept_bytes: estimate of the part of it that blocks keep for their gradients.
        whole_bytes: what this would be without recomputation.
        steps: of an epoch.
        epochs: of the run.
        total_steps: of the run.
        seconds: of a step.
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


def stand_in(n_classes: int, n_images: int) -> Any:
    """Make a dataset without images, whose classes have names of ImageNet's."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES as known

    names = [known[i % len(known)] for i in range(n_classes)]
    items = [
        SimpleNamespace(impath="", label=i % n_classes, domain=0, classname=names[i % n_classes])
        for i in range(n_images)
    ]
    return SimpleNamespace(
        classnames=names,
        test_classnames=names,
        lab2cname=dict(enumerate(names)),
        templates=["a photo of a {}."],
        train_x=items,
        is_drawn=True,
        val_is_disjoint=True,
    )


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
    from dassl.data.data_manager import build_data_loader
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
                super().build_data_loader()
                return
            count = n_images or n_classes * max(1, cfg.DATASET.NUM_SHOTS)
            dataset = stand_in(n_classes, count)
            data = cfg.DATALOADER.TRAIN_X
            self.dm: Any = SimpleNamespace(dataset=dataset)
            self.train_loader_x = build_data_loader(
                cfg, data.SAMPLER, dataset.train_x, data.BATCH_SIZE, data.N_DOMAIN, data.N_INS
            )
            self.val_loader = self.test_loader = None
            self.num_classes, self.lab2cname = n_classes, dataset.lab2cname
            self._class_names = dataset.classnames

    Planned.__name__, Method.__name__ = whole.__name__, whole.method.__name__
    trainer = Planned(cfg)
    if trainer.optim is None or trainer.model.fit is not None:
        raise UserError(
            f"--trainer: expected a method that is trained in steps, got {cfg.TRAINER.NAME}"
        )
    return trainer


def plan(trainer: Any) -> Plan:
    """Take two training steps on random images and sum up."""
    import torch

    from dassl.utils.memory import PeakMemory

    cfg, device, model = trainer.cfg, trainer.device, trainer.model
    n_images = len(trainer.dm.dataset.train_x)
    batch = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, n_images)
    labels = torch.arange(batch) % trainer.num_classes
    images = torch.randn(batch, 3, *cfg.INPUT.SIZE)
    data = {"img": images if model.n_views == 1 else [images] * model.n_views, "label": labels}
    steps = len(trainer.train_loader_x)
    trainer.set_model_mode("train")
    trainer.batch_idx, trainer.num_batches = 0, steps + 1  # not an epoch's last
    told: list[Any] = []
    for transformer in model.clip.transformers:
        transformer.observe = told.append
    tensors = {t.untyped_storage().data_ptr(): t for t in model.state_dict(keep_vars=True).values()}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        trainer.forward_backward(data)
        step_bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with PeakMemory() as memory:
            trainer.forward_backward(data)
        step_bytes = memory.peak
    kept = list(told)
    begin = time.perf_counter()
    float(trainer.forward_backward(data)["loss"])  # which waits for the device
    seconds = time.perf_counter() - begin
    return Plan(
        classes=trainer.num_classes,
        images=n_images,
        batch=batch,
        learned=sum(tensor.numel() for tensor in model.learned().values()),
        model_bytes=sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()),
        step_bytes=step_bytes,
        kept_bytes=sum(each.n_bytes for each in kept),
        whole_bytes=sum(each.whole for each in kept),
        steps=steps,
        epochs=trainer.max_epoch,
        total_steps=trainer.max_iter or trainer.max_epoch * steps,
        seconds=seconds,
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
    return "\n".join(
        [
            f"{cfg.TRAINER.NAME}, {cfg.MODEL.BACKBONE.NAME}, {cfg.DATASET.NAME}: "
            f"{found.classes} classes, {found.images} images, batch {found.batch}",
            f"learned: {found.learned:,} values",
            f"memory:  {size(found.model_bytes)} for the model, "
            f"{size(found.step_bytes)} for a step",
            f"         (estimate for gradients: {size(found.kept_bytes)}{again})",
            f"steps:   {found.total_steps:,} in {found.epochs} epochs of {found.steps:,}",
            f"time:    {found.seconds:.3g} s a step, {took(found.steps * found.seconds)} an epoch, "
            f"{took(found.total_steps * found.seconds)} in all, without reading images and testing",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = read_arguments(argv)
    try:
        protocol = PROTOCOLS[arguments.protocol]
        (run,) = runs_of(
            replace(protocol, steps=protocol.steps[:1]),
            *(arguments.trainer, arguments.dataset),
            shots=arguments.shots,
            config=arguments.config,
            overrides=arguments.overrides,
            backbone=arguments.backbone,
            root=arguments.root,
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
