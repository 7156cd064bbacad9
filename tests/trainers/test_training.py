"""From the command line: training, checkpoints, other classes, resumption, precision, bad input.

A random tiny CLIP in a weights file and a toy dataset; what must learn is tested on Shapes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, subsample_classes
from dassl.engine import trainer as engine
from tests.trainers.tiny import tiny_clip
from trainers.base import PromptTrainer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128,) * 3}


class ColourPatches(DatasetBase):
    """Four classes of coloured noise, 16 x 16."""

    templates = ["a photo of a {} patch."]

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        splits = []
        for split, count in (("train", 4), ("test", 3)):
            items = []
            for label, (name, colour) in enumerate(COLOURS.items()):
                for i in range(count):
                    path = root / split / name / f"{i}.png"
                    if not path.exists():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        noise = np.random.RandomState(100 * label + i).randint(-25, 25, (16, 16, 3))
                        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                        Image.fromarray(pixels).save(path)
                    items.append(Datum(impath=str(path), label=label, classname=name))
            splits.append(items)
        chosen = subsample_classes(*splits, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=chosen[0], test=chosen[1])


if "ColourPatches" not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(ColourPatches)

HICROPL = ["TRAINER.HICROPL.PROMPT_DEPTH", "4", "TRAINER.HICROPL.CROSS_LAYER", "2"]
HICROPL += ["TRAINER.HICROPL.N_CTX", "2", "TRAINER.HICROPL.FROZEN_TEXT", "template"]
OPTIONS = {
    "HiCroPL": HICROPL,
    "CoOp": ["TRAINER.COOP.N_CTX", "3"],
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", "3"],
    "IVLP": ["TRAINER.IVLP.PROMPT_DEPTH_VISION", "3", "TRAINER.IVLP.PROMPT_DEPTH_TEXT", "3"],
    "ProMPT": ["TRAINER.PROMPT.PROMPT_DEPTH_VISION", "3", "TRAINER.PROMPT.N_CTX_VISION", "2"],
    "HISF": ["TRAINER.HISF.FUSION_LAYERS", "(1, 3)"],
    "PromptSRC": [
        *("TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", "3"),
        *("TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", "2"),
    ],
}
NODES = {"ZeroshotCLIP": "ZSCLIP", "KgCoOp": "COOP"}  # config nodes that are not the trainer's name
CHECKPOINT = {
    "CoOp": "prompt_learner",
    "CoCoOp": "prompt_learner",
    "KgCoOp": "prompt_learner",
    "VPT": "prompt_learner",
    "MaPLe": "MultiModalPromptLearner",
    "IVLP": "VLPromptLearner",
    "PromptSRC": "VLPromptLearner",
    "HiCroPL": "VLPromptLearner",
    "ProMPT": "VLPromptLearner",
    "HISF": "VLPromptLearner",
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save({**tiny_clip().state_dict(), "head_width": torch.tensor(16)}, path)
    return str(path)


@pytest.fixture
def run(backbone, tmp_path, capsys):
    """run(trainer, output folder, KEY, VALUE, ..., flags) -> (exit code, what was printed)."""

    def call(trainer: str, output: str, *pairs: str, flags=(), epochs: int = 2) -> tuple[int, str]:
        node = NODES.get(trainer, trainer.upper())
        code = train.main(
            ["--trainer", trainer, "--root", str(tmp_path), "--seed", "1"]
            + ["--backbone", backbone, "--output-dir", str(tmp_path / output), *flags]
            + ["DATASET.NAME", "ColourPatches", "INPUT.SIZE", "(16, 16)", "DATALOADER.NUM_WORKERS"]
            + ["0", "INPUT.TRANSFORMS", "['random_resized_crop', 'normalize']"]
            + ["DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.MAX_EPOCH", str(epochs)]
            + ["OPTIM.LR_SCHEDULER", "cosine", f"TRAINER.{node}.PREC", "fp32"]
            + [*OPTIONS.get(trainer, []), *pairs]
        )
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def checkpoint(folder: Path, trainer: str, epoch: int) -> dict:
    path = folder / CHECKPOINT[trainer] / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("trainer", CHECKPOINT)
def test_train_save_and_reload_for_other_classes(run, tmp_path, trainer, backbone):
    code, out = run(
        trainer, "base", "DATASET.SUBSAMPLE_CLASSES", "base", "TEST.SAVE_LOGITS", "True"
    )
    assert code == 0, out
    assert "* accuracy: " in out
    results = json.loads((tmp_path / "base/results.json").read_text())
    assert set(results["per_class_accuracy"]) == {"red", "green"}
    assert results["config"]["TRAINER"]["NAME"] == trainer

    # The checkpoint holds what was learned and nothing of CLIP.
    state = checkpoint(tmp_path / "base", trainer, 2)
    frozen = set(tiny_clip().state_dict())
    frozen |= {name.replace("visual", "image_encoder") for name in frozen}
    assert state and not frozen & {name.removeprefix("clip.") for name in state}
    code, out = run(
        trainer, "again", "DATASET.SUBSAMPLE_CLASSES", "base", "TEST.SAVE_LOGITS", "True",
        flags=["--eval-only", "--model-dir", f"{tmp_path}/base"],
    )  # fmt: skip
    assert code == 0, out
    first, second = (np.load(tmp_path / d / "logits.npz") for d in ("base", "again"))
    np.testing.assert_allclose(first["logits"], second["logits"], rtol=1e-5, atol=1e-5)

    code, out = run(
        trainer, "new", "DATASET.SUBSAMPLE_CLASSES", "new",
        flags=["--eval-only", "--model-dir", f"{tmp_path}/base"],
    )  # fmt: skip
    assert code == 0, out
    results = json.loads((tmp_path / "new/results.json").read_text())
    assert set(results["per_class_accuracy"]) == {"blue", "grey"}


@pytest.mark.parametrize("trainer", ["CoOp", "HiCroPL"])
def test_a_stopped_run_ends_with_bitwise_the_same_weights(run, tmp_path, trainer, monkeypatch):
    assert run(trainer, "whole", epochs=3)[0] == 0
    monkeypatch.setattr(engine, "_SAVE_INTERVAL", 0.0)
    step = PromptTrainer.forward_backward

    def stop_in_the_third_epoch(self, batch):
        if self.epoch == 2 and self.batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(PromptTrainer, "forward_backward", stop_in_the_third_epoch)
    assert run(trainer, "stopped", epochs=3)[0] == 130
    monkeypatch.setattr(PromptTrainer, "forward_backward", step)
    code, out = run(trainer, "stopped", epochs=3)
    assert code == 0 and "2 epochs are done" in out
    whole, stopped = (checkpoint(tmp_path / d, trainer, 3) for d in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for name in whole:
        assert torch.equal(whole[name], stopped[name]), name


def test_zero_shot_needs_no_training(run, tmp_path):
    accuracy = []
    for output, flags in (("eval", ["--eval-only"]), ("train", [])):
        code, out = run("ZeroshotCLIP", output, flags=flags)
        assert code == 0, out
        accuracy.append(json.loads((tmp_path / output / "results.json").read_text())["accuracy"])
    assert accuracy[0] == accuracy[1]


@pytest.mark.parametrize("prec", ["bf16", "fp16", "amp"])
def test_precision_keeps_learned_tensors_in_fp32(run, tmp_path, prec):
    code, out = run("HiCroPL", prec, "TRAINER.HICROPL.PREC", prec, epochs=1)
    assert code == 0, out
    if prec != "bf16":
        assert out.count("a CPU computes no fp16") == 1
    state = checkpoint(tmp_path / prec, "HiCroPL", 1)
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in state.values())


@pytest.fixture
def trained(run, tmp_path):
    assert run("CoOp", "coop", epochs=1)[0] == 0
    return tmp_path / "coop"


def test_checkpoints_that_do_not_fit_are_refused(run, tmp_path, trained):
    def evaluate(trainer: str, *pairs: str, flags=()) -> str:
        flags = ["--eval-only", "--model-dir", f"{tmp_path}/coop", *flags]
        code, out = run(trainer, "eval", *pairs, flags=flags, epochs=1)
        assert code == 2
        errors = [line for line in out.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        return errors[0]

    assert "VLPromptLearner" in evaluate("HiCroPL")  # another method
    assert "shape (3, 32)" in evaluate("CoOp", "TRAINER.COOP.N_CTX", "5")  # another width
    assert "model.pth.tar-7" in evaluate("CoOp", flags=["--load-epoch", "7"])
    path = trained / "prompt_learner" / "model.pth.tar-1"
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    content["state_dict"]["meta_net.linear1.weight"] = torch.zeros(2, 2)
    torch.save(content, path)
    assert "meta_net.linear1.weight" in evaluate("CoOp")  # CoCoOp's
    path.write_bytes(whole[: len(whole) // 2])
    assert "model.pth.tar-1" in evaluate("CoOp")  # truncated
    shutil.rmtree(trained)
    assert "does not exist" in evaluate("CoOp")


def test_a_nan_loss_stops_and_names_the_batch(run, tmp_path, monkeypatch):
    from trainers.coop import ContextCLIP

    def broken(self, logits, labels, image, text):
        return {"loss_ce": logits.sum() * float("nan")}

    assert run("CoOp", "nan", "TRAIN.CHECKPOINT_FREQ", "1", epochs=1)[0] == 0
    good = checkpoint(tmp_path / "nan", "CoOp", 1)
    shutil.rmtree(tmp_path / "nan2", ignore_errors=True)
    monkeypatch.setattr(ContextCLIP, "loss_terms", broken)
    code, out = run("CoOp", "nan2")
    assert code == 2
    assert "loss is nan at epoch 1, batch 1/4 (first images: " in out
    assert not list((tmp_path / "nan2").rglob("model.pth.tar-*"))
    assert torch.equal(checkpoint(tmp_path / "nan", "CoOp", 1)["ctx"], good["ctx"])


@pytest.mark.parametrize(
    ("trainer", "arguments", "message"),
    [
        ("CoOp", ["INPUT.SIZE", "(32, 32)"], r"INPUT.SIZE is (32, 32), "),
        ("CoOp", ["MODEL.BACKBONE.NAME", "ViT-B/61"], "did you mean 'ViT-B/16'"),
        ("CoOp", ["TRAINER.COOP.PREC", "fp8"], "allowed: fp32, bf16, fp16, amp"),
        ("CoOp", ["TRAINER.COOP.N_CTX", "75"], "the model takes 77"),
        ("HiCroPL", ["TRAINER.HICROPL.CROSS_LAYER", "4"], "CROSS_LAYER is 4, allowed: 1..3"),
        ("HiCroPL", ["TRAINER.HICROPL.PROMPT_DEPTH", "13"], "allowed: 1..4"),
        ("HiCroPL", ["TRAINER.HICROPL.FROZEN_TEXT", "descriptions"], "ColourPatches.json"),
        ("CoOp", ["DATASET.NAME", "ColorPatches"], "did you mean 'ColourPatches'"),
        ("CoOp", ["TRAINER.COOP.NCTX", "4"], "did you mean 'N_CTX'"),
        ("CoOp", ["DATASET.NUM_SHOTS", "0"], "NUM_SHOTS"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, trainer, arguments, message):
    code, out = run(trainer, "bad", *arguments)
    assert code == 2
    (error,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not list(tmp_path.rglob("model.pth.tar-*"))


def test_an_unknown_trainer_is_answered_with_the_nearest_name(capsys):
    assert train.main(["--trainer", "HiCropl"]) == 2
    assert "did you mean 'HiCroPL'" in capsys.readouterr().err
