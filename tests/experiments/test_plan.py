"""``python -m experiments plan``: what a run will take."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from benchmarks.cost.measure import VIT_B16
from experiments import plan
from experiments.plan import Plan, report, size, trainer_to_plan
from tests.trainers import toy


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toy.write_backbone(tmp_path_factory.mktemp("clip") / "tiny.pt")


def planned(backbone: str, tmp_path: Path, trainer: str, *pairs: str, classes: int | None = 10):
    arguments = toy.command_line(trainer, tmp_path, backbone, tmp_path / "out", *pairs)
    cfg = train.setup_cfg(train.build_parser().parse_args(arguments))
    found = trainer_to_plan(cfg, classes, None if classes is None else 7 * classes)
    before = {name: tensor.clone() for name, tensor in found.model.learned().items()}
    result = plan.plan(found)
    assert not all(torch.equal(before[name], t) for name, t in found.model.learned().items())
    assert not (tmp_path / "out").exists()
    return result


def test_numbers_of_a_run_without_its_dataset(backbone, tmp_path):
    found = planned(backbone, tmp_path, "CoOp")
    assert (found.classes, found.images, found.batch) == (10, 70, 4)
    assert found.learned == 3 * 32  # N_CTX, text width
    assert (found.steps, found.epochs, found.total_steps) == (17, 2, 34)  # the last is not full
    weights = torch.load(backbone, weights_only=True)
    n_values = sum(tensor.numel() for tensor in weights.values()) - 1  # the head width
    assert found.model_bytes - 4 * (n_values + found.learned) in range(0, 1000)
    assert 0 < found.kept_bytes == found.whole_bytes < found.step_bytes
    assert found.seconds > 0


def test_recomputation_takes_less_memory(backbone, tmp_path):
    whole, again = (
        planned(backbone, tmp_path, "CoOp", "MODEL.RECOMPUTE", choice, classes=100)
        for choice in ("never", "always")
    )
    assert again.kept_bytes < again.whole_bytes == whole.kept_bytes
    assert again.step_bytes < whole.step_bytes


def test_a_dataset_that_is_there_says_its_own_numbers(backbone, tmp_path):
    found = planned(backbone, tmp_path, "CLIPLoRA", "DATASET.NUM_SHOTS", "2", classes=None)
    assert (found.classes, found.images) == (4, 8)
    assert (found.steps, found.epochs, found.total_steps) == (2, 1, 2)  # N_ITERS a shot


@pytest.mark.slow
def test_a_clip_of_openai_has_its_architecture_without_a_download():
    model = plan.random_clip("ViT-B/16")
    assert replace(model.config, vision_head_width=None) == VIT_B16
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_report(backbone, tmp_path):
    arguments = toy.command_line("CoOp", tmp_path, backbone, tmp_path)
    cfg = train.setup_cfg(train.build_parser().parse_args(arguments))
    numbers = (100, 1600, 32, 8192, 599_000_000, 2_500_000_000, 10**9, 8 * 10**9, 50, 4, 200)
    lines = report(cfg, Plan(*numbers, seconds=1.5)).splitlines()
    assert lines[0].endswith("ColourPatches: 100 classes, 1600 images, batch 32")
    assert lines[1:5] == [
        "learned: 8,192 values",
        "memory:  599.0 MB for the model, 2.5 GB for a step",
        "         (estimate for gradients: 1.0 GB with recomputation, 8.0 GB without)",
        "steps:   200 in 4 epochs of 50",
    ]
    assert lines[5].startswith("time:    1.5 s a step, 0:01:15 an epoch, 0:05:00 in all")
    assert size(1234) == "0.0 MB"


def test_the_command_prints_the_plan_alone(capsys):
    arguments = "--trainer CoOp --dataset shapes --classes 6 --images 40".split()
    assert plan.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "CoOp, ViT-Mini-2, Shapes: 6 classes, 40 images, batch 32"
    assert re.fullmatch(r"learned: [\d,]+ values", lines[1]) and len(lines) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--trainer ZeroshotCLIP",
            "--trainer: expected a method that is trained in steps, got Zer",
        ),
        ("--trainer LinearProbe", "--trainer: expected a method that is trained in steps, got Lin"),
        ("--trainer CoOp --overrides MODEL.RECOMPUTE often", "MODEL.RECOMPUTE: expected one of"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, arguments, message):
    assert plan.main([*arguments.split(), "--dataset", "shapes", "--classes", "6"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {message}")


def test_images_without_classes_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        plan.main("--trainer CoOp --dataset shapes --images 6".split())
    assert "--images: expected together with --classes" in capsys.readouterr().err
