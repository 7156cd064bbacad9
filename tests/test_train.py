"""The command line, with toy trainers and a toy dataset."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from dassl.engine import resume, run_folder
from tests.dassl import toys

REPOSITORY = Path(train.__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return toys.draw(tmp_path_factory.mktemp("data"))


def run(root, output, *options):
    return train.main(toys.cli(root, output, *options))


def error_of(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """Make the output folder of a run over three epochs."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    assert run(root, output, "TEST.SAVE_LOGITS", "True", "TEST.COMPUTE_CMAT", "True") == 0
    return output


# What a run leaves ------------------------------------------------------------------------------


def test_run_leaves_log_results_scalars_and_model(finished):
    names = sorted(path.name for path in finished.iterdir())
    expected = ["cmat.pt", "config.yaml", "log.txt", "logits.npz", "predictions.npz"]
    assert names == [*expected, "results.json", "tensorboard", "toy_net"]
    assert (finished / "toy_net" / "checkpoint").read_text() == "model.pth.tar-3\n"
    checkpoint = torch.load(finished / "toy_net" / "model.pth.tar-3", weights_only=True)
    assert sorted(checkpoint) == ["class_names", "epoch", "state_dict", "val_result"]
    assert checkpoint["epoch"] == 3 and checkpoint["class_names"] == list(toys.CLASSES)
    assert any((finished / "tensorboard").iterdir())


def test_log_has_a_line_per_batch_and_the_public_result_lines(finished):
    log = (finished / "log.txt").read_text()
    assert "Finish training\nFinished training\n" in log
    assert "** Arguments **" in log and "** Config **" in log and "** System info **" in log
    assert "epoch [3/3] batch [3/3] time " in log and " lr " in log and " eta 0:00:00" in log
    results = json.loads((finished / "results.json").read_text())
    assert f"=> result\n* total: 30\n* correct: {results['correct']}\n" in log
    assert f"* accuracy: {results['accuracy']:.1f}%\n" in log


def test_results_hold_figures_config_and_versions(finished, root):
    results = json.loads((finished / "results.json").read_text())
    assert results["total"] == 30
    assert results["accuracy"] == pytest.approx(100 * results["correct"] / 30)
    assert results["error"] == pytest.approx(100 - results["accuracy"])
    assert 0 <= results["macro_f1"] <= 100
    assert list(results["per_class_accuracy"]) == list(toys.CLASSES)
    assert np.mean(list(results["per_class_accuracy"].values())) == pytest.approx(
        results["accuracy"]
    )
    assert results["trainer"] == "ToyTrainer" and results["dataset"] == "Toys"
    assert results["seed"] == 1 and results["epoch"] == 3 and results["split"] == "test"
    assert results["wall_time_s"] > 0 and results["peak_memory_mb"] > 1
    assert results["config"]["OPTIM"]["LR"] == 0.02
    assert results["config"]["DATASET"]["ROOT"] == str(root)
    assert results["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_logits_agree_with_the_results(finished):
    results = json.loads((finished / "results.json").read_text())
    with np.load(finished / "logits.npz") as arrays:
        assert arrays["logits"].shape == (30, 5)
        correct = (arrays["logits"].argmax(axis=1) == arrays["labels"]).sum()
        assert correct == results["correct"]
        names = [Path(path).parent.name for path in arrays["impaths"]]
    assert names == [name for name in toys.CLASSES for _ in range(6)]


def test_confusion_matrix_rows_sum_to_one(finished):
    matrix = torch.load(finished / "cmat.pt", weights_only=True)
    assert matrix.shape == (5, 5)
    assert torch.allclose(matrix.sum(dim=1), torch.ones(5, dtype=matrix.dtype))


def test_main_puts_the_process_back(root, tmp_path):
    stdout, handler = sys.stdout, signal.getsignal(signal.SIGTERM)
    assert run(root, tmp_path / "run", "--no-train") == 0
    assert sys.stdout is stdout
    assert signal.getsignal(signal.SIGTERM) is handler
    assert run_folder.holder(str(tmp_path / "run")) is None


def test_same_seed_gives_the_same_weights(root, finished, tmp_path):
    assert run(root, tmp_path / "again") == 0
    assert_same_weights(tmp_path / "again", finished)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = toys.weights(one), toys.weights(other)
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


# Evaluation -------------------------------------------------------------------------------------


def test_eval_only_reloads_the_newest_model(root, finished, tmp_path, capsys):
    output = tmp_path / "eval"
    assert run(root, output, "--eval-only", "--model-dir", str(finished)) == 0
    assert "There is no model-best.pth.tar" in capsys.readouterr().out
    ours = json.loads((output / "results.json").read_text())
    theirs = json.loads((finished / "results.json").read_text())
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["per_class_accuracy"] == theirs["per_class_accuracy"]
    assert ours["epoch"] == 3
    assert (output / "log.txt").is_file() and not (output / "tensorboard").exists()


def test_load_epoch_takes_that_epoch(root, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(root, output, "TRAIN.CHECKPOINT_FREQ", "1") == 0
    options = ("--eval-only", "--model-dir", str(output), "--load-epoch")
    assert run(root, tmp_path / "eval", *options, "2") == 0
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["epoch"] == 2
    capsys.readouterr()
    assert run(root, tmp_path / "eval2", *options, "7") == 2
    assert "model.pth.tar-7' does not exist; epochs saved there: 1, 2, 3" in error_of(capsys)


def test_best_val_model_is_deployed(root, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(root, output, "TEST.FINAL_MODEL", "best_val") == 0
    printed = capsys.readouterr().out
    assert printed.count("Evaluate on the *val* set") == 3
    best = torch.load(output / "toy_net" / "model-best.pth.tar", weights_only=True)
    assert f"Load {output}/toy_net/model-best.pth.tar to toy_net (epoch={best['epoch']}" in printed
    assert json.loads((output / "results.json").read_text())["epoch"] == best["epoch"]


@pytest.mark.parametrize(
    ("count", "kind"), [(0, "no validation images"), (1, "test images for validation")]
)
def test_the_best_model_is_not_selected_by_test_images(
    root, tmp_path, capsys, monkeypatch, count, kind
):
    monkeypatch.setattr(toys.Toys, "val", property(lambda self: self.test[:count]))
    assert run(root, tmp_path / "run", "TEST.FINAL_MODEL", "best_val") == 2
    assert error_of(capsys) == (
        f"error: TEST.FINAL_MODEL: expected last_step for Toys, which has {kind}, got best_val"
    )
    assert run(root, tmp_path / "run") == 0
    model = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert run(root, tmp_path / "eval", *model, "TEST.FINAL_MODEL", "best_val") == 0


def test_a_public_trainer_tests_on_its_training_classes(root, tmp_path, capsys):
    assert run(root, tmp_path / "run", "TEST.SUBSAMPLE_CLASSES", "base") == 2
    assert "TEST.SUBSAMPLE_CLASSES: expected '' for ToyTrainer" in error_of(capsys)
    assert not (tmp_path / "run").exists()


# Interruption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["0", "2"])
def test_resumed_run_ends_with_the_same_weights(root, tmp_path, monkeypatch, capsys, workers):
    options = ("DATALOADER.NUM_WORKERS", workers, "TEST.FINAL_MODEL", "best_val")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(root, whole, *options) == 0
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (3, 2))
    assert run(root, parts, *options) == 130
    assert capsys.readouterr().err.startswith("interrupted; ")
    assert (parts / "resume.pth.tar").is_file() and not (parts / "results.json").exists()
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", None)
    assert run(root, parts, *options) == 0
    assert "Resuming the run in" in capsys.readouterr().out
    assert not (parts / "resume.pth.tar").exists()
    assert_same_weights(parts, whole)
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, parts)]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0]["epoch"] == results[1]["epoch"]


def test_resume_option_continues_in_another_folder(root, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (2, 1))
    assert run(root, tmp_path / "old") == 130
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", None)
    assert run(root, tmp_path / "new", "--resume", str(tmp_path / "old")) == 0
    assert "1 epochs are done" in capsys.readouterr().out
    assert_same_weights(tmp_path / "new", finished)
    assert (tmp_path / "old" / "resume.pth.tar").is_file()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_training_may_end_within_an_epoch_and_resume_there(root, tmp_path, monkeypatch, workers):
    options = ("--trainer", "IterationTrainer", "DATALOADER.NUM_WORKERS", workers)
    options = (*options, "OPTIM.MAX_EPOCH", "50")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(root, whole, *options) == 0
    log = (whole / "log.txt").read_text()
    assert log.count(" batch [") == 7
    assert "epoch [2/3] batch [3/3]" in log and "epoch [3/3] batch [1/1]" in log
    assert "eta 0:00:00" in [line for line in log.splitlines() if "batch [" in line][-1]
    monkeypatch.setattr(resume, "SAVE_INTERVAL", 0.0)
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (3, 1))
    assert run(root, parts, *options) == 130
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", None)
    assert run(root, parts, *options) == 0
    assert_same_weights(parts, whole)
    assert json.loads((parts / "results.json").read_text())["epoch"] == 3


def test_interruption_in_the_first_epoch_starts_again(
    root, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (1, 2))
    assert run(root, tmp_path / "run") == 130
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", None)
    assert run(root, tmp_path / "run") == 0
    assert "train from scratch" in capsys.readouterr().out
    assert_same_weights(tmp_path / "run", finished)
    assert len(list((tmp_path / "run").glob("log.txt*"))) == 2


def test_finished_run_is_only_evaluated(root, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(root, output) == 0
    before = (output / "toy_net" / "model.pth.tar-3").stat().st_mtime_ns
    results = json.loads((output / "results.json").read_text())
    capsys.readouterr()
    assert run(root, output) == 0
    printed = capsys.readouterr().out
    assert "is finished: not training again" in printed and "epoch [1/3]" not in printed
    assert (output / "toy_net" / "model.pth.tar-3").stat().st_mtime_ns == before
    assert json.loads((output / "results.json").read_text())["accuracy"] == results["accuracy"]


def test_a_finished_run_can_be_skipped_and_an_unfinished_one_not(root, finished, tmp_path, capsys):
    before = contents(finished)
    options = ("TEST.SAVE_LOGITS", "True", "TEST.COMPUTE_CMAT", "True")
    assert run(root, finished, "--skip-finished", *options) == 0
    assert capsys.readouterr().out == f"skipped, finished before: {finished}\n"
    assert contents(finished) == before
    assert run(root, finished, "--skip-finished", "SEED", "7", *options) == 2
    assert error_of(capsys).startswith("error: SEED: expected ")
    with run_folder.locked(str(finished)):  # somebody may be about to change what is there
        assert run(root, finished, "--skip-finished", *options) == 2
    assert "no other process uses" in error_of(capsys)
    assert run(root, tmp_path / "run", "--skip-finished") == 0
    assert_same_weights(tmp_path / "run", finished)


def test_another_config_in_the_same_folder_is_refused(root, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (2, 1))
    assert run(root, output) == 130
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", None)
    capsys.readouterr()
    kept = f"as in the run in '{output}/resume.pth.tar'"
    assert run(root, output, "OPTIM.LR", "0.5") == 2
    assert f"OPTIM.LR: expected 0.02, {kept}, got 0.5;" in error_of(capsys)
    assert run(root, output, "--trainer", "WideToyTrainer") == 2
    assert f"expected 'ToyTrainer', {kept}, got 'WideToyTrainer';" in error_of(capsys)
    assert (output / "resume.pth.tar").is_file()


def test_another_config_than_a_finished_run_is_refused(root, finished, capsys):
    assert run(root, finished, "OPTIM.LR", "0.5") == 2
    kept = f"as in the run in '{finished}'"
    assert f"OPTIM.LR: expected 0.02, {kept}, got 0.5;" in error_of(capsys)


def test_sigterm_ends_the_process_with_130(root, tmp_path):
    code = (
        "import os, signal, sys, train\n"
        "from tests.dassl import toys\n"
        "def terminate(self, batch): os.kill(os.getpid(), signal.SIGTERM)\n"
        "toys.ToyTrainer.forward_backward = terminate\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *toys.cli(root, tmp_path / "run")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert done.stderr.strip().splitlines()[-1].startswith("interrupted; ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
def test_sigterm_to_all_processes_of_a_run_is_one_line(root, tmp_path):
    code = (
        "import os, signal, sys, train\n"
        "from tests.dassl import toys\n"
        "def terminate(self, batch): os.killpg(0, signal.SIGTERM)\n"
        "toys.ToyTrainer.forward_backward = terminate\n"
        "sys.exit(train.command())\n"
    )
    arguments = toys.cli(root, tmp_path / "run", "DATALOADER.NUM_WORKERS", "2")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    line = "interrupted; the same command resumes from the last saved epoch\n"
    assert (done.returncode, done.stderr) == (130, line)


def test_an_interrupted_import_is_not_repeated_to_report_it(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "dassl.utils.logger")
    train.report("interrupted")
    assert capsys.readouterr().err == "interrupted\n"
    assert "dassl.utils.logger" not in sys.modules


def test_a_second_process_can_be_silent(root, tmp_path):
    code = (
        "import logging, sys, train\n"
        "from dassl.utils import log\n"
        "from tests.dassl import toys\n"
        "log.setLevel(logging.WARNING)\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *toys.cli(root, tmp_path / "run", "VERBOSE", "True")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # only what a trainer for the public toolbox prints itself is left, in the log file, too
    line = f"Building a model for {list(toys.CLASSES)}\n"
    assert done.stdout == line
    assert (tmp_path / "run" / "log.txt").read_text() == line
    assert (tmp_path / "run" / "results.json").exists()


# Faults of the machine ---------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
def test_a_killed_worker_is_one_line_and_the_run_resumes(
    root, finished, tmp_path, monkeypatch, capsys
):
    def kill(self, batch):
        if self.epoch == 1:
            (child, *_) = multiprocessing.active_children()
            child.kill()
            child.join()
        return step(self, batch)

    step = toys.ToyTrainer.forward_backward
    monkeypatch.setattr(toys.ToyTrainer, "forward_backward", kill)
    options = ("DATALOADER.NUM_WORKERS", "2")
    assert run(root, tmp_path / "run", *options) == 2
    line = error_of(capsys)
    assert (
        line.startswith("error: DataLoader worker (pid") and "is memory short? fewer DATAL" in line
    )
    monkeypatch.setattr(toys.ToyTrainer, "forward_backward", step)
    assert run(root, tmp_path / "run", *options) == 0
    assert "1 epochs are done" in capsys.readouterr().out
    assert_same_weights(tmp_path / "run", finished)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a"), "Too many open files: 'a'; raise the"),
        (MemoryError("8 GiB"), "out of memory; smaller batches ("),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory; smaller batches ("),
    ],
)
def test_what_the_machine_lacks_is_one_line(root, tmp_path, monkeypatch, capsys, error, line):
    def fail(self):
        raise error

    monkeypatch.setattr(toys.ToyTrainer, "build_model", fail)
    assert run(root, tmp_path / "run") == 2
    assert error_of(capsys).startswith(f"error: {line}")
    assert f"\nerror: {line}" in (tmp_path / "run" / "log.txt").read_text()


def test_an_error_of_ours_keeps_its_traceback(root, tmp_path, monkeypatch):
    monkeypatch.setattr(toys.ToyTrainer, "build_model", lambda self: open(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        run(root, tmp_path / "run")


WRITTEN = (
    *("config.yaml", "events.out", "resume.pth.tar", "model.pth.tar-2", "checkpoint"),
    *("model-best.pth.tar", "model.pth.tar-3", "cmat.pt", "logits.npz", "predictions.npz"),
    "results.json",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_without_space_for_a_file_the_run_stops_and_resumes(
    root, tmp_path, monkeypatch, capsys, name
):
    options = ("TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", "1")
    options = (*options, "TEST.SAVE_LOGITS", "True", "TEST.COMPUTE_CMAT", "True")
    assert run(root, tmp_path / "whole", *options) == 0

    def fail_for(function, is_it):
        def full(*args, **kwargs):
            if is_it(*args, **kwargs):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return full

    def is_temporary(dir=None, prefix="", **others):
        return prefix == f".{name}.tmp-"

    def is_event(path, mode="r", *args, **others):
        return Path(str(path)).name.startswith(name) and "w" in mode

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", fail_for(tempfile.mkstemp, is_temporary))
        patch.setattr("dassl.engine.curves.open", fail_for(open, is_event), raising=False)
        assert run(root, tmp_path / "parts", *options) == 2
    line = error_of(capsys)
    assert line.startswith(f"error: cannot write '{tmp_path}/parts/") and name in line
    assert line.endswith("': No space left on device")
    assert not (tmp_path / "parts" / "results.json").exists()
    assert run(root, tmp_path / "parts", *options) == 0
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    for file in ("predictions.npz", "logits.npz", "cmat.pt", "toy_net/model-best.pth.tar"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_or_closed_console_is_one_line(root, tmp_path):
    code = "import sys, train; from tests.dassl import toys; sys.argv[0] = 'train.py'\n"
    code += "sys.exit(train.command())\n"
    command = [sys.executable, "-c", code, *toys.cli(root, tmp_path / "run")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE)
    line = b"error: cannot write the standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, line)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (
        2,
        line.replace(b"No space left on device", b"Broken pipe"),
    )
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *command], cwd=REPOSITORY)
    assert done.returncode == 0 and (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")
def test_a_run_killed_at_file_operations_ends_the_same(tmp_path):
    from benchmarks import kill_runs

    trials = kill_runs.Trials(tmp_path)
    assert trials.operations > 50
    for number in range(10, trials.operations, trials.operations // 5):
        trials.at_operation(number)
    trials.at_moment(trials.duration / 2, tmp_path / "moment")
    trials.finish(tmp_path / "moment")
    assert trials.kills >= 5 and trials.failures == []


@pytest.mark.parametrize("name", ["logits.npz", "cmat.pt", "toy_net"])
def test_what_is_in_the_way_of_a_run_is_found_before_training(root, tmp_path, capsys, name):
    output = tmp_path / "run"
    output.mkdir()
    if name == "toy_net":
        (output / name).touch()
    else:
        (output / name).mkdir()
    assert run(root, output, "TEST.SAVE_LOGITS", "True", "TEST.COMPUTE_CMAT", "True") == 2
    assert error_of(capsys).startswith(f"error: cannot write '{output / name}': ")
    assert set(os.listdir(output)) <= {name, "log.txt"}


def test_what_is_typed_reaches_the_terminal_escaped(capsys):
    assert train.main(["--se\x1b[31m\n"]) == 2
    line = error_of(capsys)
    assert line.startswith("error: unrecognized arguments: --se\\x1b[31m\\n; see ")
    assert train.main(["--seed", "\x1b[31m"]) == 2
    assert "\x1b" not in capsys.readouterr().err


# One process in a folder -------------------------------------------------------------------------

# A run that stops in its second epoch after printing the ids of its loader's processes.
WAITING = """
import multiprocessing, sys, torch, train
from tests.dassl import toys
torch.set_num_threads(1)  # as the tests: with another number sums differ in the last bit
step = toys.ToyTrainer.forward_backward
def wait(self, batch):
    if self.epoch == 1:
        pids = [child.pid for child in multiprocessing.active_children()]
        print("workers", *pids, file=sys.__stdout__, flush=True)  # not into the log
        sys.stdin.read()
    return step(self, batch)
toys.ToyTrainer.forward_backward = wait
sys.exit(train.main(sys.argv[1:]))
"""


def contents(folder: Path) -> dict[str, tuple[int, bytes] | None]:
    """Return time of change and bytes of every file but TensorBoard's, which a thread writes."""
    return {
        str(path): None
        if path.parent.name == "tensorboard"
        else (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_second_process_is_refused_until_the_first_one_dies(root, finished, tmp_path, capsys):
    output = tmp_path / "run"
    options = ("DATALOADER.NUM_WORKERS", "2")
    command = [sys.executable, "-c", WAITING, *toys.cli(root, output, *options)]
    pipe = subprocess.PIPE
    workers: list[int] = []
    first = subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True)
    try:
        line = next(line for line in first.stdout if line.startswith("workers"))
        workers = [int(pid) for pid in line.split()[1:]]
        assert len(workers) == 2
        before = contents(output)
        name = f"process {first.pid} on {socket.gethostname()}"
        assert run_folder.holder(str(output)) == name

        message = (
            f"error: OUTPUT_DIR: expected a folder that no other process uses, got '{output}', "
            f"which {name} is using"
        )
        second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert (second.returncode, second.stderr) == (2, message + "\n")
        assert run(root, output, "--eval-only", "--model-dir", str(finished)) == 2
        assert error_of(capsys) == message
        assert contents(output) == before

        for pid in workers:  # they cannot notice anything now
            os.kill(pid, signal.SIGSTOP)
        first.kill()
        first.wait()
        assert all(map(is_running, workers)) and run_folder.holder(str(output)) is None
        assert run(root, output, *options) == 0
        assert "Resuming the run in" in capsys.readouterr().out
        assert_same_weights(output, finished)
        assert run_folder.LOCK_FILE not in os.listdir(output)
    finally:
        first.kill()
        first.wait()
        first.stdin.close()
        first.stdout.close()
        for pid in filter(is_running, workers):
            os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)):  # torch has them look for their parent every 5 seconds
        assert time.monotonic() < deadline
        time.sleep(0.1)


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            ["--trainer", "ToyTrainr"],
            ["TRAINER.NAME: expected one of ", "got 'ToyTrainr'; did you mean 'ToyTrainer'"],
        ),
        (
            ["DATASET.NAME", "Tois"],
            ["DATASET.NAME: expected one of ", "got 'Tois'; did you mean 'Toys'"],
        ),
        (
            ["OPTIM.LRR", "1"],
            ["OPTIM.LRR: expected a known key, got an unknown one", "did you mean 'LR'"],
        ),
        (["OPTIM.LR", "fast"], ["OPTIM.LR: expected a number", "got 'fast' on the command line"]),
        (["OPTIM.LR"], ["KEY VALUE pairs, but 'OPTIM.LR' has no value"]),
        (["--config-file", "none.yaml"], ["config file 'none.yaml' does not exist"]),
        (
            ["INPUT.TRANSFORMS", "('flip',)"],
            ["INPUT.TRANSFORMS: expected a list of any of ", "got ('flip',)"],
        ),
        (
            ["DATASET.NUM_SHOTS", "-2"],
            ["DATASET.NUM_SHOTS: expected a whole number >= -1, got -2"],
        ),
        (
            ["DATASET.SUBSAMPLE_CLASSES", "novel"],
            ["SUBSAMPLE_CLASSES: expected one of all, base, new, got 'novel'"],
        ),
        (["DATASET.ROOT", "''"], ["DATASET.ROOT: expected the folder of the datasets"]),
        (
            ["DATASET.ROOT", "/nowhere"],
            ["DATASET.ROOT: expected an existing folder, got '/nowhere'"],
        ),
        (["--eval-only", "--model-dir", "/nowhere"], ["--model-dir", "'/nowhere' does not exist"]),
        (["--resume", "/nowhere"], ["--resume", "'/nowhere' does not exist"]),
        (
            ["OPTIM.NAME", "sdg"],
            ["OPTIM.NAME: expected one of adam, ", "got 'sdg'; did you mean 'sgd'"],
        ),
        (
            ["TEST.FINAL_MODEL", "best"],
            ["TEST.FINAL_MODEL: expected one of last_step, best_val, got 'best'"],
        ),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(root, tmp_path, capsys, options, parts):
    assert run(root, tmp_path / "run", *options) == 2
    line = error_of(capsys)
    for part in parts:
        assert part in line
    assert not (tmp_path / "run").exists()


def test_output_folder_that_cannot_be_made(root, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(root, tmp_path / "file") == 2
    line = error_of(capsys)
    assert f"OUTPUT_DIR: expected a folder that can be written, got '{tmp_path}/file'" in line


def test_unknown_names_are_answered_before_heavy_imports(root, tmp_path):
    code = (
        "import sys, train\n"
        "code = train.main(sys.argv[1:])\n"
        "heavy = {'torchvision', 'open_clip', 'sklearn', 'torch.utils.tensorboard'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)), 'torch:', 'torch' in sys.modules)\n"
        "sys.exit(code)\n"
    )

    def answer(*arguments):
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True
        )

    unknown = answer("--trainer", "Nobody")
    assert unknown.returncode == 2 and unknown.stderr.startswith("error: TRAINER.NAME: expected")
    assert "heavy: []" in unknown.stdout
    usage = answer("--help")
    assert usage.returncode == 0 and "--dataset-config-file" in usage.stdout
    assert "heavy: [] torch: False" in usage.stdout
    assert answer("--seed", "x").returncode == 2


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_truncated_image_is_named_before_training(tmp_path, capsys, workers, split):
    root = toys.draw(tmp_path / "data")
    path = root / "toys" / split / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:-40])
    assert run(root, tmp_path / "run", "DATALOADER.NUM_WORKERS", workers) == 2
    assert f"image '{path}' is unreadable or truncated" in error_of(capsys)
    assert not (tmp_path / "run" / "toy_net").exists()


def test_image_that_breaks_later_is_named_from_a_worker(tmp_path, capsys, monkeypatch):
    root = toys.draw(tmp_path / "data")
    path = root / "toys" / "train" / "bee" / "3.png"
    path.write_bytes(b"nothing")
    monkeypatch.setattr("dassl.data.data_manager.MAX_CHECKED_IMAGES", 0)
    assert run(root, tmp_path / "run", "DATALOADER.NUM_WORKERS", "1") == 2
    assert f"image '{path}' is unreadable or truncated" in error_of(capsys)


def test_class_without_image_is_named(tmp_path, capsys):
    root = toys.draw(tmp_path / "data")
    for path in (root / "toys" / "train" / "cat").iterdir():
        path.unlink()
    assert run(root, tmp_path / "run") == 2
    line = error_of(capsys)
    assert "class 'cat' (label 2) of Toys has no training image" in line


def test_checkpoint_of_another_width_names_file_and_tensor(root, finished, tmp_path, capsys):
    options = ("--trainer", "WideToyTrainer", "--eval-only", "--model-dir", str(finished))
    assert run(root, tmp_path / "eval", *options) == 2
    line = error_of(capsys)
    assert str(finished) in line
    assert "tensor 'layers.1.weight' has shape (16, 192), this model's has (24, 192)" in line


def test_corrupt_checkpoint_names_the_file(root, finished, tmp_path, capsys):
    folder = tmp_path / "old" / "toy_net"
    folder.mkdir(parents=True)
    data = (finished / "toy_net" / "model.pth.tar-3").read_bytes()
    (folder / "model.pth.tar-3").write_bytes(data[: len(data) // 2])
    assert run(root, tmp_path / "eval", "--eval-only", "--model-dir", str(tmp_path / "old")) == 2
    assert f"checkpoint '{folder}/model.pth.tar-3' is corrupt" in error_of(capsys)


@pytest.mark.parametrize(
    ("trainer", "print_freq"),
    [
        ("ToyTrainer", "1"),
        ("OwnStepTrainer", "1"),
        ("TensorTrainer", "1"),
        ("TensorTrainer", "100"),  # longer than an epoch
        ("SecretiveTrainer", "3"),
        ("SecretiveTrainer", "100"),
    ],
)
def test_loss_that_is_not_a_number_stops_the_run(
    root, tmp_path, capsys, monkeypatch, trainer, print_freq
):
    output = tmp_path / "run"
    monkeypatch.setattr(toys.ToyTrainer, "nan_at", (3, 2))
    options = ("--trainer", trainer, "TRAIN.CHECKPOINT_FREQ", "1", "TRAIN.PRINT_FREQ", print_freq)
    assert run(root, output, *options) == 2
    line = error_of(capsys)
    assert "loss is nan at epoch 3, batch 2/3 (first images: " in line
    assert f"{root}{os.sep}toys" in line
    assert sorted(path.name for path in (output / "toy_net").iterdir()) == [
        "checkpoint",
        "model.pth.tar-1",
        "model.pth.tar-2",
    ]
    for tensor in toys.weights(output, 2).values():
        assert torch.isfinite(tensor.float()).all()
    # and the run can be resumed once the cause is gone
    monkeypatch.setattr(toys.ToyTrainer, "nan_at", None)
    assert run(root, output, *options) == 0
