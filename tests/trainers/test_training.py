"""From the command line: training, checkpoints, other classes, resumption, precision, bad input.

A random tiny CLIP in a weights file and a toy dataset; learning is tested on Shapes.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

import train
from dassl.engine import resume
from tests.trainers.tiny import tiny_clip
from tests.trainers.toy import CHECKPOINT, ColorPatches, checkpoint
from trainers.coop import CoOp
from trainers.trainer import MethodTrainer


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

    # The checkpoint contains what was learned and nothing of CLIP.
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


@pytest.mark.parametrize("trainer", ["CoOp", "HiCroPL", "HISF", "LAMM", "ProMPT"])
def test_base_training_with_a_test_on_all_classes_is_one_run(run, tmp_path, trainer):
    base, save = ("DATASET.SUBSAMPLE_CLASSES", "base"), ("TEST.SAVE_LOGITS", "True")
    model = ["--eval-only", "--model-dir", f"{tmp_path}/base"]
    code, out = run(trainer, "one", *base, "TEST.SUBSAMPLE_CLASSES", "all", *save)
    assert code == 0, out
    # the same in two runs
    assert run(trainer, "base", *base)[0] == 0
    assert run(trainer, "all", *save, flags=model)[0] == 0
    states = [checkpoint(tmp_path / folder, trainer, 2) for folder in ("one", "base")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    one, all_classes = (
        json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("one", "all")
    )
    assert list(one["per_class_accuracy"]) == ["red", "green", "blue", "grey"]
    assert one["per_class_accuracy"] == all_classes["per_class_accuracy"]
    first, second = (np.load(tmp_path / folder / "logits.npz") for folder in ("one", "all"))
    np.testing.assert_allclose(first["logits"], second["logits"], rtol=1e-5, atol=1e-5)
    assert first["labels"].tolist() == second["labels"].tolist()


def test_training_classes_come_back_after_a_test_on_others(run, tmp_path, monkeypatch):
    trainers = []
    build = MethodTrainer.build_model

    def remember(self):
        build(self)
        trainers.append(self)

    monkeypatch.setattr(MethodTrainer, "build_model", remember)
    options = ("DATASET.SUBSAMPLE_CLASSES", "base", "TEST.SUBSAMPLE_CLASSES", "new")
    code, out = run("HiCroPL", "run", *options)
    assert code == 0, out
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results["per_class_accuracy"]) == ["blue", "grey"]
    (trainer,) = trainers
    assert trainer.model.class_names == ["red", "green"]
    assert trainer.lab2cname == {0: "red", 1: "green"} and trainer.num_classes == 2


def test_what_the_classes_of_the_test_lack_is_found_before_training(run, tmp_path):
    file = tmp_path / "described.json"
    file.write_text(json.dumps({"red": ["like fire"], "green": ["like grass"]}))
    described = ("TRAINER.HICROPL.FROZEN_TEXT", "descriptions")
    described += ("TRAINER.HICROPL.DESCRIPTIONS", str(file), "DATASET.SUBSAMPLE_CLASSES", "base")
    code, out = run("HiCroPL", "run", *described, "TEST.SUBSAMPLE_CLASSES", "all")
    assert code == 2 and "has no sentences for 'blue', 'grey'" in out
    assert "epoch [" not in out
    assert run("HiCroPL", "run", *described)[0] == 0


@pytest.mark.parametrize(
    ("trainer", "options"), [("LinearProbe", ()), ("CoOp", ("TRAINER.COOP.CSC", "True"))]
)
def test_what_is_bound_to_its_classes_is_not_tested_on_others(run, tmp_path, trainer, options):
    base = (*options, "DATASET.SUBSAMPLE_CLASSES", "base")
    code, out = run(trainer, "run", *base, "TEST.SUBSAMPLE_CLASSES", "new")
    assert code == 2
    assert f"TEST.SUBSAMPLE_CLASSES: expected '' for {trainer}" in out
    assert not (tmp_path / "run").exists()
    assert run(trainer, "run", *base, "TEST.SUBSAMPLE_CLASSES", "base")[0] == 0


@pytest.mark.parametrize(
    "trainer", ["CoOp", "CLIPLoRA", "LinearProbe", "StandardizedCLIP", "ZeroshotCLIP"]
)
def test_a_dataset_of_test_images_is_not_trained_on(run, tmp_path, monkeypatch, trainer):
    assert run(trainer, "trained")[0] == 0
    monkeypatch.setattr(ColorPatches, "train_x", [])
    code, out = run(trainer, "run")
    learns = trainer != "ZeroshotCLIP"
    assert code == (2 if learns else 0)
    assert ("DATASET.NAME: expected a dataset with training images" in out) == learns
    code, out = run(trainer, "eval", flags=["--eval-only", "--model-dir", f"{tmp_path}/trained"])
    assert code == 0, out
    accuracy = [
        json.loads((tmp_path / folder / "results.json").read_text())["accuracy"]
        for folder in ("trained", "eval")
    ]
    assert accuracy[0] == accuracy[1]


@pytest.mark.parametrize(
    ("trainer", "options"),
    [
        ("CoOp", ()),
        ("CoPrompt", ()),
        ("HiCroPL", ()),
        ("MetaPrompt", ()),
        ("ProDA", ()),
        pytest.param("HiCroPL", ("TRAINER.HICROPL.FROZEN_TEXT", "random"), marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_ends_with_bitwise_the_same_weights(
    run, tmp_path, trainer, options, monkeypatch
):
    if options:
        texts = {name: [f"{name} {i}" for i in range(9)] for name in ("red", "green", "blue")}
        (tmp_path / "t.json").write_text(json.dumps({**texts, "grey": ["a gray one"]}))
        options += ("TRAINER.HICROPL.DESCRIPTIONS", str(tmp_path / "t.json"))
    assert run(trainer, "whole", *options, epochs=3)[0] == 0
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0.0)
    step = MethodTrainer.forward_backward

    def stop_in_the_third_epoch(self, batch):
        if self.epoch == 2 and self.batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(MethodTrainer, "forward_backward", stop_in_the_third_epoch)
    assert run(trainer, "stopped", *options, epochs=3)[0] == 130
    monkeypatch.setattr(MethodTrainer, "forward_backward", step)
    code, out = run(trainer, "stopped", *options, epochs=3)
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
    if prec != "bf16" and not torch.cuda.is_available():
        assert out.count("fp16 is not available on a CPU") == 1
    state = checkpoint(tmp_path / prec, "HiCroPL", 1)
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in state.values())


def test_auto_is_resolved_for_the_run_and_compared_when_it_resumes(run, tmp_path, monkeypatch):
    auto = ("TRAINER.COOP.PREC", "auto")
    monkeypatch.setattr("trainers.trainer.fastest", lambda device: "bf16")
    step = MethodTrainer.forward_backward

    def stop_in_the_second_epoch(self, batch):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(MethodTrainer, "forward_backward", stop_in_the_second_epoch)
    code, out = run("CoOp", "run", *auto)
    assert code == 130 and "TRAINER.COOP.PREC: auto is bf16 on this machine" in out
    monkeypatch.setattr(MethodTrainer, "forward_backward", step)
    monkeypatch.setattr("trainers.trainer.fastest", lambda device: "fp32")
    code, out = run("CoOp", "run", *auto)
    assert code == 2
    assert "error: TRAINER.COOP.PREC: expected 'bf16', as in the run in '" in out
    code, out = run("CoOp", "run", "TRAINER.COOP.PREC", "bf16")
    assert code == 0 and "1 epochs are done" in out
    flags = ["--eval-only", "--model-dir", f"{tmp_path}/run"]
    code, out = run("CoOp", "eval", *auto, flags=flags)
    assert code == 0, out
    found = [json.loads((tmp_path / f / "results.json").read_text()) for f in ("run", "eval")]
    assert [r["precision"] for r in found] == ["bf16", "fp32"]
    assert [r["config"]["TRAINER"]["COOP"]["PREC"] for r in found] == ["bf16", "fp32"]


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
    def broken(self, features, logits, labels):
        return {"loss_ce": logits.sum() * float("nan")}

    assert run("CoOp", "nan", "TRAIN.CHECKPOINT_FREQ", "1", epochs=1)[0] == 0
    good = checkpoint(tmp_path / "nan", "CoOp", 1)
    shutil.rmtree(tmp_path / "nan2", ignore_errors=True)
    monkeypatch.setattr(CoOp, "losses", broken)
    code, out = run("CoOp", "nan2")
    assert code == 2
    assert "loss is nan at epoch 1, batch 1/4 (first images: " in out
    assert not list((tmp_path / "nan2").rglob("model.pth.tar-*"))
    assert torch.equal(checkpoint(tmp_path / "nan", "CoOp", 1)["ctx"], good["ctx"])


@pytest.mark.parametrize(("shots", "images"), [("0", 16), ("-1", 16), ("1", 4)])
def test_no_shots_are_all_images(run, shots, images):
    code, output = run("CoOp", "out", "DATASET.NUM_SHOTS", shots, flags=["--no-train"])
    assert code == 0 and f"# train_x  {images}\n" in output


@pytest.mark.parametrize(
    ("trainer", "arguments", "message"),
    [
        ("CoOp", ["INPUT.SIZE", "(32, 32)"], r"INPUT.SIZE: expected (16, 16) for "),
        ("CoOp", ["MODEL.BACKBONE.NAME", "ViT-B/61"], "did you mean 'ViT-B/16'"),
        (
            "CoOp",
            ["TRAINER.COOP.PREC", "fp8"],
            "PREC: expected one of fp32, bf16, fp16, amp, auto, got 'fp8'",
        ),
        (
            "CoOp",
            ["OPTIM.ACCUMULATE", "5"],
            "OPTIM.ACCUMULATE: expected at most DATALOADER.TRAIN_X.BATCH_SIZE 4, got 5",
        ),
        (
            "ProVP",
            ["OPTIM.ACCUMULATE", "2"],
            "OPTIM.ACCUMULATE: expected 1 for ProVP, which cannot split a batch, got 2",
        ),
        (
            "LinearProbe",
            ["OPTIM.ACCUMULATE", "2"],
            "OPTIM.ACCUMULATE: expected 1 for LinearProbe, which cannot split a batch, got 2",
        ),
        (
            "LinearProbe",
            ["OPTIM.CLIP_NORM", "1.0"],
            "OPTIM.CLIP_NORM: expected 0.0 for LinearProbe, which does not use it, got 1.0",
        ),
        ("CoOp", ["TRAINER.COOP.N_CTX", "75"], "the model takes 77"),
        (
            "HiCroPL",
            ["TRAINER.HICROPL.CROSS_LAYER", "0"],
            "CROSS_LAYER: expected a whole number >= 1, got 0",
        ),
        (
            "HiCroPL",
            ["TRAINER.HICROPL.PROMPT_DEPTH", "13"],
            "expected a whole number in 1..4, got 13",
        ),
        ("HiCroPL", ["TRAINER.HICROPL.FROZEN_TEXT", "descriptions"], "ColourPatches.json"),
        ("CoOp", ["DATASET.NAME", "ColorPatches"], "did you mean 'ColourPatches'"),
        ("CoOp", ["TRAINER.COOP.NCTX", "4"], "did you mean 'N_CTX'"),
        ("CoOp", ["DATASET.NUM_SHOTS", "-2"], "NUM_SHOTS"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, trainer, arguments, message):
    code, out = run(trainer, "bad", *arguments)
    assert code == 2
    (error,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not list(tmp_path.rglob("model.pth.tar-*"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MODEL.HEAD.NAME", "mlp", "''"),
        ("MODEL.HEAD.HIDDEN_LAYERS", "(4,)", "()"),
        ("MODEL.HEAD.BN", "False", "True"),
        ("MODEL.HEAD.DROPOUT", "0.5", "0.0"),
        ("MODEL.BACKBONE.PRETRAINED", "False", "True"),
        ("INPUT.NO_TRANSFORM", "True", "False"),
        ("DATALOADER.RETURN_IMG0", "True", "False"),
        ("OPTIM.STAGED_LR", "True", "False"),
        ("OPTIM.NEW_LAYERS", "('ctx',)", "()"),
        ("OPTIM.BASE_LR_MULT", "0.5", "0.1"),
    ],
)
def test_a_setting_that_no_method_uses_is_refused(run, tmp_path, key, value, expected):
    code, out = run("CoOp", "bad", key, value)
    assert code == 2
    assert f"error: {key}: expected {expected} for CoOp, which does not use it, got " in out
    assert not (tmp_path / "train").exists()  # no data was drawn


def test_settings_of_another_method_are_refused(run, tmp_path):
    code, out = run("CoOp", "bad", "TRAINER.MAPLE.N_CTX", "4")
    assert code == 2
    line = "error: TRAINER.MAPLE.N_CTX: expected no value, as CoOp does not read it, got 4"
    assert line in out.splitlines()
    assert not (tmp_path / "train").exists()  # no data was drawn


@pytest.mark.parametrize(
    ("key", "is_read"),
    [
        ("TRAINER.COOP.CSC", False),
        ("TRAINER.DEPT.WEIGHT", True),
        ("TRAINER.MAPLE.PROMPT_DEPTH", True),  # of the method that it wraps
    ],
)
def test_a_run_resumes_whatever_the_settings_of_methods_that_it_does_not_read(
    run, tmp_path, key, is_read
):
    assert run("DePT", "run", epochs=1)[0] == 0
    path = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    _, node, name = key.split(".")
    config["TRAINER"][node][name] = "of an earlier version"
    path.write_text(yaml.safe_dump(config))
    code, out = run("DePT", "run", epochs=1)
    assert code == (2 if is_read else 0)
    assert (f"error: {key}: expected 'of an earlier version', as in the run" in out) == is_read


def test_nothing_to_learn_or_to_start_from_is_said(run, tmp_path):
    (tmp_path / "old").mkdir()
    code, out = run("ZeroshotCLIP", "zero", flags=["--resume", f"{tmp_path}/old"])
    line = (
        f"error: RESUME: expected '' for ZeroshotCLIP, which learns nothing, got '{tmp_path}/old'"
    )
    assert code == 2 and line in out.splitlines()
    assert run("LinearProbe", "probe")[0] == 0
    weights = f"{tmp_path}/probe/linear_probe/model.pth.tar-2"
    code, out = run("LinearProbe", "again", "MODEL.INIT_WEIGHTS", weights)
    line = "error: MODEL.INIT_WEIGHTS: expected '' for LinearProbe, whose training starts from "
    assert code == 2 and f"{line}nothing, got '{weights}'" in out.splitlines()


def test_a_model_under_other_settings_is_not_evaluated_in_silence(run, tmp_path):
    assert run("CoOp", "run")[0] == 0
    load = ["--eval-only", "--model-dir", f"{tmp_path}/run"]
    code, out = run("CoOp", "same", flags=load)
    assert code == 0 and f"the run in '{tmp_path}/run' had" not in out
    code, out = run("CoOp", "other", "TRAINER.COOP.CLASS_TOKEN_POSITION", "front", flags=load)
    line = f"TRAINER.COOP.CLASS_TOKEN_POSITION: the run in '{tmp_path}/run' had 'end', got 'front'"
    assert code == 0 and line in out.splitlines()
    code, out = run("KgCoOp", "kg", "TRAINER.COOP.N_CTX", "16", flags=load)
    assert f"TRAINER.NAME: the run in '{tmp_path}/run' had 'CoOp', got 'KgCoOp'" in out


def test_an_untrained_method_is_evaluated_only_from_given_weights(run, tmp_path):
    code, out = run("CoOp", "eval", flags=["--eval-only"])
    assert code == 2 and "error: --model-dir: expected the folder of a run of CoOp" in out
    assert not (tmp_path / "eval" / "results.json").exists()
    assert run("CoOp", "run")[0] == 0
    weights = ("MODEL.INIT_WEIGHTS", f"{tmp_path}/run/prompt_learner/model.pth.tar-2")
    code, out = run("CoOp", "eval", *weights, flags=["--eval-only"])
    assert code == 0, out
    accuracy = [
        json.loads((tmp_path / name / "results.json").read_text())["accuracy"]
        for name in ("run", "eval")
    ]
    assert accuracy[0] == accuracy[1]
    code, out = run("MaPLe", "other", *weights)
    assert code == 2 and "nothing in it fits the model by name and shape" in out


def test_an_unknown_trainer_is_answered_with_the_nearest_name(capsys):
    assert train.main(["--trainer", "HiCropl"]) == 2
    assert "did you mean 'HiCroPL'" in capsys.readouterr().err
