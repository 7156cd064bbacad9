"""benchmarks/table.py, in a checkout whose train.py only writes results down."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import table

REPOSITORY = Path(__file__).parent.parent

# Novel accuracy falls with the seed; the run whose name is in FAIL ends as a user's error does.
STUB = """
import json, os, pathlib, sys

def main(arguments):
    values = dict(zip(arguments, arguments[1:]))
    with open("calls.txt", "a") as file:
        file.write(" ".join(arguments) + "\\n")
    folder = pathlib.Path(values["--output-dir"])
    if os.environ.get("FAIL") == folder.name:
        print("error: no such thing", file=sys.stderr)
        return 2
    assert "--model-dir" not in values or pathlib.Path(values["--model-dir"]).is_dir()
    part = values["DATASET.SUBSAMPLE_CLASSES"]
    accuracy = {"base": 90.0, "new": 62.0 - 2 * int(values["--seed"]), "all": 75.5}[part]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"accuracy": accuracy}))
    return 0
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(REPOSITORY / "benchmarks" / "table.py", tmp_path / "benchmarks")
    (tmp_path / "train.py").write_text(STUB)
    # The real one takes seconds to import, in each worker process.
    (tmp_path / "torch.py").write_text("def set_num_threads(number): pass")
    for name in ("datasets/shapes", "datasets/digits"):
        (tmp_path / f"configs/{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"configs/{name}.yaml").touch()
    for method in ("ZeroshotCLIP", "HiCroPL"):
        (tmp_path / f"configs/trainers/{method}").mkdir(parents=True)
        (tmp_path / f"configs/trainers/{method}/vit_mini.yaml").touch()
    return tmp_path


def run(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.table", *arguments, "--workers", "1"],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def calls(checkout: Path) -> list[str]:
    file = checkout / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


COMPARE = (
    *("--datasets", "shapes", "digits", "--methods", "ZeroshotCLIP", "HiCroPL"),
    *("--seeds", "1", "3", "--few-shot", "digits"),
)


def test_prints_one_table_and_repeats_no_finished_run(checkout):
    first = run(checkout, *COMPARE)
    assert first.returncode == 0, first.stderr
    lines = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert [[text.strip() for text in line.split("|")[1:-1]] for line in lines[2:]] == [
        ["shapes", "ZeroshotCLIP", "90.0", "60.0", "72.0", "-"],
        ["shapes", "HiCroPL", "90.0 ± 0.0", "58.0 ± 2.0", "70.5 ± 1.5", "-"],
        ["digits", "ZeroshotCLIP", "90.0", "60.0", "72.0", "75.5"],
        ["digits", "HiCroPL", "90.0 ± 0.0", "58.0 ± 2.0", "70.5 ± 1.5", "75.5 ± 0.0"],
    ]
    assert len({len(line) for line in lines}) == 1  # aligned
    # Without training: 2 + 3 tests. HiCroPL: 3 runs a seed and dataset, 1 more on all of digits.
    assert len(calls(checkout)) == 5 + 2 * (3 + 3 + 1)

    second = run(checkout, *COMPARE)
    assert [line for line in second.stdout.splitlines() if line.startswith("|")] == lines
    assert len(calls(checkout)) == 19


def test_a_failed_run_ends_with_its_message_and_the_next_call_goes_on(checkout):
    arguments = ("--datasets", "shapes", "--methods", "HiCroPL", "--seeds", "1")
    failed = run(checkout, *arguments, FAIL="new")
    assert failed.returncode == 1
    assert failed.stderr == "error: HiCroPL on shapes, base to novel, seed 1: no such thing\n"
    assert run(checkout, *arguments).returncode == 0
    assert len(calls(checkout)) == 4  # the training was not repeated


def test_told_to_stop_it_begins_no_further_run(checkout):
    (checkout / "train.py").write_text(
        """
import signal, time

def main(arguments):
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with open("calls.txt", "a") as file:
        file.write("called\\n")
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        return 130
"""
    )
    command = [sys.executable, "-m", "benchmarks.table", "--workers", "1", "--datasets", "shapes"]
    process = subprocess.Popen(
        [*command, "--methods", "HiCroPL"], cwd=checkout, stderr=subprocess.PIPE, text=True
    )
    while not calls(checkout):
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "stopped; the same command goes on from here\n"
    assert len(calls(checkout)) == 1


def test_unknown_names_end_with_exit_code_2_before_any_run(checkout):
    done = run(checkout, "--datasets", "shapes", "--methods", "HiCroP")
    assert done.returncode == 2 and "'HiCroP'" in done.stderr and "'HiCroPL'" in done.stderr
    assert run(checkout, "--datasets", "shapes", "--few-shot", "digits").returncode == 2
    assert calls(checkout) == []


def test_checkpoint_of_the_base_classes_is_loaded_for_base_and_novel():
    job = table.Job("HiCroPL", "shapes", 2, "base", "data", Path("out"))
    (model, train), (_, base), (_, new) = job.runs()
    assert "--eval-only" not in train
    for arguments, subset in ((base, "base"), (new, "new")):
        assert "--eval-only" in arguments
        assert arguments[arguments.index("--model-dir") + 1] == str(model)
        assert arguments[arguments.index("DATASET.SUBSAMPLE_CLASSES") + 1] == subset


def test_harmonic_mean():
    assert table.harmonic_mean(80.0, 40.0) == pytest.approx(2 / (1 / 80 + 1 / 40))
    assert table.harmonic_mean(0.0, 0.0) == 0.0


def test_a_closed_set_method_is_not_asked_for_novel_classes(tmp_path):
    job = table.Job("LinearProbe", "shapes", 1, "base", "data", tmp_path)
    assert [folder.name for folder, _ in job.runs()] == ["train_base", "base"]
    job.folder("base").mkdir(parents=True)
    (job.folder("base") / "results.json").write_text('{"accuracy": 70.0}')
    assert table.rows([job]) == [("shapes", "LinearProbe", "70.0", "-", "-", "-")]
