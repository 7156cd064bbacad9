"""Methods, towers and schedules next to plain computations of the same, at a tiny size."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import open_clip
import torch
from torch import Tensor, nn

import trainers.trainer
from benchmarks.cost.cells import Cell
from benchmarks.cost.measure import config, settings_of
from benchmarks.equality.plain_steps import STEPS, Step
from clip.clip import from_open_clip
from dassl.config import get_cfg_default, merge_from_list
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.optimize import Update
from dassl.optim import build_lr_scheduler, build_optimizer
from tests.trainers.tiny import NAMES, TEMPLATES, tiny_clip, write_descriptions

EPOCHS, BATCHES, IMAGES = 5, 4, 4  # of a training; images of a batch
LAYERS = 4
DTYPES = {"fp32": torch.float32, "float64": torch.float64}
# What the tiny CLIP's towers have no room for in the papers' settings; the rest is as it is there.
SIZES: dict[str, dict[str, Any]] = {
    "CoOp": {"N_CTX": 4},
    "KgCoOp": {"N_CTX": 4},
    "ProGrad": {"N_CTX": 7, "CTX_INIT": True},
    "ProDA": {"N_CTX": 3, "N_PROMPT": 9, "PROMPT_BS": 5},
    "TCP": {"CLASS_LAYER": 3, "N_CTX": 3},
    "VPT": {"PROMPT_DEPTH_VISION": 3},
    "IVLP": {"PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 2},
    "MaPLe": {"PROMPT_DEPTH": 3},
    "PromptSRC": {"PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 2, "GPA_MEAN": 4, "GPA_STD": 1},
    "ProMPT": {"PROMPT_DEPTH_VISION": 3, "N_CTX_VISION": 2},
    "HiCroPL": {"PROMPT_DEPTH": LAYERS, "CROSS_LAYER": 2, "N_CTX": 3},
    "MetaPrompt": {"N_CTX": 2, "N_PRO": 3, "LAYERS": 3},
    "ProVP": {"N_CTX": 5},
    "CoPrompt": {"PROMPT_DEPTH": 3, "N_CTX": 2},
    "HISF": {"N_CTX": 2, "FUSION_LAYERS": (1, 3)},
    "MMA": {
        "TEXT_CTX_INIT": "a photo of a",
        "ADAPTER_START": 3,
        "ADAPTER_END": 4,
        "ADAPTER_SCALE": 0.05,
    },
    "MMRL": {"REP_LAYERS": (2, 4), "REP_DIM": 10, "N_REP_TOKENS": 3},
    "CLIPLoRA": {"N_ITERS": EPOCHS * BATCHES, "DROPOUT_RATE": 0.0},
}
OPENED = ("linear1.bias", "generator.bias1")  # of a ReLU with a single unit at this size


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Compute in a type, also where the software asks for fp32 because it is no less."""
    if dtype == torch.float32:
        yield
        return
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with mock.patch.object(Tensor, "float", lambda self: self.to(dtype)):
            yield
    finally:
        torch.set_default_dtype(usual)


def apart(found: Tensor, expected: Tensor, start: Tensor | float = 0.0) -> float:
    """Return the largest difference, relative to how far ``expected`` is from ``start``."""
    difference = (found - expected).detach().abs().max().item()
    size = (expected - start).detach().abs().max().item()
    return difference / size if size else math.inf if difference else 0.0


def largest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], **starts: Any) -> float:
    """Return the largest of the differences of tensors with the same names."""
    assert found.keys() == expected.keys()
    return max(apart(found[name], expected[name], starts.get(name, 0.0)) for name in found)


# Methods -----------------------------------------------------------------------------------------


class WithBatches:
    """What a registered trainer is given in place of a dataset."""

    batches: list[dict[str, Any]]

    def build_data_loader(self: Any) -> None:
        dataset = SimpleNamespace(
            classnames=NAMES, test_classnames=NAMES, templates=TEMPLATES, train_x=range(IMAGES)
        )
        self.dm = SimpleNamespace(dataset=dataset)
        self.train_loader_x, self.val_loader, self.test_loader = self.batches, None, None
        self.num_classes, self.lab2cname = len(NAMES), dict(enumerate(NAMES))
        self._class_names = NAMES

    def forward_backward(self: Any, batch: dict[str, Any]) -> Any:
        torch.manual_seed(self.epoch * BATCHES + self.batch_idx)  # what the step draws
        return super().forward_backward(batch)  # type: ignore[misc]


def batches_of(n_views: int) -> list[dict[str, Any]]:
    """Draw the batches of an epoch."""
    torch.manual_seed(5)
    found = []
    for _ in range(BATCHES):
        views = list(torch.randn(n_views, IMAGES, 3, 16, 16))
        labels = torch.randint(len(NAMES), (IMAGES,))
        found.append({"img": views if n_views > 1 else views[0], "label": labels})
    return found


def trainer_of(name: str, folder: Path) -> Any:
    """Build the registered trainer with the paper's settings, a tiny random CLIP and batches."""
    cfg = config(Cell(name, len(NAMES)))
    kind, settings = TRAINER_REGISTRY.get(name), settings_of(cfg)
    for key, value in SIZES.get(name, {}).items():
        assert key in settings, key
        settings[key] = value
    if "DESCRIPTIONS" in settings:
        settings.DESCRIPTIONS = str(folder / "descriptions.json")
        write_descriptions(folder / "descriptions.json")
    keys = {"OPTIM.MAX_EPOCH": EPOCHS, "INPUT.SIZE": (16, 16), "DATASET.NUM_SHOTS": 1}
    keys |= {"OUTPUT_DIR": str(folder / name), "TEST.NO_TEST": True, "USE_CUDA": False}
    merge_from_list(cfg, [text for key, value in keys.items() for text in (key, str(value))])
    batches = batches_of(kind.method.n_views)
    measured = type(name, (WithBatches, kind), {"batches": batches})
    model = tiny_clip(LAYERS)
    with mock.patch.object(trainers.trainer, "load_frozen", lambda key, name: model):
        trainer = measured(cfg)
    with torch.no_grad():  # equal tensors, or zeros, would hide a mix-up
        for key, tensor in trainer.model.learned().items():
            tensor.add_(0.02 * torch.randn_like(tensor))
            if key.endswith(OPENED):
                tensor.fill_(1.0)
    return trainer


class FirstGradients(Update):
    """Keeps the gradients of the first step on learned tensors, which stay as they are."""

    def __init__(self, learned: Mapping[str, Tensor]):
        super().__init__(torch.optim.SGD(list(learned.values()), lr=0.0))
        self.learned, self.found = learned, dict[str, Tensor]()

    def __call__(self, loss: Tensor) -> None:
        super().__call__(loss)
        if not self.found:
            self.found = {k: t.grad.clone() for k, t in self.learned.items() if t.grad is not None}


def step_differences(trainer: Any, step: Step) -> dict[str, float]:
    """Compare logits, loss and gradients of the first batch, before any training."""
    model, batch = trainer.model.train(), trainer.batches[0]
    update = FirstGradients(model.learned())
    torch.manual_seed(0)
    logits, terms = model.step(batch["img"], batch["label"], update)
    torch.manual_seed(0)
    expected, loss = step.compute(batch["img"], batch["label"])
    gradients = dict(zip(step.p, step.gradients(loss), strict=True))
    return {
        "logits": apart(logits, expected),
        "loss": apart(torch.stack(list(terms.values())).sum(), loss),
        "gradients": largest(update.found, gradients),
    }


def rates_of(name: str, optim: Any) -> list[float]:
    """Return the learning rate of each step, from the closed form."""
    if name == "CLIPLoRA":  # down to 1e-6, a little at each step
        n = EPOCHS * BATCHES
        return [1e-6 + (optim.LR - 1e-6) * (1 + math.cos(math.pi * i / n)) / 2 for i in range(n)]
    assert optim.LR_SCHEDULER == "cosine" and optim.WARMUP_TYPE in ("constant", "linear")
    rates = []
    for epoch in range(EPOCHS):
        is_warm_up = epoch < optim.WARMUP_EPOCH
        turn = math.pi * (epoch - max(optim.WARMUP_EPOCH, 0)) / EPOCHS
        rate = optim.WARMUP_CONS_LR if is_warm_up else optim.LR * (1 + math.cos(turn)) / 2
        rates += [rate] * BATCHES
    return rates


def optimizer_of(optim: Any, tensors: list[Tensor]) -> torch.optim.Optimizer:
    """Make torch's own optimizer of that name."""
    decay = optim.WEIGHT_DECAY
    if optim.NAME == "sgd":
        return torch.optim.SGD(tensors, lr=0.0, momentum=optim.MOMENTUM, weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.NAME]
    betas = (optim.ADAM_BETA1, optim.ADAM_BETA2)
    return kind(tensors, lr=0.0, betas=betas, weight_decay=decay, eps=optim.EPS)


def train_plainly(name: str, optim: Any, step: Step, batches: list[dict[str, Any]]) -> None:
    """Train the tensors of a plain step with torch's optimizer and the closed form's rates."""
    optimizer = optimizer_of(optim, list(step.p.values()))
    for i, rate in enumerate(rates_of(name, optim)):
        optimizer.param_groups[0]["lr"] = rate
        batch = batches[i % BATCHES]
        torch.manual_seed(i)
        step.take(batch["img"], batch["label"], optimizer)
        if (i + 1) % BATCHES == 0:
            step.after_epoch(i // BATCHES, EPOCHS)


def method_differences(name: str, precision: str) -> dict[str, float]:
    """Compare a method's step and its whole training with the plain ones, in fp32 or float64."""
    with computing_in(DTYPES[precision]), tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(name, Path(folder))
        # the frozen towers are shared: nobody changes them
        kept = {id(trainer.model.clip): trainer.model.clip}
        step = STEPS[name](copy.deepcopy(trainer.model, kept))
        found = step_differences(trainer, step)
        learned = trainer.model.learned()
        start = {key: tensor.detach().clone() for key, tensor in learned.items()}
        trainer.train()
        train_plainly(name, trainer.cfg.OPTIM, step, trainer.batches)
        assert all(tensor.dtype == DTYPES[precision] for tensor in learned.values())
        return {**found, "training": largest(learned, step.p, **start)}


# What all share ----------------------------------------------------------------------------------

TEXT = {"width": 32, "layers": 3, "heads": 2, "vocab_size": 49408, "context_length": 77}
TOWERS: dict[str, dict[str, Any]] = {
    "ViT": {"layers": 3, "width": 48, "patch_size": 8, "image_size": 32, "head_width": 16},
    "ResNet": {"layers": (1, 2, 1, 1), "width": 8, "image_size": 64, "head_width": 32},
}


def tower_differences(name: str, precision: str) -> float:
    """Compare features and logits with those of an open_clip model of the same random weights."""
    with computing_in(DTYPES[precision]), torch.no_grad():
        torch.manual_seed(1)
        vision, found = TOWERS[name], []
        ids = open_clip.tokenize(["a photo of a dog.", "a red circle", "x"])
        images = torch.randn(2, 3, vision["image_size"], vision["image_size"])
        for quick_gelu in (True, False):
            reference = open_clip.CLIP(24, vision, TEXT, quick_gelu=quick_gelu).eval()
            for module in reference.modules():  # fresh statistics would hide a wrong order
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
                    nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
            ours = from_open_clip(reference)
            image, text = reference.encode_image(images, True), reference.encode_text(ids, True)
            found += [
                apart(ours.encode_image(images), reference.encode_image(images)),
                apart(ours.encode_text(ids), reference.encode_text(ids)),
                apart(ours(images, ids)[0], reference.logit_scale.exp() * image @ text.t()),
            ]
        return max(found)


def schedule_difference() -> float:
    """Compare the rates of trainings of 1 to 200 epochs with the closed form."""
    found = []
    for epochs in range(1, 201):
        optim = get_cfg_default().OPTIM
        optim.merge_from_list(["LR_SCHEDULER", "cosine", "MAX_EPOCH", epochs, "WARMUP_EPOCH", 1])
        optim.merge_from_list(["WARMUP_TYPE", "constant", "NAME", "sgd", "LR", 0.0025])
        optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], optim)
        schedule = build_lr_scheduler(optimizer, optim)
        for epoch in range(epochs):
            rate = 0.0025 * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2 if epoch else 1e-5
            found.append(abs(optimizer.param_groups[0]["lr"] - rate) / rate)
            optimizer.step()
            schedule.step()
    return max(found)
