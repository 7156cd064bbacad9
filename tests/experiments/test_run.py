"""``python -m experiments run``, with a train.py that only notes what it is called for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.choice import PUBLIC
from configs.protocols import BASE2NEW, CROSS_DATASET
from experiments import run

REPOSITORY = Path(__file__).parents[2]

# Seed 7 fails.
STUB = """
import pathlib

def main(arguments):
    folder = pathlib.Path(arguments[arguments.index("--output-dir") + 1])
    with open("calls.txt", "a") as file:
        print(folder, file=file)
    if "seed7" in folder.parts:
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text("{}")
    return 0
"""
PLACE = "shapes/shots_16/MMA/vit_mini"


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def calls(folder: Path) -> list[str]:
    file = folder / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("experiments", "dassl", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "train.py").write_text(STUB)
    # The real one takes seconds to import.
    (tmp_path / "torch.py").write_text("def set_num_threads(number): pass")
    return tmp_path


def test_run_does_what_is_not_finished_and_goes_on_without_what_fails(checkout):
    arguments = "run --trainer MMA --dataset shapes --seeds 7 1 --jobs 1 --retries 2".split()
    first = command(checkout, *arguments)
    trained, tested = (f"output/base2new/{step}/{PLACE}" for step in ("train_base", "test_new"))
    assert first.returncode == 1
    assert calls(checkout) == [
        f"{trained}/seed7",
        f"{trained}/seed1",
        f"{tested}/seed1",
        f"{trained}/seed7",
        f"{trained}/seed7",
    ]
    assert first.stderr.splitlines() == [
        "error: MMA on shapes, train_base, 16 shots, seed 7: exit code 2; "
        f"log: {trained}/seed7/sweep.log",
        "error: MMA on shapes, test_new, 16 shots, seed 7: not run, as its training failed",
    ]
    (checkout / "train.py").write_text(STUB.replace("seed7", "seed8"))
    second = command(checkout, *arguments)
    assert second.returncode == 0 and second.stderr == ""
    assert calls(checkout)[5:] == [f"{trained}/seed7", f"{tested}/seed7"]
    assert second.stdout.startswith("2 of 4 runs finished before\n[1/2] MMA on shapes, train_base")
    assert "[2/2] MMA on shapes, test_new, 16 shots, seed 7: " in second.stdout
    assert command(checkout, *arguments).stdout == "4 of 4 runs finished before\n"


# Says what it was given of the machine, when all four are there.
GIVEN = """
import os, pathlib, time, torch

def main(arguments):
    folder = pathlib.Path(arguments[arguments.index("--output-dir") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    given = (torch.threads, os.environ.get("CUDA_VISIBLE_DEVICES"))
    (folder / "given.txt").write_text(" ".join(map(str, given)))
    while len(list(pathlib.Path("output").glob("**/given.txt"))) < 4:
        time.sleep(0.01)
    (folder / "results.json").write_text("{}")
    return 0
"""
TWO_GPUS = """
from types import SimpleNamespace
cuda = SimpleNamespace(device_count=lambda: 2)

def set_num_threads(number):
    global threads
    threads = number
"""


def test_runs_share_the_gpus_and_the_cores(checkout, monkeypatch):
    (checkout / "train.py").write_text(GIVEN)
    (checkout / "torch.py").write_text(TWO_GPUS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    arguments = "run --trainer CoOp --dataset shapes --protocol few_shot --seeds 1 2 3 4 --shots 1"
    assert command(checkout, *arguments.split(), "--gpus-per-run", "0.5").returncode == 0
    given = [path.read_text().split() for path in checkout.glob("output/**/given.txt")]
    threads = str(max(1, (os.cpu_count() or 1) // 4))
    assert sorted(given) == [[threads, gpu] for gpu in ("4", "4", "7", "7")]


def test_a_dry_run_prints_the_commands_of_what_is_not_finished(checkout):
    arguments = "run --trainer MMA ZeroshotCLIP --dataset shapes --seeds 1 2".split()
    folder = checkout / "output/base2new/train_base" / PLACE / "seed1"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{}")
    done = command(checkout, *arguments, "--dry-run", "--overrides", "OPTIM.LR", "0.5 * x")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * 2 + 2
    assert all(line.startswith("python train.py --skip-finished --root data ") for line in lines)
    assert all(shlex.split(line)[-2:] == ["OPTIM.LR", "0.5 * x"] for line in lines)
    done = command(checkout, *arguments, "--dry-run")
    assert len(done.stdout.splitlines()) == 5 and calls(checkout) == []
    assert f"--output-dir output/base2new/test_new/{PLACE}/seed1" in done.stdout.splitlines()[0]


def planned(*arguments: str) -> list[str]:
    """Return the folders of the runs that a command line asks for."""
    runs = run.plan(run.read_arguments([*arguments, "--trainer", "CoOp"]))
    return [str(each.folder) for each in runs]


def test_protocols_shots_and_seeds_are_multiplied_and_no_run_is_there_twice(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    shots = ("--shots", "1", "16", "--seeds", "1", "2")
    several = planned("--dataset", "dtd", "--protocol", "base2new", "few_shot", *shots)
    assert len(several) == len(set(several)) == (2 + 1) * 2 * 2
    protocols = ("--protocol", "cross_dataset", "domain_generalization")
    both = planned("--dataset", "emoji", *protocols, "--seeds", "1")
    assert len(both) == len(set(both)) == 1 + 6 + 4  # they share the source


def test_all_datasets_are_the_papers_eleven_and_for_transfer_their_source(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert run.sources(["shapes", "all", "dtd"], BASE2NEW) == ["shapes", *PUBLIC]
    assert len(PUBLIC) == 11
    assert run.sources(["all"], CROSS_DATASET) == ["imagenet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: COMMAND: expected plan, run, tune, table, "),
        (("tabel",), "got 'tabel'"),
        (("run", "--protocol", "few_shot", "--trainer", "CoOp"), "--dataset"),
        (
            "run --trainer CoOp --dataset dtd --overrides SEED 4".split(),
            "error: SEED: expected to be set by --seed",
        ),
        (
            "run --trainer CoOp --dataset shapes --protocol cross_dataset".split(),
            "error: targets: expected dataset names",
        ),
        (
            "run --trainer CoOp --dataset shapes --config mine".split(),
            "error: config: expected a config file, got configs/trainers/CoOp/mine.yaml",
        ),
        (
            "run --trainer CoOp --dataset shapes --gpus-per-run 2".split(),
            "--gpus-per-run: expected a number from 0 to 1, got '2'",
        ),
        (
            "run --trainer CoOp --dataset shapes --retries -1".split(),
            "--retries: expected a whole number from 0, got '-1'",
        ),
        ("run --trainer CoOp --dataset shapes --jobs 0".split(), "--jobs: expected a whole number"),
        (
            "run --trainer CoOp --dataset shapes --address auto".split(),
            "--address requires --executor ray",
        ),
    ],
)
def test_wrong_command_lines_end_with_code_2(checkout, arguments, message):
    done = command(checkout, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (checkout / "output").exists()


def test_help_lists_the_commands(checkout):
    done = command(checkout, "--help")
    assert done.returncode == 0
    for name in ("plan", "run", "table", "ablations", "figures", "script"):
        assert f"\n  {name} " in done.stdout
