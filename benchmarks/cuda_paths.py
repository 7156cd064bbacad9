"""Run what only a CUDA device runs: half precision, loss scaling, pinned memory, CUDA graphs.

    python -m benchmarks.cuda_paths

One line for each check, and exit code 1 where one fails. It takes a few minutes and needs no
download: ViT-Mini-2 learns a few digits. Without a CUDA device it says so and does nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import clip
import train
from benchmarks.cost.__main__ import methods_of
from benchmarks.cost.cells import Cell
from benchmarks.cost.measure import Ours
from dassl.command import Parser, say
from dassl.command import run as run_command
from dassl.config import get_cfg_default
from dassl.data import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.engine.optimize import PRECISIONS, optimizer_step
from trainers.trainer import MethodTrainer

ROOT = Path(__file__).parents[1]
NODES = {"MaPLe": "MAPLE", "CLIPLoRA": "CLIPLORA"}
# How many images each of MetaPrompt's two halves has decides whether there is a step.
WAITING = ("MetaPrompt",)
ACCURACY_RANGE = 10.0  # points; a few digits and two epochs
TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of features, relative


def run(trainer: str, folder: Path, name: str, *pairs: str, stop: bool = False) -> Path:
    """Train a few steps and return the run's folder.

    Args:
        folder: of the data and the runs.
        name: of the run; the same name resumes it.
        pairs: KEY, VALUE, ... of the config.
        stop: interrupt it after its first epoch.
    """
    output = folder / name
    configs = ROOT / "configs"
    command = ["--trainer", trainer, "--seed", "1", "--root", str(folder / "data")]
    command += ["--output-dir", str(output)]
    command += ["--dataset-config-file", str(configs / "datasets" / "digits.yaml")]
    command += ["--config-file", str(configs / "trainers" / trainer / "vit_mini.yaml")]
    command += ["DATASET.NUM_SHOTS", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", *pairs]

    def before_epoch(self: Any) -> None:
        if stop and self.epoch == 1:
            raise KeyboardInterrupt

    said = io.StringIO()
    with (
        mock.patch.object(MethodTrainer, "before_epoch", before_epoch),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        code = train.main(command)
    expect(code == (130 if stop else 0), f"{name}: exit code {code}: {said.getvalue()[-300:]}")
    return output


def expect(condition: bool, reason: str) -> None:
    if not condition:
        raise AssertionError(reason)


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Read what a run has learned at its end."""
    (path,) = output.glob("*/model.pth.tar-*")
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def expect_equal(first: Path, second: Path) -> str:
    """Expect two runs to have learned the same, bit by bit."""
    ones, others = weights(first), weights(second)
    differing = [name for name in ones if not torch.equal(ones[name], others[name])]
    expect(ones.keys() == others.keys() and not differing, f"{len(differing)} tensors differ")
    return f"{len(ones)} tensors equal"


def maple(folder: Path, name: str, prec: str, *pairs: str, stop: bool = False) -> Path:
    options = ("TRAINER.MAPLE.PREC", prec, "OPTIM.MAX_EPOCH", "2")
    return run("MaPLe", folder, name, *options, *pairs, stop=stop)


def accuracy(output: Path) -> float:
    return json.loads((output / "results.json").read_text(encoding="utf-8"))["accuracy"]


def check_precision(folder: Path, prec: str) -> str:
    """Check that training gives finite fp32 tensors and about the accuracy of fp32."""
    output = maple(folder, prec, prec)
    learned = weights(output).values()
    expect(all(t.dtype == torch.float32 for t in learned), "what is learned is not fp32")
    expect(all(t.isfinite().all() for t in learned), "what is learned is not finite")
    expected, found = accuracy(maple(folder, "fp32", "fp32")), accuracy(output)
    expect(abs(found - expected) <= ACCURACY_RANGE, f"accuracy {found}, with fp32 {expected}")
    return f"accuracy {found:.1f}, with fp32 {expected:.1f}"


def check_scaler(folder: Path, prec: str) -> str:
    """Check that a resumed run has the loss's scale, and ends as a whole one."""
    stopped = maple(folder, f"{prec}-resumed", prec, stop=True)
    path = stopped / "resume.pth.tar"
    kept = torch.load(path, map_location="cpu", weights_only=True)["scaler"]
    expect(bool(kept) and kept["scale"] > 0, f"scaler in the resume file: {kept}")
    same = expect_equal(maple(folder, f"{prec}-resumed", prec), maple(folder, prec, prec))
    return f"scale {kept['scale']:g}, {same}"


def check_overflow(folder: Path) -> str:
    """Check that a step whose gradients overflow changes nothing but the scale."""
    value = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer, scaler = torch.optim.SGD([value], lr=1.0), torch.amp.GradScaler("cuda")
    optimizer_step([(value * torch.inf).sum()], [optimizer], scaler)
    expect(bool((value == 1).all()), f"the parameter is {value.tolist()}")
    expect(scaler.get_scale() == 2.0**15, f"the scale is {scaler.get_scale()}")
    optimizer_step([value.sum()], [optimizer], scaler)
    expect(bool((value == 0).all()), f"the next step left {value.tolist()}")
    return "skipped, and the scale halved"


def check_random_states(folder: Path) -> str:
    """Check that a resumed run draws the dropout on the GPU that the whole run drew."""
    options = ("TRAINER.CLIPLORA.N_ITERS", "5", "TRAINER.CLIPLORA.PREC", "fp32")
    whole = run("CLIPLoRA", folder, "lora", *options)
    run("CLIPLoRA", folder, "lora-resumed", *options, stop=True)
    return expect_equal(run("CLIPLoRA", folder, "lora-resumed", *options), whole)


def check_pinned(folder: Path) -> str:
    """Check that batches are in pinned memory and loading processes change nothing."""
    maple(folder, "fp32", "fp32")
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS = (32, 32), ["normalize"]
    items = [Datum(str(path)) for path in sorted((folder / "data").rglob("*.png"))[:8]]
    expect(bool(items), "no pictures were drawn")
    loader = build_data_loader(
        cfg,
        data_source=items,
        batch_size=4,
        tfm=build_transform(cfg, is_train=False),
        is_train=False,
    )
    expect(next(iter(loader))["img"].is_pinned(), "the images are not in pinned memory")
    none, two = (
        maple(folder, f"workers{n}", "fp32", "DATALOADER.NUM_WORKERS", n) for n in ("0", "2")
    )
    return expect_equal(none, two)


def steps(method: str, folder: Path, *options: str, n_steps: int = 4) -> list[torch.Tensor]:
    """Return what is learned after steps with random weights and images, the same each time."""
    torch.manual_seed(0)
    cell = Cell(method, 10, batch=4, precision="bf16", options=options, model="small")
    subject = Ours(cell, folder)
    for _ in range(n_steps):
        subject.step()
    return [tensor.detach().clone() for tensor in subject.model.learned().values()]


def check_waiting(folder: Path) -> str:
    """Check that training steps do not wait for the device, as they would to read a number."""
    waiting = []
    methods = [method for method in trained(folder) if method not in WAITING]
    for method in methods:
        subject = Ours(Cell(method, 10, batch=4, precision="bf16", model="small"), folder)
        for _ in range(2):
            subject.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            subject.step()
        except RuntimeError as error:
            waiting.append(f"{method} ({str(error).splitlines()[0]})")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    expect(not waiting, f"waiting: {', '.join(waiting)}")
    return f"{len(methods)} methods"


def check_key(folder: Path, key: str, tolerance: float, methods: Sequence[str] = ()) -> str:
    """Check that methods, by default all, learn the same with a key that changes no result."""
    worst, where = 0.0, "all"
    for method in methods or trained(folder):
        for one, other in zip(
            steps(method, folder), steps(method, folder, key, "True"), strict=True
        ):
            difference = float((one - other).abs().max() / one.abs().max().clamp_min(1e-6))
            if difference > worst:
                worst, where = difference, method
    expect(worst <= tolerance, f"relative difference {worst:.1e} of {where}")
    return f"largest relative difference {worst:.1e} ({where})"


def check_graph_with_evaluations(folder: Path) -> str:
    """Check that a run with a CUDA graph, which evaluates in between, ends as one without."""
    options = ("TEST.FINAL_MODEL", "best_val")
    used = ("MODEL.CUDA_GRAPH", "True", "DATALOADER.NUM_WORKERS", "2")  # a thread pins batches
    graph = maple(folder, "graph", "fp32", *options, *used)
    return expect_equal(graph, maple(folder, "no-graph", "fp32", *options))


@cache
def trained(folder: Path) -> list[str]:
    """Name the registered methods that take training steps."""
    names = methods_of(None)
    return [n for n in names if not Ours(Cell(n, 10, batch=4, model="small"), folder).no_step]


def check_features(folder: Path, dtype: torch.dtype) -> str:
    """Check that both towers in half precision agree with fp32 up to its rounding."""
    torch.manual_seed(0)
    images, ids = torch.randn(4, 3, 32, 32), clip.tokenize(["a dog", "a photo of a red car."])
    found = []
    for kind in (torch.float32, dtype):
        model = clip.load_model("ViT-Mini-2", "cuda").eval().requires_grad_(False)
        clip.convert_weights(model, kind)
        pair = model.encode_image(images.cuda()), model.encode_text(ids.cuda())
        found.append([part.float() for part in pair])
    differences = [float((a - b).norm() / a.norm()) for a, b in zip(*found, strict=True)]
    expect(max(differences) <= TOLERANCES[dtype], f"relative differences {differences}")
    return f"largest relative difference {max(differences):.1e}"


def checks() -> dict[str, Callable[[Path], str]]:
    """Return what there is to check, by name."""
    low = [prec for prec in PRECISIONS if prec != "fp32"]
    found: dict[str, Callable[[Path], str]] = {
        f"training in {prec}": partial(check_precision, prec=prec) for prec in low
    }
    for prec in ("fp16", "amp"):
        found[f"GradScaler resumes in {prec}"] = partial(check_scaler, prec=prec)
    found["GradScaler skips an overflow"] = check_overflow
    found["random states on resume"] = check_random_states
    found["pinned memory"] = check_pinned
    for dtype in TOLERANCES:
        name = str(dtype).removeprefix("torch.")
        found[f"features in {name}"] = partial(check_features, dtype=dtype)
    found["steps wait for nothing"] = check_waiting
    found["CUDA graph"] = partial(check_key, key="MODEL.CUDA_GRAPH", tolerance=0.0)
    found["CUDA graph with evaluations"] = check_graph_with_evaluations
    found["compiled blocks"] = partial(
        check_key, key="MODEL.COMPILE", tolerance=5e-2, methods=("MaPLe",)
    )
    return found


def main() -> int:
    Parser(description=__doc__.splitlines()[0]).parse_args()
    if not torch.cuda.is_available():
        say("skipped: torch sees no CUDA device")
        return 0
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, check in checks().items():
            try:
                say(f"ok    {name}: {check(Path(folder))}")
            except Exception as error:  # whatever a path that has never run raises
                failed += 1
                text = " ".join(f"{type(error).__name__}: {error}".split())
                say(f"FAIL  {name}: {text[:400]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
