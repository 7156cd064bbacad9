"""Preprocessing comes from the backbone where it is not set, and contradictions are reported."""

from __future__ import annotations

import json
import re
from typing import Any

import open_clip
import pytest
import yaml

import train
from clip.model import OPENAI_MEAN, OPENAI_STD
from dassl.config import get_cfg_default
from tests.dassl import toys  # noqa: F401  (registers a trainer for the public toolbox)
from tests.embedded import BACKBONE, SIZE
from trainers.trainer import TRANSFORMS

INPUT = ("SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD", "TRANSFORMS")


def input_of(*arguments: str) -> dict[str, Any]:
    """Read the five ``INPUT`` keys of a command line."""
    cfg = train.setup_cfg(train.build_parser().parse_args(arguments))
    assert cfg.is_frozen()
    return {key: cfg.INPUT[key] for key in INPUT}


def clip_input(size: int, **others: Any) -> dict[str, Any]:
    """Return what CLIP's models expect."""
    own = ((size, size), "bicubic", list(OPENAI_MEAN), list(OPENAI_STD), TRANSFORMS)
    return dict(zip(INPUT, own, strict=True)) | others


def defaults() -> dict[str, Any]:
    """Return the public toolbox's values."""
    return {key: get_cfg_default().INPUT[key] for key in INPUT}


@pytest.mark.parametrize(
    ("name", "size"), [(BACKBONE, SIZE), ("RN50x4", 288), ("ViT-L/14@336px", 336)]
)
@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CoOp", "LinearProbe"])
def test_keys_that_nobody_set_follow_the_backbone(trainer, name, size):
    assert input_of("--trainer", trainer, "--backbone", name) == clip_input(size)


def test_a_pair_and_a_weights_file_bring_theirs(backbone, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", None)  # nothing is loaded or downloaded
    pair = "open_clip:ViT-L-16-SigLIP-384/webli"
    half = [0.5, 0.5, 0.5]
    expected = clip_input(384, PIXEL_MEAN=half, PIXEL_STD=half)
    assert input_of("--trainer", "CoOp", "--backbone", pair) == expected
    assert input_of("--trainer", "CoOp", "MODEL.BACKBONE.NAME", backbone) == clip_input(16)


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        (["INPUT.SIZE", "(224, 224)"], {"SIZE": (224, 224)}),
        (["INPUT.PIXEL_MEAN", "[0.5, 0.5, 0.5]"], {"PIXEL_MEAN": [0.5, 0.5, 0.5]}),
        (["INPUT.INTERPOLATION", "bilinear"], {"INTERPOLATION": "bilinear"}),
        (["INPUT.TRANSFORMS", "()"], {"TRANSFORMS": ()}),
        (["--transforms", "normalize", "--seed", "1"], {"TRANSFORMS": ("normalize",)}),
    ],
)
def test_what_is_set_stays_even_at_its_default(arguments, own):
    assert input_of("--trainer", "CoOp", "--backbone", BACKBONE, *arguments) == clip_input(
        SIZE, **own
    )


def test_what_a_file_sets_stays(tmp_path):
    (tmp_path / "base.yaml").write_text("INPUT:\n  INTERPOLATION: nearest\n")
    (tmp_path / "file.yaml").write_text("BASE: [base.yaml]\n")
    file = ["--config-file", str(tmp_path / "file.yaml")]
    found = input_of("--trainer", "CoOp", "--backbone", BACKBONE, *file)
    assert found == clip_input(SIZE, INTERPOLATION="nearest")


@pytest.mark.parametrize("name", ["", "ViT-B/17", "open_clip:ViT-B-16/nothing"])
def test_an_unknown_backbone_fills_nothing_and_its_trainer_says_so(name, tmp_path, capsys):
    arguments = ["--trainer", "CoOp", "MODEL.BACKBONE.NAME", f"'{name}'"]
    assert input_of(*arguments) == defaults()
    data = ["DATASET.NAME", "ColourPatches", "DATASET.ROOT", str(tmp_path)]
    assert train.main([*arguments, *data, "OUTPUT_DIR", str(tmp_path / "run")]) == 2
    assert "error: MODEL.BACKBONE.NAME: unknown" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", ["ToyTrainer", "Nobody"])
def test_trainers_of_another_kind_find_the_public_defaults(trainer):
    assert input_of("--trainer", trainer, "--backbone", BACKBONE) == defaults()


def test_a_run_records_what_it_used_and_does_not_warn(run, tmp_path):
    code, out = run("CoOp", "run", epochs=1)
    assert code == 0 and "was trained with" not in out
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["INPUT"]
    assert json.loads((tmp_path / "run/results.json").read_text())["config"]["INPUT"] == recorded
    expected = clip_input(16, SIZE=[16, 16], TRANSFORMS=["random_resized_crop", "normalize"])
    assert {key: recorded[key] for key in INPUT} == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INTERPOLATION", "bilinear", r"trained with bicubic, got bilinear"),
        ("PIXEL_MEAN", "[0.5, 0.5, 0.5]", r"trained with \[0.48\d+, .*\], got \[0.5, 0.5, 0.5\]"),
        ("PIXEL_STD", "[0.2, 0.2, 0.2]", r"trained with \[0.26\d+, .*\], got \[0.2, 0.2, 0.2\]"),
        ("TRANSFORMS", "['random_flip']", r"trained with 'normalize', got \['random_flip'\]"),
        ("TRANSFORMS", "()", r"trained with 'normalize', got \[\]"),
    ],
)
def test_a_contradiction_is_one_line_in_the_log(run, tmp_path, key, value, message):
    code, _ = run("ZeroshotCLIP", "run", f"INPUT.{key}", value, flags=["--eval-only"])
    assert code == 0
    log = (tmp_path / "run/log.txt").read_text().splitlines()
    lines = [line for line in log if "was trained with" in line]
    assert len(lines) == 1 and re.match(rf"INPUT\.{key}: .*tiny.pt was {message}$", lines[0])


def test_another_size_is_an_error(run):
    code, out = run("ZeroshotCLIP", "run", "INPUT.SIZE", "(8, 8)", flags=["--eval-only"])
    assert code == 2
    assert re.search(r"^error: INPUT.SIZE: expected \(16, 16\) for .*, got \(8, 8\)$", out, re.M)
