"""``python -m experiments plan``: what a run will take."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from benchmarks.cost.measure import VIT_B16
from clip import CLIP
from experiments import plan
from experiments.plan import Plan, report, size, trainer_to_plan
from experiments.table import known_methods
from tests.embedded import draw_small
from tests.trainers import toy

WITHOUT_STEPS = {
    *("ZeroshotCLIP", "ZeroshotCLIP2", "StandardizedCLIP"),
    *("LinearProbe", "LPpp", "TipAdapter", "TipAdapterF"),
}


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
    assert not (tmp_path / "split_fewshot").exists()


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_dataset_yet_to_be_drawn_is_planned_as_when_it_is(capsys, tmp_path):
    command = f"--trainer CoPrompt --dataset digits --shots 3 --root {tmp_path / 'data'}".split()
    assert plan.main(command) == 0
    before = capsys.readouterr().out.splitlines()
    assert before[0] == "CoPrompt, ViT-Mini-2, Digits: 5 classes, 15 images, batch 4"
    assert not files_below(tmp_path)
    draw_small(tmp_path / "data", "Digits", val=1, test=1)
    drawn = files_below(tmp_path)
    capsys.readouterr()  # what drawing says
    assert plan.main(command) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == before[:-1]  # all but the time
    assert files_below(tmp_path) == drawn


def test_reading_a_folder_of_images_leaves_no_file_there(capsys, tmp_path):
    for path in [tmp_path / name / f"{i}.png" for name in "ab" for i in range(6)]:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    before = files_below(tmp_path)
    command = f"--trainer CoOp --dataset image_folder --backbone ViT-Mini-2 --root {tmp_path}"
    assert plan.main([*command.split(), "--protocol", "few_shot", "--shots", "2"]) == 0
    assert ": 2 classes, 4 images, batch 4" in capsys.readouterr().out
    assert files_below(tmp_path) == before


def test_test_pictures_alone_are_not_planned(capsys, tmp_path):
    root = str(tmp_path / "data")
    assert plan.main(["--trainer", "CoOp", "--dataset", "emoji_v2", "--root", root]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: DATASET.NAME: expected a dataset with training images")


def test_a_missing_dataset_asks_for_classes(capsys, tmp_path):
    command = "--trainer CoOp --backbone ViT-Mini-2 --dataset caltech101 --root".split()
    errors = []
    for root in (tmp_path, tmp_path / "none"):
        assert plan.main([*command, str(root)]) == 2
        errors.append(capsys.readouterr().err.splitlines()[-1])
    assert errors[0].startswith("error: dataset Caltech101 is missing")
    assert errors[0].endswith("; or give --classes")
    assert errors[1].startswith("error: --root: expected a folder, or --classes instead, got")
    assert plan.main([*command, str(tmp_path / "none"), "--classes", "3"]) == 0


@pytest.mark.parametrize("trainer", sorted({*known_methods()} - WITHOUT_STEPS))
def test_every_method_that_is_trained_in_steps(backbone, tmp_path, trainer):
    found = planned(backbone, tmp_path, trainer, classes=3)
    assert (found.classes, found.images) == (3, 21)
    assert 0 <= found.kept_bytes < found.step_bytes


@pytest.mark.parametrize("trainer", ["CoOp", "VPT"])
def test_gradients_of_parts_are_counted_as_of_one_part(backbone, tmp_path, trainer):
    key = "DATALOADER.TRAIN_X.BATCH_SIZE"
    parts = planned(backbone, tmp_path, trainer, key, "8", "OPTIM.ACCUMULATE", "4")
    part = planned(backbone, tmp_path, trainer, key, "2")
    assert parts.kept_bytes == part.kept_bytes


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Have one second pass for each image that any CLIP encodes; the list holds their number."""
    count, encode = [0], CLIP.encode_image

    def counted(self, images, *rest):
        count[0] += len(images)
        return encode(self, images, *rest)

    monkeypatch.setattr(CLIP, "encode_image", counted)
    monkeypatch.setattr(plan.time, "perf_counter", lambda: float(count[0]))
    return count


@pytest.mark.parametrize(
    ("trainer", "views", "n_views", "in_a_step"),
    [
        ("CoOp", 0, 0, 4),
        ("CoOp", 2, 2, 0),
        ("CoOp", 5, 3, 0),  # as many views as epochs are ever encoded
        ("PromptSRC", 0, 0, 8),  # with prompts and without
        ("PromptSRC", 2, 2, 4),
        ("CoPrompt", 2, 2, 4),  # which sees each image twice
        ("VPT", 2, 0, 4),
    ],
)
def test_images_are_encoded_as_often_as_in_training(
    backbone, tmp_path, encoded, trainer, views, n_views, in_a_step
):
    pairs = ["DATALOADER.VIEWS", str(views), "OPTIM.MAX_EPOCH", "3", "TEST.NO_TEST", "True"]
    pairs += ["DATALOADER.TEST.BATCH_SIZE", "7", "DATALOADER.FEATURES_MB", "0"]
    found = planned(backbone, tmp_path, trainer, *pairs, classes=None)
    assert (found.views, found.seconds) == (n_views, in_a_step)
    encoded[0] = 0
    train.main(toy.command_line(trainer, tmp_path, backbone, tmp_path / "out", *pairs))
    assert found.views_seconds + found.total_steps * found.seconds == encoded[0] > 0


def test_known_features_leave_the_memory_of_the_image_tower_out(backbone, tmp_path):
    key = "DATALOADER.VIEWS"
    many = "DATALOADER.TRAIN_X.BATCH_SIZE", "64"
    encoding, known = (planned(backbone, tmp_path, "CoOp", key, n, *many) for n in ("0", "1"))
    assert known.step_bytes < encoding.step_bytes
    assert known.kept_bytes == encoding.kept_bytes  # no gradients of images in either
    assert encoding.views_bytes == 0 < known.views_bytes


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
    known = Plan(*numbers, seconds=1.5, views=2, views_bytes=360_000_000, views_seconds=90.0)
    lines = report(cfg, known).splitlines()
    assert (
        lines[5] == "views:   2 of each image, encoded once: 0:01:30 in all, 360.0 MB for a batch"
    )
    assert "0:06:30 in all with the views, without" in lines[6]


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
