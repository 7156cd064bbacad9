"""What gradients keep in memory, the estimate of it, and computing blocks again instead."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import clip.memory
from clip import CLIP, CLIPConfig, Layer, PromptTokens, convert_weights
from clip.memory import Kept
from dassl.utils.memory import PeakMemory, available_bytes, free_bytes, left_in_groups

TEXT_WIDTH, VISION_WIDTH, DEPTH, M = 32, 48, 6, 2
NAMES = [f"{color} {shape}" for color in ("red", "blue", "grey") for shape in ("dog", "cat", "car")]


def make_model() -> CLIP:
    torch.manual_seed(0)
    config = CLIPConfig(
        embed_dim=24,
        image_resolution=32,
        vision_layers=DEPTH,
        vision_width=VISION_WIDTH,
        vision_patch_size=8,
        context_length=77,
        vocab_size=49408,
        text_width=TEXT_WIDTH,
        text_layers=DEPTH,
        head_width=16,
    )
    return CLIP(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> CLIP:
    return make_model()


def set_recompute(model: CLIP, choice: str) -> list[Kept]:
    """Choose for both towers; return what they will tell."""
    told: list[Kept] = []
    for transformer in model.transformers:
        transformer.recompute, transformer.observe = choice, told.append
    return told


class Dropping(nn.Module):
    """An adapter that drops values at random."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_in, 4), nn.Dropout(0.5), nn.Linear(4, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def inputs(width: int, text: bool, kind: str) -> list[Layer | Tensor | None]:
    """Make layers of a tower: prompts alone, or prompts and adapters."""
    shape = (2, 1, M, width) if kind == "variants" and text else (M, width)
    prompts = [torch.randn(shape) for _ in range(3)]
    if kind != "adapters":
        return [prompt.requires_grad_() for prompt in prompts]
    made = {
        name: Dropping(width, n * width) for name, n in {"qkv": 3, "mlp": 1, "block": 1}.items()
    }
    return [None, Layer(prompts[0].requires_grad_(), **made), Layer(out=Dropping(width, width))]


def tensors_of(layers: list[Layer | Tensor | None]) -> list[Tensor]:
    found: list[Tensor] = []
    for entry in layers:
        if isinstance(entry, Tensor):
            found.append(entry)
        elif entry is not None:
            for field in (entry.prompts, entry.qkv, entry.out, entry.mlp, entry.block):
                found += [field] if isinstance(field, Tensor) else []
                found += field.parameters() if isinstance(field, nn.Module) else []
    return found


def output(
    model: CLIP, tower: str, layers: list[Layer | Tensor | None], names: list[str] = NAMES
) -> Tensor:
    """Encode the class names, or 4 images."""
    if tower == "text":
        context = " ".join(["X"] * M) if layers[0] is not None else "of"
        n_prompts = M if layers[0] is not None else 0
        return model.encode_text(PromptTokens.from_names(names, context, n_prompts), layers)
    torch.manual_seed(1)
    return model.encode_image(torch.randn(4, 3, 32, 32), layers)


@pytest.mark.parametrize("kind", ["prompts", "variants", "adapters"])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_recomputation_changes_no_bit(model, tower, kind):
    width = TEXT_WIDTH if tower == "text" else VISION_WIDTH
    layers = inputs(width, tower == "text", kind)
    results = []
    for choice in ("never", "always"):
        told = set_recompute(model, choice)
        torch.manual_seed(2)  # of the dropout
        features = output(model, tower, layers)
        results.append([features, *torch.autograd.grad(features.sin().sum(), tensors_of(layers))])
        assert [kept.n_bytes < kept.whole for kept in told] == [choice == "always"]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_recomputation_has_second_derivatives(model):
    prompt = torch.randn(M, VISION_WIDTH).requires_grad_()
    found = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for choice in ("never", "always"):
            set_recompute(model, choice)
            features = output(model, "vision", [prompt])
            (gradient,) = torch.autograd.grad(features.sin().sum(), prompt, create_graph=True)
            found.append(torch.autograd.grad(gradient.square().sum(), prompt)[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0])


def saved_bytes(
    model: CLIP, tower: str, layers: list[Layer | Tensor | None], names: list[str] = NAMES
) -> int:
    """Sum up the memory of the tensors that autograd keeps, without those of the model."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = output(model, tower, layers, names)
    assert features.requires_grad
    return sum(kept[at].untyped_storage().nbytes() for at in kept.keys() - weights)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_the_estimate_is_near_what_is_saved(tower, start):
    model = make_model()
    told = set_recompute(model, "never")
    width = TEXT_WIDTH if tower == "text" else VISION_WIDTH
    layers: list[Layer | Tensor | None] = [None] * start
    layers.append(torch.randn(M, width).requires_grad_())
    saved = saved_bytes(model, tower, layers)
    assert 0.8 < told[0].n_bytes / saved < 1.5
    assert told[0].n_bytes == told[0].whole


def test_the_estimate_knows_what_attention_fills_up():
    model = make_model()
    told = set_recompute(model, "never")
    names = [*NAMES, "dog " * 20]
    saved = saved_bytes(model, "text", [torch.randn(M, TEXT_WIDTH).requires_grad_()], names)
    assert 0.8 < told[0].whole / saved < 1.25


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_recomputation_frees_what_the_estimate_says(model, tower):
    width = TEXT_WIDTH if tower == "text" else VISION_WIDTH
    prompt = torch.randn(M, width).requires_grad_()
    peaks, told = {}, {}
    for choice in ("never", "always"):
        told[choice] = set_recompute(model, choice)
        with PeakMemory() as memory:
            torch.autograd.grad(output(model, tower, [prompt]).sum(), prompt)
        peaks[choice] = memory.peak
    freed = told["never"][0].n_bytes - told["always"][0].n_bytes
    assert 0.75 < freed / (peaks["never"] - peaks["always"]) < 1.3


def test_nothing_is_kept_before_the_first_learned_tensor(model):
    told = set_recompute(model, "never")
    with torch.no_grad():
        output(model, "vision", [torch.randn(M, VISION_WIDTH)])
    output(model, "vision", [])
    assert told == []
    assert not model.encode_image(torch.randn(1, 3, 32, 32)).requires_grad
    for start in (0, 2, 5):
        prompt = torch.randn(M, VISION_WIDTH).requires_grad_()
        output(model, "vision", [*[None] * start, prompt])
    all_blocks, without_two, last = [kept.whole for kept in told]
    of_block = (all_blocks - without_two) // 2
    assert all_blocks == (DEPTH - 1) * of_block + last
    assert 0 < last < of_block / 2  # only the class token goes through the rest of the last block


def test_auto_keeps_what_is_little_and_what_fits(model, monkeypatch):
    prompt = torch.randn(M, VISION_WIDTH).requires_grad_()

    def recomputes() -> bool:
        told = set_recompute(model, "auto")
        output(model, "vision", [prompt])
        return told[0].n_bytes < told[0].whole

    whole = set_recompute(model, "never")
    output(model, "vision", [prompt])
    for free, expected in ((3 * whole[0].whole - 9, True), (3 * whole[0].whole + 9, False)):
        monkeypatch.setattr(clip.memory, "free_bytes", lambda device, free=free: free)
        assert not recomputes()  # it is little
        with monkeypatch.context() as patch:
            patch.setattr(clip.memory, "NEGLIGIBLE", 1000)
            assert recomputes() is expected


def test_peak_memory_counts_what_is_alive_at_the_same_time():
    before = torch.ones(10_000)
    with PeakMemory() as memory:
        first = before + 1  # 40,000 bytes
        view = first[:100]
        second = first + before
        assert memory.now == 80_000
        del first
        second.mul_(2)
        assert memory.now == 80_000  # the view holds it
        del view, second
        assert memory.now == 0
        torch.ones(5).sum()
    assert memory.peak == 80_000


HOLES = """
import torch
from pathlib import Path
from resource import getpagesize
from dassl.utils.memory import compact_heap

def resident():
    return getpagesize() * int(Path("/proc/self/statm").read_text().split()[1])

torch.ones(5 * 2**20)  # freed, it has glibc take the next ones from its heap
compact = {compact}
if compact:
    compact_heap()
before = resident()
pairs = [(torch.ones(2**20), torch.ones(2**18)) for _ in range(50)]
kept = [small for _, small in pairs]
del pairs
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what another heap keeps is unknown")
def test_a_compact_heap_has_no_holes():
    def resident(compact: bool) -> float:
        command = [sys.executable, "-c", HOLES.format(compact=compact)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(done.stdout) / 2**20  # MiB

    assert resident(compact=False) > 200  # of which 50 are alive
    assert resident(compact=True) < 60


def test_what_is_computed_again_has_a_compact_heap(model, monkeypatch):
    told = []
    monkeypatch.setattr(clip.memory, "compact_heap", lambda: told.append("compact"))
    prompt = torch.randn(M, VISION_WIDTH).requires_grad_()
    for recompute, expected in (("never", []), ("auto", []), ("always", ["compact"])):
        set_recompute(model, recompute)
        output(model, "vision", [prompt])
        assert told == expected


def test_free_memory_is_what_system_and_control_groups_leave(tmp_path: Path):
    (tmp_path / "meminfo").write_text("MemTotal: 90 kB\nMemAvailable:   50 kB\nBuffers: 1 kB\n")
    assert available_bytes(str(tmp_path / "meminfo")) == 51_200
    groups = tmp_path / "cgroup"
    for folder, names, cache, line in (
        ("", ("memory.max", "memory.current"), "inactive_file", "0::/job/step"),
        (
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            "total_inactive_file",
            "3:cpu:/x\n4:hugetlb,memory:/job/step",
        ),
    ):
        groups.write_text(f"{line}\n")
        for inner, values in {"job": ("5000", "4000"), "job/step": ("max", "100")}.items():
            place = tmp_path / "fs" / folder / inner
            place.mkdir(parents=True, exist_ok=True)
            for name, value in zip(names, values, strict=True):
                (place / name).write_text(f"{value}\n")
            (place / "memory.stat").write_text(f"anon 7\n{cache} 300\n")
        left = list(left_in_groups(str(groups), str(tmp_path / "fs")))
        assert [each for each in left if each < float("inf")] == [1300]
    assert list(left_in_groups(str(tmp_path / "missing"))) == []
    assert 0 < free_bytes(torch.device("cpu"))


def test_bf16_stays_near_fp32():
    exact, half = make_model(), make_model()
    convert_weights(half, torch.bfloat16)
    for tower, width in (("text", TEXT_WIDTH), ("vision", VISION_WIDTH)):
        prompt = torch.randn(M, width).requires_grad_()
        found = []
        for model in (exact, half):
            features = output(model, tower, [prompt]).float()
            found.append((features, torch.autograd.grad(features.sin().sum(), prompt)[0]))
        for a, b in zip(*found, strict=True):
            assert (a - b).norm() <= 0.02 * a.norm()
