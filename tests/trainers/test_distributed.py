"""A run in several processes ends as it would in one, and with one line where it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from dassl import distributed
from dassl.config import get_cfg_default
from dassl.data.loader import _EveryNth
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, build, resume
from dassl.errors import UserError
from dassl.utils.tools import ImageError
from tests.trainers import processes, toy
from trainers.trainer import MethodTrainer

METHODS = ["MetaPrompt"]  # whose step needs the images of the whole batch
SLOW = [
    "ProVP",
    "CoOp",
    "CoCoOp",
    "KgCoOp",
    "TCP",
    "LAMM",
    "ProDA",
    "VPT",
    "IVLP",
    "MaPLe",
    "PromptSRC",
]
SLOW += ["CoPrompt", "MMA", "CLIPLoRA", "HiCroPL", "HISF", "ProMPT", "LinearProbe"]
SLOW += ["TipAdapter", "TipAdapterF", "CLIPAdapter", "TaskRes", "LPpp", "ProGrad", "MMRL", "DePT"]
METHODS += [pytest.param(method, marks=pytest.mark.slow) for method in SLOW]
# Adam with the usual epsilon makes whole steps of rounding where a gradient is zero otherwise, as
# those of HiCroPL's key biases and one of MMRL's are; the first two as in their own config files.
OPTIONS = {"HiCroPL": ("OPTIM.EPS", "1e-3"), "HISF": ("OPTIM.NAME", "sgd")}
OPTIONS["MMRL"] = ("OPTIM.EPS", "1e-6")
# 15 images, whose last batch of 3 two processes cannot divide
UNEVEN = ("DATALOADER.ON_ERROR", "skip", "DATALOADER.TRAIN_X.DROP_LAST", "False")
UNEVEN += ("DATALOADER.TRAIN_X.BATCH_SIZE", "6", "DATALOADER.TEST.BATCH_SIZE", "5")
ON_CPU = ("USE_CUDA", "False")  # two processes do not share the one GPU that there may be
OF_FIGURES = ("accuracy", "error", "macro_f1", "correct", "total", "split", "epoch")


@pytest.fixture
def command(tmp_path, backbone):
    """Make the arguments of a run: command(trainer, output folder, KEY, VALUE, ...)."""
    broken = tmp_path / "train" / "red" / "1.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no image")

    def arguments(trainer, output, *pairs, epochs=2):
        pairs = (*ON_CPU, *UNEVEN, *OPTIONS.get(trainer, ()), *pairs)
        return toy.command_line(
            trainer, tmp_path, backbone, tmp_path / output, *pairs, epochs=epochs
        )

    return arguments


def files(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {name for name in found if "events.out" not in name}


def figures(folder: Path) -> dict:
    record = json.loads((folder / "results.json").read_text())
    others = ("wall_time_s", "peak_memory_mb", "config")
    return {name: value for name, value in record.items() if name not in others}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*/model.pth.tar-*")
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("trainer", METHODS)
def test_two_processes_end_with_the_weights_of_one(trainer, command, tmp_path):
    assert train.main(command(trainer, "one")) == 0
    whole = processes.start(2, tmp_path, command(trainer, "two"))
    assert processes.finish(whole) == [0, 0], processes.printed(tmp_path, 0)
    assert processes.printed(tmp_path, 1) == ""  # one speaks, and one writes
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert len(list((tmp_path / "two").rglob("events.out*"))) == 1
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6, msg=name)
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert [two[name] for name in OF_FIGURES] == [one[name] for name in OF_FIGURES]


@pytest.mark.slow
def test_two_processes_train_on_the_fixed_views_of_one(command, tmp_path):
    def arguments(output):
        own = ("DATALOADER.FEATURES_DIR", str(tmp_path / f"features of {output}"))
        return command("CoOp", output, "DATALOADER.VIEWS", "2", *own)

    assert train.main(arguments("one")) == 0
    whole = processes.start(2, tmp_path, arguments("two"))
    assert processes.finish(whole) == [0, 0], processes.printed(tmp_path, 0)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    assert figures(tmp_path / "two")["accuracy"] == figures(tmp_path / "one")["accuracy"]
    kept = [
        {path.name for path in (tmp_path / f"features of {output}").glob("*.safetensors")}
        for output in ("one", "two")
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 3  # of two views and of the test


def test_an_evaluation_of_the_same_weights_is_the_same(command, tmp_path):
    record = ("TEST.RECORD", "['logits', 'evolution']", "TEST.METRICS", "['nll']")
    assert train.main(command("ProMPT", "run", epochs=1)) == 0
    evaluate = ["--eval-only", "--model-dir", str(tmp_path / "run")]
    assert train.main([*evaluate, *command("ProMPT", "one", *record)]) == 0
    line = [*evaluate, *command("ProMPT", "two", *record)]
    assert processes.finish(processes.start(2, tmp_path, line)) == [0, 0]
    assert figures(tmp_path / "two") == figures(tmp_path / "one")
    evolution = [(tmp_path / d / "evolution.jsonl").read_text() for d in ("one", "two")]
    assert evolution[0] == evolution[1]
    for name in ("logits.npz", "predictions.npz"):
        one, two = (np.load(tmp_path / d / name) for d in ("one", "two"))
        assert all(np.array_equal(one[key], two[key]) for key in one.files), name


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_processes(command, tmp_path, monkeypatch):
    assert train.main(command("CoPrompt", "whole", epochs=3)) == 0
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0.0)
    step = MethodTrainer.forward_backward

    def stop_in_the_third_epoch(self, batch):
        if self.epoch == 2 and self.batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    stopped = command("CoPrompt", "stopped", epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(MethodTrainer, "forward_backward", stop_in_the_third_epoch)
        assert train.main(stopped) == 130
    assert processes.finish(processes.start(2, tmp_path, stopped)) == [0, 0]
    assert "2 epochs are done" in processes.printed(tmp_path, 0)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-6, msg=name)


BAD_LOSS = ("OPTIM.LR", "1e30", "OPTIM.LR_SCHEDULER", "single_step")


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        (
            ("DATALOADER.TRAIN_X.BATCH_SIZE", "5"),
            "error: DATALOADER.TRAIN_X.BATCH_SIZE: expected a multiple of 2, the number of "
            "processes, got 5",
        ),
        pytest.param(
            BAD_LOSS,
            "error: loss is nan at epoch 1, batch 2/3 (first images: ",
            marks=pytest.mark.slow,
        ),
        (("OPTIM.NO_SUCH", "1"), "error: OPTIM.NO_SUCH: "),
        (
            ("OPTIM.ACCUMULATE", "2"),
            "error: OPTIM.ACCUMULATE: expected 1 in several processes, which share every batch ",
        ),
    ],
)
def test_what_stops_a_run_is_one_line(pairs, line, command, tmp_path):
    codes = processes.finish(processes.start(2, tmp_path, command("CoOp", "run", *pairs)))
    assert codes == [2, 2]
    assert processes.printed(tmp_path, 1) == ""
    said = [text for text in processes.printed(tmp_path, 0).splitlines() if "error: " in text]
    assert len(said) == 1 and said[0].startswith(line)


class Unreadable(dict):
    """Decoded images, of which none can be read."""

    def __missing__(self, path):
        raise ImageError(f"cannot read '{path}'")


def lose_the_images(trainer):
    if distributed.rank() == 1:
        trainer.train_loader_x.dataset._images = Unreadable()


def lose_the_images_of_one() -> None:
    MethodTrainer.before_epoch = lose_the_images


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_stops_all(command, tmp_path):
    line = command("CoOp", "run")
    running = processes.start(2, tmp_path, line, prepare=lose_the_images_of_one)
    assert processes.finish(running) == [2, 2]
    assert "error: " not in processes.printed(tmp_path, 0)
    (line,) = processes.printed(tmp_path, 1).splitlines()
    assert line.startswith("error: cannot read '") and line.endswith(".png'")


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_stops_the_others_with_one_line(killed, command, tmp_path):
    running = processes.start(2, tmp_path, command("CoOp", "run", epochs=1000))
    log = tmp_path / "0.txt"
    while "epoch [2/" not in (log.read_text() if log.exists() else ""):
        assert running[0].is_alive()
        time.sleep(0.05)
    os.kill(running[killed].pid, signal.SIGKILL)
    codes = processes.finish(running)
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 2
    said = processes.printed(tmp_path, 1 - killed).splitlines()
    assert [text for text in said if "error: " in text] == [
        "error: another process of this run has ended or does not answer; the same command resumes"
    ]
    assert killed == 1 or len(said) == 1


# Without processes -------------------------------------------------------------------------------


@pytest.fixture
def second_of_three(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 1)


def test_shares_are_of_one_size_and_filled_up(second_of_three):
    assert distributed.shares("abcdef") == ["c", "d"]
    assert distributed.shares("abcd") == ["c", "d"]
    assert distributed.shares("abc") == ["b"]
    assert distributed.shares("a") == ["a"]
    with distributed.shared_batch(4):
        assert distributed.whole(2) == 4
        assert distributed.own(torch.arange(4)).tolist() == [2, 3]
    assert distributed.whole(2) == 2 and distributed.own(torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_batches_of_an_evaluation_go_around(second_of_three):
    for n, expected in ((7, [1, 4]), (8, [1, 4, 7]), (1, [])):
        batches = _EveryNth(range(n), distributed.rank(), distributed.count())
        assert list(batches) == expected and len(batches) == len(expected)


def test_more_processes_than_gpus_are_refused(second_of_three, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    cfg = get_cfg_default("CoOp")
    with pytest.raises(UserError) as error:
        distributed.prepare(cfg, trains=False)
    assert str(error.value) == (
        "--nproc_per_node: expected at most 2, the number of GPUs, got 3; USE_CUDA False computes "
        "on the CPU"
    )
    cfg.USE_CUDA = False
    distributed.prepare(cfg, trains=False)


def test_a_trainer_that_is_no_method_is_refused(second_of_three, monkeypatch):
    class Public(SimpleTrainer):
        pass

    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Public", Public)
    cfg = get_cfg_default("Public")
    cfg.TRAINER.NAME, cfg.DATASET.NAME = "Public", "ColourPatches"
    with pytest.raises(UserError, match="^TRAINER.NAME: expected a method that trains in several"):
        build.check_cfg(cfg)


@pytest.mark.slow
def test_torchrun_itself(command, tmp_path):
    def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return subprocess.run(
            [*launcher, "--nproc_per_node=2", train.__file__, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    digits = ["--trainer", "CoOp", "--seed", "1", "--root", str(tmp_path)]
    digits += ["--dataset-config-file", "configs/datasets/digits.yaml"]
    digits += ["--config-file", "configs/trainers/CoOp/vit_mini.yaml"]
    digits += [*ON_CPU, "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
    done = torchrun("--output-dir", str(tmp_path / "two"), *digits)
    assert done.returncode == 0, done.stderr
    assert train.main(["--output-dir", str(tmp_path / "one"), *digits]) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    assert figures(tmp_path / "two")["accuracy"] == figures(tmp_path / "one")["accuracy"]
    # --help and a bad argument are said once
    assert torchrun("--help").stdout.count("usage:") == 1
    failed = torchrun("--no-such-option")
    assert failed.returncode == 1 and failed.stderr.count("error: ") == 1
