"""A folder that already belongs to a run: what may be done in it, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from dassl.engine import same_run
from dassl.engine.checkpoints import find_checkpoint
from dassl.errors import UserError
from tests.dassl import toys


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return toys.draw(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """Make the output folder of a run over three epochs, with a checkpoint after each."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main(toys.cli(root, output, "TRAIN.CHECKPOINT_FREQ", "1")) == 0
    return output


@pytest.fixture
def used(finished, tmp_path):
    """Copy the finished run into a folder that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "used"))


def refusal(capsys, root: Path, output: Path, *options: str) -> str:
    """Return the one line with which a command is refused; the folder must stay as it is."""
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train.main(toys.cli(root, output, *options)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    return lines[0].removeprefix("error: ")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    ("key", "value", "old", "new"),
    [
        ("OPTIM.LR", "0.5", 0.02, 0.5),
        ("OPTIM.MAX_EPOCH", "1", 3, 1),
        ("SEED", "2", 1, 2),
        ("DATASET.NUM_SHOTS", "4", -1, 4),
        ("INPUT.CUTOUT_LEN", "2", 3, 2),
        ("TRAINER.NAME", "WideToyTrainer", "ToyTrainer", "WideToyTrainer"),
        ("TEST.FINAL_MODEL", "best_val", "last_step", "best_val"),
    ],
)
def test_another_run_is_refused_and_the_key_named(root, used, capsys, key, value, old, new):
    line = refusal(capsys, root, used, key, value)
    begin = f"{key}: expected {old!r}, as in the run in '{used}', got {new!r}; "
    if key == "OPTIM.MAX_EPOCH":
        begin = f"{key}: expected 3, as the run in '{used}' is finished after 3 epochs, got 1; "
    assert line.startswith(begin)
    assert "OUTPUT_DIR" in line


@pytest.mark.parametrize("options", [(), ("OPTIM.LR", "0.5")])
def test_of_a_config_cut_at_any_line_nothing_is_concluded(root, used, capsys, options):
    lines = (used / "config.yaml").read_text().splitlines(keepends=True)
    for count in range(0, len(lines), 20):
        (used / "config.yaml").write_text("".join(lines[:count]))
        line = refusal(capsys, root, used, *options)
        assert line == (
            f"config file '{used / 'config.yaml'}': expected the whole config of a run, got less"
        )


def change(folder: Path, key: str, value: Any) -> None:
    """Change a key in the config.yaml of a run, or with None remove it."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *nodes, name = key.split(".")
    node = reduce(getitem, nodes, config)
    if value is None:
        del node[name]
    else:
        node[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_key_that_a_run_of_an_earlier_version_lacks_had_its_default(root, used, capsys):
    change(used, "DATALOADER.TRAIN_X.DROP_LAST", None)
    change(used, "OPTIM.STEPSIZE", None)
    line = refusal(capsys, root, used, "DATALOADER.TRAIN_X.DROP_LAST", "False")
    assert line.startswith("DATALOADER.TRAIN_X.DROP_LAST: expected True, as in the run in ")
    assert train.main(toys.cli(root, used)) == 0


def test_a_key_that_this_version_does_not_know_does_not_count(root, used):
    change(used, "OPTIM.OF_ANOTHER_VERSION", 3)
    assert train.main(toys.cli(root, used)) == 0


def test_another_trainer_is_named_before_what_differs_because_of_it(root, used, capsys):
    options = ("DATASET.NUM_SHOTS", "4", "OPTIM.LR", "0.5", "TRAINER.NAME", "WideToyTrainer")
    line = refusal(capsys, root, used, *options)
    assert line.startswith("TRAINER.NAME: expected 'ToyTrainer', as in the run in ")


def test_a_run_that_has_saved_nothing_cannot_be_resumed_elsewhere(
    root, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (1, 1))
    assert train.main(toys.cli(root, tmp_path / "old")) == 130
    capsys.readouterr()
    old = str(tmp_path / "old")
    assert train.main(toys.cli(root, tmp_path / "new", "--resume", old)) == 2
    assert capsys.readouterr().err == (
        f"error: RESUME: expected a run that has saved an epoch, got '{old}'\n"
    )


def test_what_an_evaluation_leaves_of_an_earlier_one_is_named(root, finished, tmp_path, capsys):
    load = ("--eval-only", "--model-dir", str(finished))
    kept = ("TEST.SAVE_LOGITS", "True", "TEST.COMPUTE_CMAT", "True")
    output = tmp_path / "eval"
    assert train.main(toys.cli(root, output, *load, *kept)) == 0
    assert "earlier evaluation" not in capsys.readouterr().out
    assert train.main(toys.cli(root, output, *load, "--load-epoch", "1")) == 0
    printed = capsys.readouterr().out
    for name in ("logits.npz", "cmat.pt"):
        assert f"{output / name} is still that of an earlier evaluation" in printed
    assert printed.count("earlier evaluation") == 2


def test_more_epochs_than_a_finished_run_had_point_to_its_weights(root, used, tmp_path, capsys):
    line = refusal(capsys, root, used, "OPTIM.MAX_EPOCH", "5")
    weights = used / "toy_net" / "model.pth.tar-3"
    assert line == (
        f"OPTIM.MAX_EPOCH: expected 3, as the run in '{used}' is finished after 3 epochs, got 5; "
        f"to go on from its model, set MODEL.INIT_WEIGHTS {weights} and another OUTPUT_DIR"
    )
    code = train.main(
        toys.cli(root, tmp_path / "new", "--resume", str(used), "OPTIM.MAX_EPOCH", "5")
    )
    assert code == 2 and "is finished after 3 epochs, got 5" in capsys.readouterr().err


def test_resuming_a_finished_run_says_that_it_is_finished(root, finished, tmp_path, capsys):
    assert train.main(toys.cli(root, tmp_path / "new", "--resume", str(finished))) == 0
    printed = capsys.readouterr().out
    assert f"The run in {finished} is finished: not training again after 3 epochs" in printed
    assert "set MODEL.INIT_WEIGHTS" in printed and "epoch [" not in printed
    assert results(tmp_path / "new")["accuracy"] == results(finished)["accuracy"]


def test_free_keys_may_change_in_a_used_folder(root, used, capsys):
    options = ("DATALOADER.NUM_WORKERS", "1", "TEST.PER_CLASS_RESULT", "True")
    assert train.main(toys.cli(root, used, *options)) == 0
    assert "is finished: not training again" in capsys.readouterr().out


def test_a_moved_root_is_free_unless_it_is_the_dataset(root, used, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(root)
    config = yaml.safe_load((used / "config.yaml").read_text())
    moved = {**config, "DATASET": {**config["DATASET"], "ROOT": str(tmp_path)}}
    same_run.check_output(str(used), moved)
    as_photos = {**config, "DATASET": {**config["DATASET"], "NAME": "ImageFolder"}}
    (used / "config.yaml").write_text(yaml.safe_dump(as_photos))
    linked = {**as_photos, "DATASET": {**as_photos["DATASET"], "ROOT": str(link)}}
    same_run.check_output(str(used), linked)  # the same folder under another name
    other = {**as_photos, "DATASET": {**as_photos["DATASET"], "ROOT": str(tmp_path)}}
    with pytest.raises(UserError, match=f"DATASET.ROOT: expected '{root}'.*, got '{tmp_path}'"):
        same_run.check_output(str(used), other)


def test_the_test_switch_is_not_free_where_validation_selects_the_model(root, tmp_path, capsys):
    output = tmp_path / "run"
    best = ("TEST.FINAL_MODEL", "best_val")
    assert train.main(toys.cli(root, output, *best)) == 0
    line = refusal(capsys, root, output, *best, "TEST.NO_TEST", "True")
    assert line.startswith("TEST.NO_TEST: expected False")


def test_an_evaluation_does_not_replace_the_results_of_training(root, used, finished, capsys):
    line = refusal(capsys, root, used, "--eval-only", "--model-dir", str(finished))
    assert line == (
        "OUTPUT_DIR: expected another folder than that of a training run, whose results are to "
        f"stay, got '{used}'"
    )


def test_an_evaluation_does_not_replace_another_one(root, finished, tmp_path, capsys):
    load = ("--eval-only", "--model-dir", str(finished))
    output = tmp_path / "eval"
    assert train.main(toys.cli(root, output, *load)) == 0
    assert train.main(toys.cli(root, output, *load)) == 0  # the same one again
    line = refusal(capsys, root, output, *load, "SEED", "2")
    assert line.startswith(f"SEED: expected 1, as in the run in '{output}', got 2;")
    assert refusal(capsys, root, output, "SEED", "2").startswith("SEED: expected 1")


def test_checkpoints_of_unknown_settings_are_not_trained_over(root, used, capsys):
    for name in ("config.yaml", "results.json"):
        (used / name).unlink()
    line = refusal(capsys, root, used)
    assert line == (
        f"OUTPUT_DIR: expected a new folder, or that of the same run, got '{used}', which has "
        "checkpoints and no config.yaml"
    )


def test_a_continuation_goes_on_with_its_own_progress(root, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("dassl.engine.resume.SAVE_INTERVAL", 0.0)
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (2, 1))
    assert train.main(toys.cli(root, tmp_path / "old")) == 130
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (3, 1))
    command = toys.cli(root, tmp_path / "new", "--resume", str(tmp_path / "old"))
    assert train.main(command) == 130
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", None)
    assert train.main(command) == 0
    log = "".join(path.read_text() for path in (tmp_path / "new").glob("log.txt*"))
    assert log.count("epoch [2/3] batch [1/3]") == 1
    ours, theirs = toys.weights(tmp_path / "new"), toys.weights(finished)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model-dir", "{run}"], "--model-dir: expected nothing without --eval-only, got"),
        (["--load-epoch", "2"], "--load-epoch: expected nothing without --eval-only, got 2"),
        (["--eval-only"], "--model-dir: expected the folder of a run of ToyTrainer, which must be"),
        (
            ["--eval-only", "--model-dir", "{run}", "--resume", "{run}"],
            "--resume: expected nothing with --eval-only, got",
        ),
        (
            ["--eval-only", "--model-dir", "{run}", "--no-train"],
            "--no-train: expected nothing with --eval-only, got True",
        ),
        (
            ["--eval-only", "--model-dir", "{run}", "--load-epoch", "0"],
            "--load-epoch: expected an epoch from 1 of a --model-dir, got 0",
        ),
        (
            ["--eval-only", "--load-epoch", "2"],
            "--load-epoch: expected an epoch from 1 of a --model-dir, got 2",
        ),
    ],
)
def test_options_without_effect_are_refused(root, finished, tmp_path, capsys, options, message):
    options = [option.format(run=finished) for option in options]
    assert train.main(toys.cli(root, tmp_path / "new", *options)) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


# Which checkpoint is loaded ----------------------------------------------------------------------


def test_the_file_checkpoint_decides_what_is_loaded(root, used, tmp_path):
    (used / "toy_net" / "checkpoint").write_text("model.pth.tar-2\n")
    output = tmp_path / "eval"
    assert train.main(toys.cli(root, output, "--eval-only", "--model-dir", str(used))) == 0
    assert results(output)["epoch"] == 2


@pytest.mark.parametrize("content", ["model.pth.tar-9", "", "../toy_net/model.pth.tar-3", "\udcff"])
def test_a_file_checkpoint_that_names_no_checkpoint_is_refused(used, content):
    place = used / "toy_net" / "checkpoint"
    place.write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=str(place)):
        find_checkpoint(str(used / "toy_net"))


def test_a_pipe_in_place_of_the_file_checkpoint_is_not_waited_for(used):
    place = used / "toy_net" / "checkpoint"
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(UserError, match=f"^cannot read '{place}': it is not a file$"):
        find_checkpoint(str(used / "toy_net"))


def test_without_the_file_checkpoint_the_highest_epoch_is_loaded(used):
    (used / "toy_net" / "checkpoint").unlink()
    assert find_checkpoint(str(used / "toy_net")).endswith("model.pth.tar-3")


@pytest.mark.parametrize(("tie", "epoch"), [("first", 1), ("last", 3)])
def test_of_equal_validation_results_the_first_or_the_last_stays(
    root, tmp_path, monkeypatch, tie, epoch
):
    evaluate = toys.ToyTrainer.test
    monkeypatch.setattr(
        toys.ToyTrainer,
        "test",
        lambda self, split=None: 50.0 if split == "val" else evaluate(self, split),
    )
    options = ("TEST.FINAL_MODEL", "best_val", "TEST.BEST_VAL_TIE", tie)
    assert train.main(toys.cli(root, tmp_path / "run", *options)) == 0
    assert results(tmp_path / "run")["epoch"] == epoch
