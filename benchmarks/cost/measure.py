"""One measurement of a ``Cell``, in a process of its own: python -m benchmarks.cost.measure.

It reads what to do, "step" or "evaluation", line by line and answers each line with one of JSON:
seconds, FLOPs (the first time, which is the warm-up), and the peak of memory beside the model.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import random
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

import trainers.base
import trainers.trainer
from benchmarks import plain
from benchmarks.cost.cells import MODELS, TEST_BATCH, Cell
from clip import CLIP, CLIPConfig, tokenize
from configs.choice import CONFIGS, config_of
from configs.protocols import BASE2NEW
from dassl.config import get_cfg_default, merge_from_file, merge_from_list
from dassl.config.defaults import declared
from dassl.engine import TRAINER_REGISTRY
from dassl.errors import machine_fault
from dassl.optim import build_optimizer
from experiments.method_pages import VIT_B16
from trainers.base import Method
from trainers.features import Images, View, unit_features

ROOT = Path(__file__).parents[2]
SMALL = replace(
    VIT_B16, embed_dim=64, image_resolution=32, vision_width=64, text_width=64, head_width=16
)
CONFIGURATIONS = dict(zip(MODELS, (VIT_B16, SMALL), strict=True))
RATE_SHAPE = (2048, 768, 3072)  # of the product that says what the machine can do
RATE_REPEATS = 10
aten = torch.ops.aten


def random_model(config: CLIPConfig = VIT_B16) -> CLIP:
    """Make a frozen CLIP with random weights."""
    torch.manual_seed(0)
    return CLIP(config).eval().requires_grad_(False)


def class_names(count: int) -> list[str]:
    """Return so many of ImageNet's class names; more classes contain those of fewer."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    names = list(dict.fromkeys(IMAGENET_CLASSNAMES))
    random.Random(0).shuffle(names)
    return [names[i % len(names)] for i in range(count)]


# What is measured --------------------------------------------------------------------------------


def config(cell: Cell) -> Any:
    """Return the config of the paper's file with what the cell changes."""
    cfg = get_cfg_default(cell.method)
    file = f"{config_of(cell.method, BASE2NEW, '', 16)}.yaml"
    merge_from_file(cfg, str(ROOT / CONFIGS / "trainers" / cell.method / file))
    cfg.TRAINER.NAME = cell.method
    cfg.INPUT.SIZE = (CONFIGURATIONS[cell.model].image_resolution,) * 2
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = cell.batch or cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    pairs = list(zip(cell.options[::2], cell.options[1::2], strict=True))
    unknown = left_out(cell)
    merge_from_list(cfg, [text for pair in pairs if pair[0] not in unknown for text in pair])
    settings = settings_of(cfg)
    settings.PREC = cell.precision
    if cell.prompts:
        for key in prompt_keys(settings):
            settings[key] = cell.prompts
        if "CTX_INIT" in settings:
            settings.CTX_INIT = type(settings.CTX_INIT)()
    return cfg


def left_out(cell: Cell) -> list[str]:
    """Name the cell's options that this version does not have."""
    return [key for key in cell.options[::2] if key not in declared()]


def settings_of(cfg: Any) -> Any:
    """Return the settings of the config's own method."""
    method = TRAINER_REGISTRY.get(cfg.TRAINER.NAME).method.of_config(cfg)
    return cfg.TRAINER[method.config_node]


def prompt_keys(settings: Any) -> list[str]:
    """Name the settings that say how many prompts a layer has."""
    return [key for key in settings if re.fullmatch(r"N_(CTX|PRO)(_\w+)?", key)]


class WithoutData:
    """What a registered trainer is measured with in place of a dataset."""

    n_classes: int

    def build_data_loader(self: Any) -> None:
        names = class_names(self.n_classes)
        items = range(max(self.n_classes, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE))
        dataset = SimpleNamespace(
            classnames=names, test_classnames=names, templates=["a photo of a {}."], train_x=items
        )
        self.dm = SimpleNamespace(dataset=dataset)
        self.train_loader_x, self.val_loader, self.test_loader = [None], None, None
        self.num_classes, self.lab2cname = len(names), dict(enumerate(names))
        self._class_names = names
        self.num_batches = 2  # no step is the last one of an epoch


def trainer_of(cell: Cell, folder: Path) -> Any:
    """Build the registered trainer as a run does, with random weights and without data.

    Args:
        folder: for a file of descriptions, one sentence for each class.
    """
    cfg = config(cell)
    kind, settings = TRAINER_REGISTRY.get(cell.method), settings_of(cfg)
    if "DESCRIPTIONS" in settings:
        settings.DESCRIPTIONS = str(folder / "descriptions.json")
        texts = {name: [f"A photo of a {name}."] for name in class_names(cell.classes)}
        Path(settings.DESCRIPTIONS).write_text(json.dumps(texts), encoding="utf-8")
    measured = type(kind.__name__, (WithoutData, kind), {"n_classes": cell.classes})
    model = random_model(CONFIGURATIONS[cell.model])
    with mock.patch.object(trainers.trainer, "load_frozen", lambda key, name: model):
        return measured(cfg)


def plain_method(method: Method) -> plain.Method:
    """Make the plain reference of a method, with its weights and texts."""
    model: Any = method
    sizes = model.clip.config
    text_heads = sizes.text_width // sizes.head_width
    vision_heads = sizes.vision_width // (sizes.vision_head_width or sizes.head_width)
    texts = [f"{model.context.words} {name}." for name in model.class_names]
    ids = tokenize(texts, sizes.context_length).to(model.device)
    kind = plain.METHODS[type(method).__name__]
    towers = plain.CLIP(model.clip.state_dict(), text_heads, vision_heads)
    frozen_text = getattr(model, "frozen_text", None)
    return kind(towers, model.learned(), ids, frozen_text, model.settings)


def with_known_features(pixels: Tensor) -> Images:
    """Return images whose features by a frozen CLIP are computed once, as with kept features."""
    return Images(lambda: pixels, cache(lambda model: unit_features(model, pixels)))


class Ours:
    """A registered method, driven through its trainer."""

    def __init__(self, cell: Cell, folder: Path):
        self.cell, self.trainer = cell, trainer_of(cell, folder)
        self.model, self.device = self.trainer.model, self.trainer.device
        self.learned = sum(tensor.numel() for tensor in self.model.learned().values())
        cfg = self.trainer.cfg
        self.batch = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        keeps = self.model.fixable and not self.model.conditional
        self.test_batch = cell.test_batch or (TEST_BATCH if keeps else self.batch)
        self.computes_in = self.model.autocast_dtype or self.model.clip.dtype
        size = self.model.clip.visual.input_resolution
        self.images = torch.randn(self.batch, 3, size, size, device=self.device)
        self.test_images = torch.randn(self.test_batch, 3, size, size, device=self.device)
        seen: list[View] = [self.images, self.test_images]
        if cell.views:
            seen = [with_known_features(pixels) for pixels in (self.images, self.test_images)]
        self.views, self.tested = [seen[0]] * self.model.n_views, seen[1]
        self.labels = torch.arange(self.batch, device=self.device) % cell.classes
        if cell.views:  # what a first run on the same images has left
            with torch.no_grad(), self.model.autocast():
                for view in (self.views[0], self.tested):
                    self.model.frozen_image(view)

    @property
    def no_step(self) -> str:
        """Why there are no training steps; "" where there are."""
        if self.model.fit is not None:
            return "fits itself to image features, which is not timed"
        return "" if self.learned else "learns nothing"

    def prepare(self) -> None:
        """Take a step, as the first one may compute what later ones have."""
        self.step()

    def step(self) -> None:
        self.model.kept = None  # of an evaluation
        self.trainer.set_model_mode("train")
        self.trainer.forward_backward({"images": self.views, "label": self.labels})

    def classes(self) -> None:
        """Compute what one evaluation computes once."""
        self.trainer.set_model_mode("eval")
        self.model.kept = None
        self.model.keep_classes()

    def test(self) -> None:
        with torch.no_grad():
            self.trainer.model_inference(self.tested)


class Plain(Ours):
    """The plain reference of a method, with the optimizer of its config."""

    def __init__(self, cell: Cell, folder: Path):
        super().__init__(cell.but(path="ours", precision="fp32"), folder)
        self.plain = plain_method(self.model)
        parameters = list(self.plain.p.values())
        self.optimizer = build_optimizer(parameters, self.trainer.cfg.OPTIM)

    def prepare(self) -> None:
        """Do nothing: each step computes the same."""

    def step(self) -> None:
        self.plain.train()
        self.plain.step(self.images, self.labels, self.optimizer)

    def classes(self) -> None:
        self.plain.eval()

    def test(self) -> None:
        with torch.no_grad():
            self.plain(self.test_images)


# How it is measured ------------------------------------------------------------------------------


class WithoutModules(contextlib.nullcontext[None]):
    """Stands in for the counter's record of where in the modules a call is."""

    parents = {"Global"}


def counter() -> FlopCounterMode:
    """Make torch's counter of FLOPs, which does not know the attention of CPUs by itself."""

    def forward(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(
        grad: Any, q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **options: Any
    ) -> int:
        return sdpa_backward_flop_count(grad, q, k, v)

    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    made = FlopCounterMode(display=False, custom_mapping=mapping)
    # It would also hook into all modules, which fails where one returns a parameter without
    # gradients being computed; the total needs no modules.
    made.mod_tracker = WithoutModules()  # type: ignore[assignment]
    return made


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the machine's rate of multiplying matrices: FLOP/s."""
    rows, inner, columns = RATE_SHAPE
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    a, b = a.to(dtype), b.to(dtype)
    times = [timed(lambda: a @ b, device)[0] for _ in range(RATE_REPEATS + 2)]
    return 2 * rows * inner * columns / statistics.median(times[2:])


def timed(act: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Return the seconds until the device is done, and until the call returned."""
    synchronize(device)
    start = time.perf_counter()
    act()
    returned = time.perf_counter()
    synchronize(device)
    return time.perf_counter() - start, returned - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Memory:
    """The peak of what is allocated beyond what was there at ``reset``, in bytes.

    On a CPU that is resident memory: what the process frees to its own heap counts until then.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return
        with contextlib.suppress(OSError, AttributeError):  # not Linux, or no glibc
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        self.before = status("VmRSS")

    @property
    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return max(0, status("VmHWM") - self.before)


def status(name: str) -> int:
    """Read a size of this process in bytes; where /proc is missing, the peak so far."""
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(found[1]) * 1024


def limit_memory(free: int) -> None:
    """Have allocations fail where they would make the machine swap."""
    if sys.platform == "linux":
        limit = status("VmData") + free
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


class Subject:
    """What is measured, and what has been found out about it."""

    def __init__(self, cell: Cell, folder: Path):
        self.it = (Plain if cell.path == "plain" else Ours)(cell, folder)
        self.n_batches = cell.test_batches or 1
        self.seen: set[str] = set()

    def about(self) -> dict[str, Any]:
        it = self.it
        return {
            "learned": it.learned,
            "batch": it.batch,
            "test_batch": it.test_batch,
            "no_step": it.no_step,
            "left_out": left_out(it.cell),
            "resident": status("VmRSS"),
            "computes_in": str(it.computes_in).removeprefix("torch."),
            "device": device_name(it.device),
            "rate": matrix_rate(it.computes_in, it.device),
        }

    def act(self, what: str) -> dict[str, Any]:
        """Do it, the first time with a count of FLOPs and of memory."""
        act = self.step if what == "step" else self.evaluation
        if what in self.seen:
            return act()
        self.seen.add(what)
        if what == "step":
            self.it.prepare()
        memory = Memory(self.it.device)
        with counter() as counted:
            found = act()
        return {**found, "flops": counted.get_total_flops(), "peak": memory.peak}

    def step(self) -> dict[str, Any]:
        seconds, host = timed(self.it.step, self.it.device)
        return {"seconds": seconds, "host_seconds": host}

    def evaluation(self) -> dict[str, Any]:
        """Take the class features and one batch; the other batches cost the same again."""
        classes, _ = timed(self.it.classes, self.it.device)
        batch, host = timed(self.it.test, self.it.device)
        return {
            "seconds": classes + self.n_batches * batch,
            "class_seconds": classes,
            "batch_seconds": batch,
            "host_seconds": host,
        }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def answer(write: Callable[[str], Any], act: Callable[[], dict[str, Any]]) -> bool:
    """Write what ``act`` returns as JSON, or how the machine failed; return whether it did not."""
    try:
        found = act()
    except Exception as error:  # whatever a method raises is shown in its cell
        found = {"failed": failure(error)}
    write(json.dumps(found) + "\n")
    return "failed" not in found


def failure(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    is_memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    if is_memory or (fault := machine_fault(error)) and "memory" in str(fault):
        return "out of memory"
    return text[:200]


def main() -> None:
    cell, free = Cell.of(json.loads(sys.argv[1])), int(sys.argv[2])
    answers, sys.stdout = sys.stdout, sys.stderr  # what is logged is no answer

    def write(text: str) -> None:
        answers.write(text)
        answers.flush()

    if not torch.cuda.is_available():
        limit_memory(free)
    trainers.base.N_TEMPLATES = 1  # of frozen features, computed once: how many costs no step
    with tempfile.TemporaryDirectory() as folder:
        made: list[Subject] = []

        def begin() -> dict[str, Any]:
            made.append(Subject(cell, Path(folder)))
            return made[0].about()

        if answer(write, begin):
            for line in sys.stdin:
                if not answer(write, lambda: made[0].act(line.strip())):  # noqa: B023
                    break


if __name__ == "__main__":
    main()
