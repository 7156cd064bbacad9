"""Every method learns on Faces with the embedded backbone: better after training than before."""

from __future__ import annotations

import json

import pytest

import train
from tests.embedded import draw_small

# KgCoOp is held near its start and takes longer to leave it; ProMPT has many slow steps.
SHOTS_AND_EPOCHS = {"KgCoOp": (16, 20), "ProMPT": (4, 3)}
METHODS = ["CoOp", "HiCroPL"]
# These take longest; `make test` runs only the two above.
SLOW = ["CoCoOp", "KgCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "ProMPT", "HISF"]
SLOW += ["MetaPrompt", "ProDA", "CLIPAdapter", "TaskRes", "ProGrad", "MMRL", "DePT"]
METHODS += [pytest.param(method, marks=pytest.mark.slow) for method in SLOW]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    draw_small(root, "Faces", train=16, val=4, test=16)
    return root


@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_faces_improves_on_its_starting_point(method, root, tmp_path):
    shots, epochs = SHOTS_AND_EPOCHS.get(method, (8, 6))

    def accuracy(output: str, shots: int, epochs: int, *pairs: str) -> float:
        code = train.main(
            ["--trainer", method, "--seed", "1", "--root", str(root)]
            + ["--dataset-config-file", "configs/datasets/faces.yaml"]
            + ["--config-file", f"configs/trainers/{method}/vit_mini.yaml"]
            + ["--output-dir", str(tmp_path / output), "DATASET.SUBSAMPLE_CLASSES", "base"]
            + ["DATASET.NUM_SHOTS", str(shots), "OPTIM.MAX_EPOCH", str(epochs)]
            + ["TRAIN.PRINT_FREQ", "100", *pairs]
        )
        assert code == 0
        return json.loads((tmp_path / output / "results.json").read_text())["accuracy"]

    still = ("OPTIM.LR", "0", "OPTIM.WARMUP_EPOCH", "-1", "OPTIM.WEIGHT_DECAY", "0")
    assert accuracy("trained", shots, epochs) > accuracy("start", 1, 1, *still)
