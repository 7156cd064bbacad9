"""Classifier.fit: the same run as train.py's, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train
from configs.choice import PAPERS, UNTRAINED
from dassl.errors import UserError
from inference import Classifier, fit
from tests.trainers import toy

SMALL = {
    "OPTIM.MAX_EPOCH": 2,
    "INPUT.SIZE": (16, 16),
    "INPUT.TRANSFORMS": ["random_resized_crop", "normalize"],
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
    "TRAINER.COOP.N_CTX": 3,
    "TRAINER.COOP.PREC": "fp32",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with eight pictures of each of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for label, (name, color) in enumerate(list(toy.COLORS.items())[:2]):
        (folder / name).mkdir()
        for i in range(8):
            noise = np.random.RandomState(100 * label + i).randint(-25, 25, (16, 16, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toy.write_backbone(tmp_path_factory.mktemp("backbone") / "tiny.pt")


def typed(photos: Path, backbone: str, output: Path) -> list[str]:
    """Return what to type for the run that fit makes of the same settings."""
    return [
        *("--trainer", "CoOp", "--seed", "3", "--backbone", backbone, "--root", str(photos)),
        *("--dataset-config-file", "configs/datasets/image_folder.yaml"),
        *("--config-file", "configs/trainers/CoOp/vit_b16_ep100.yaml"),  # of 4 shots
        *("--output-dir", str(output), "DATASET.NUM_SHOTS", "4"),
        *(text for key, value in SMALL.items() for text in (key, str(value))),
    ]


def test_it_is_the_run_of_train_py_bit_by_bit(photos, backbone, tmp_path, monkeypatch, capsys):
    ours, theirs = tmp_path / "fit", tmp_path / "train"
    assert train.main(typed(photos, backbone, theirs)) == 0
    monkeypatch.chdir(tmp_path)  # the configs are found from anywhere
    state = sys.stdout
    what = {"shots": 4, "seed": 3, "backbone": backbone, "overrides": SMALL}
    classifier = Classifier.fit(photos, "CoOp", output_dir=ours, **what)
    assert sys.stdout is state

    configs = [yaml.safe_load((place / "config.yaml").read_text()) for place in (ours, theirs)]
    for config, place in zip(configs, (ours, theirs), strict=True):
        assert config.pop("OUTPUT_DIR") == str(place)
    assert configs[0] == configs[1]
    states = [toy.checkpoint(place, "CoOp", 2) for place in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    expected = Classifier.from_run(theirs).predict(photos)
    assert classifier.labels == ["green", "red"] and len(expected) == 16
    assert classifier.predict(photos) == expected

    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in ours.rglob("*") if path.is_file()}
    again = Classifier.fit(str(photos), output_dir=str(ours), **what)
    assert again.predict(photos) == expected
    assert f"skipped, finished before: {ours}" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in ours.rglob("*") if path.is_file()}
    assert {path.name for path in before.keys() ^ after.keys()} <= {".lock"}
    assert all(after[path] == before[path] for path in before.keys() & after.keys())

    with pytest.raises(UserError, match="^seed: expected 3, as in the run in "):
        Classifier.fit(photos, output_dir=ours, **{**what, "seed": 4})


def test_every_method_has_the_arguments_of_its_sweeps_runs():
    for method in PAPERS:
        for backbone in ("", "ViT-Mini-2"):
            args = fit.arguments_for("dtd", method, "run", 16, 1, backbone, "data", {"A.B": 0.5})
            config = Path(args.config_file)
            assert config.is_file() and config.parent.name == method
            assert (config.stem == "vit_mini") == bool(backbone)
            assert (args.trainer, args.seed, args.root) == (method, 1, "data")
            shots = [] if method in UNTRAINED else ["DATASET.NUM_SHOTS", "16"]
            assert args.opts == [*shots, "A.B", "0.5"]
            assert args.eval_only == (method in UNTRAINED)
    mini = fit.arguments_for("shapes", "CoOp", "run", 16, 1, "", "data", {})
    assert mini.config_file.endswith("CoOp/vit_mini.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "dtdd"}, "data: expected an existing folder, or a name among animals, caltech"),
        ({"data": 3}, "data: expected a path or a name, got 3"),
        ({"method": "Coop"}, "method: expected one of .*, got 'Coop'; did you mean 'CoOp'"),
        ({"method": None}, "method: expected one of .*, got None"),
        ({"shots": "4"}, "shots: expected a whole number, got '4'"),
        ({"shots": True}, "shots: expected a whole number, got True"),
        ({"shots": -2}, "shots: expected .*, got -2"),
        ({"seed": 1.0}, "seed: expected a whole number, got 1.0"),
        ({"seed": 2**40}, "seed: expected .*, got 1099511627776"),
        ({"backbone": "ViT-Z"}, "backbone: .*ViT-Z"),
        ({"backbone": None}, "backbone: expected a path or a name, got None"),
        ({"output_dir": ""}, "output_dir: expected a path or a name, got ''"),
        ({"data": "dtd", "root": "nowhere"}, "root: expected an existing folder, got 'nowhere'"),
        ({"overrides": ["OPTIM.LR", 1]}, r"overrides: expected {key: value}, got \['OPTIM.LR', 1"),
        ({"overrides": {"SEED": 2}}, "overrides: expected SEED to be set by seed, got it here"),
        ({"overrides": {"OPTIM.LR": "x"}}, "OPTIM.LR: expected .*, got 'x'"),
        ({"overrides": {"OPTIM.RL": 1}}, "OPTIM.RL: expected a known key"),
        ({"overrides": {"--eval-only": 1}}, "--eval-only: expected a known key"),
    ],
)
def test_bad_input_is_one_line_with_the_name_of_the_argument(
    photos, backbone, tmp_path, changes, message
):
    given = {"data": photos, "output_dir": tmp_path / "run", "backbone": backbone}
    with pytest.raises(UserError, match=f"^{message}") as caught:
        Classifier.fit(**{**given, **changes})
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("config.yaml"))  # nothing is begun
