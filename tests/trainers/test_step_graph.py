"""Steps that are recorded; what only a GPU shows is in benchmarks/cuda_paths.py."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from dassl.engine.optimize import Update
from tests.trainers.tiny import build, learned, tiny_clip
from trainers.maple import MaPLe
from trainers.metaprompt import MetaPrompt
from trainers.proda import ProDA
from trainers.step_graph import StepGraph

IMAGES, LABELS = torch.linspace(-1, 1, 3 * 3 * 16 * 16).view(3, 3, 16, 16), torch.tensor([0, 2, 1])


@pytest.fixture
def replayed(monkeypatch):
    """Let CPUs record: what is recorded is computed then, and replaying it only counts."""
    counts = [0]

    @contextmanager
    def record(graph, capture_error_mode):
        yield

    def replay():
        counts[0] += 1

    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=replay))
    return counts


def two_steps(method, take=None):
    """Return what is learned in two steps on the same batch, and who took them."""
    model = build(method, tiny_clip(layers=12)).train()
    optimizer = torch.optim.SGD(learned(model).values(), lr=0.1)
    step = model.step if take is None else take(model)
    for _ in range(2):
        logits, terms = step(IMAGES, LABELS, Update(optimizer))
    assert logits.shape == (3, 3) and all(term.isfinite() for term in terms.values())
    return [tensor.detach() for tensor in learned(model).values()], step


def test_a_recorded_step_changes_what_a_step_changes(replayed):
    expected, _ = two_steps(MaPLe)
    found, step = two_steps(MaPLe, StepGraph)
    assert all(map(torch.equal, found, expected)) and replayed == [1]
    optimizer = torch.optim.SGD(learned(step.model).values(), lr=0.1)
    step(IMAGES, LABELS, Update(optimizer))
    step(IMAGES[:2], LABELS[:2], Update(optimizer))  # of another shape
    assert replayed == [2]
    step.start_epoch()
    step(IMAGES, LABELS, Update(optimizer))
    assert replayed == [2]


@pytest.mark.parametrize(
    ("method", "why"), [(ProDA, "draws on the CPU"), (MetaPrompt, "has a training step of its own")]
)
def test_what_cannot_be_recorded_trains_as_ever_and_says_so(method, why, replayed, caplog):
    caplog.set_level("INFO", "dassl")
    expected, _ = two_steps(method)
    found, step = two_steps(method, StepGraph)
    assert all(map(torch.equal, found, expected)) and replayed == [0]
    assert f"MODEL.CUDA_GRAPH: expected False for {method.__name__}, which {why}" in caplog.text


def test_a_step_that_waits_for_the_device_is_not_recorded(replayed, monkeypatch):
    @contextmanager
    def refuse(graph, capture_error_mode):
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    expected, _ = two_steps(MaPLe)
    found, step = two_steps(MaPLe, StepGraph)
    assert all(map(torch.equal, found, expected)) and replayed == [0]
    assert step.obstacle == (
        "cannot be recorded (operation not permitted when stream is capturing)"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_graph_needs_a_gpu(run):
    code, out = run("MaPLe", "run", "MODEL.CUDA_GRAPH", "True")
    assert code == 2
    assert "MODEL.CUDA_GRAPH: expected False without a CUDA device, got True" in out


def test_compiled_blocks_need_a_compiler_on_a_cpu(run, tmp_path):
    import torch._inductor.config as inductor

    with inductor.patch("cpp.cxx", (None, "/nonexistent/g++")):  # as with this CXX
        code, out = run("MaPLe", "run", "USE_CUDA", "False", "MODEL.COMPILE", "True")
    assert code == 2
    line = "error: MODEL.COMPILE: expected False without a C++ compiler, got True"
    assert out.splitlines() == [line]
    assert not (tmp_path / "run").exists() and not (tmp_path / "train").exists()


@pytest.mark.slow  # compiles C++ for half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_what_blocks_do():
    model = build(MaPLe, tiny_clip(layers=12)).train()
    found = []
    for compiled in (False, True):
        for transformer in model.clip.transformers if compiled else ():
            transformer.compile_blocks()
        logits, terms = model(IMAGES, LABELS)
        gradients = torch.autograd.grad(terms["loss_ce"], list(learned(model).values()))
        found.append([logits.detach(), *gradients])
    assert list(model.clip.state_dict()) == list(tiny_clip(layers=12).state_dict())
    for plain, other in zip(*found, strict=True):
        error = float((other - plain).norm() / plain.norm().clamp_min(1e-12))
        assert error < 1e-5, error
