"""Sweeps that faults end or disturb, with the real train.py: the same command completes them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.protocols import BASE2NEW
from dassl.engine.run_folder import holder
from experiments import table
from experiments.runs import runs_of

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
EPOCHS = 12
OVERRIDES = ("OPTIM.MAX_EPOCH", str(EPOCHS), "DATALOADER.NUM_WORKERS", "0")
SETTINGS = ("--seeds", "1", "2", "--shots", "1", "--overrides", *OVERRIDES)
KEPT = ("predictions.npz", f"prompt_learner/model.pth.tar-{EPOCHS}")


def command(root: Path, output: Path) -> list[str]:
    """Return the command of a sweep of two trainings and two tests."""
    return [
        *(sys.executable, "-m", "experiments", "run", "--trainer", "CoOp", "--dataset", "digits"),
        *("--root", str(root), "--output-dir", str(output), "--jobs", "2", *SETTINGS),
    ]


def start(root: Path, output: Path, **options: Any) -> subprocess.Popen[str]:
    """Begin the sweep."""
    return subprocess.Popen(
        command(root, output),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def hear_ctrl_c() -> None:
    """Undo that tests which run in the background of a shell ignore SIGINT, and so a child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a sweep; return exit code, output and errors."""
    out, errors = process.communicate(timeout=300)
    return process.returncode, out, errors


def contents(output: Path) -> dict[str, bytes]:
    """Read what the runs have learned and predicted."""
    files = [path for name in KEPT for path in output.glob(f"**/{name}")]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def logs(output: Path) -> dict[str, int]:
    """Return how often each run was begun."""
    folders = [path.parent for path in output.glob("**/config.yaml")]
    folders += [path.parent for path in output.glob("**/test_new/**/results.json")]
    return {str(f.relative_to(output)): len(list(f.glob("log.txt*"))) for f in folders}


def wait_for_epoch(output: Path, seed: int) -> Path:
    """Wait until the training of a seed is in its third epoch; return its folder."""
    (folder,) = (
        run.folder
        for run in runs_of(
            *(BASE2NEW, "CoOp", "digits", seed, 1), overrides=OVERRIDES, output_dir=output
        )[:1]
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        log = folder / "log.txt"
        if log.exists() and f"epoch [3/{EPOCHS}]" in log.read_text():
            return folder
        time.sleep(0.02)
    raise AssertionError("no training begins")


def table_of(output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the table of the finished runs."""
    where = ("--no-run", "--datasets", "digits", "--methods", "CoOp", "--output-dir", str(output))
    assert table.main([*where, *SETTINGS]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory) -> Path:
    """Return the output folder of a sweep that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed")
    code, out, errors = end(start(root, output))
    assert code == 0, errors
    assert len(contents(output)) == 4 + 2 and set(logs(output).values()) == {1}
    return output


@pytest.fixture
def is_whole(undisturbed, monkeypatch, capsys) -> Callable[[Path], None]:
    """Return a check that a sweep has ended as the undisturbed one."""
    monkeypatch.chdir(REPOSITORY)

    def check(output: Path) -> None:
        assert contents(output) == contents(undisturbed)
        assert table_of(output, capsys) == table_of(undisturbed, capsys)
        assert not list(output.glob("**/sweep.log"))

    return check


def test_a_run_that_is_killed_is_resumed_by_the_same_sweep(root, tmp_path, is_whole):
    process = start(root, tmp_path)
    folder = wait_for_epoch(tmp_path, 1)
    held = holder(str(folder))
    assert held is not None
    os.kill(int(held.split()[1]), signal.SIGKILL)
    code, out, errors = end(process)
    assert code == 0, errors
    assert out.count("to be repeated: ") == 1
    assert "seed 1: killed by signal 9: epoch [" in out
    is_whole(tmp_path)
    assert sorted(logs(tmp_path).values()) == [1, 1, 1, 2]


def test_ctrl_c_stops_all_runs_and_the_same_command_resumes_them(root, tmp_path, is_whole):
    process = start(root, tmp_path, start_new_session=True, preexec_fn=hear_ctrl_c)
    folder = wait_for_epoch(tmp_path, 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    code, _, errors = end(process)
    assert (code, errors) == (130, "stopped; the same command resumes from here\n")
    assert holder(str(folder)) is None and not (folder / "results.json").exists()
    finished = {f for f in logs(tmp_path) if (tmp_path / f / "results.json").exists()}
    code, _, errors = end(start(root, tmp_path))
    assert code == 0, errors
    is_whole(tmp_path)
    assert all(logs(tmp_path)[folder] == 1 for folder in finished)


def test_runs_of_a_killed_sweep_go_on_and_the_next_one_waits_for_them(root, tmp_path, is_whole):
    process = start(root, tmp_path)
    folder = wait_for_epoch(tmp_path, 1)
    process.kill()
    process.stdout.close(), process.stderr.close()
    process.wait()
    assert holder(str(folder)) is not None
    code, out, errors = end(start(root, tmp_path))
    assert code == 0, errors
    is_whole(tmp_path)
    assert set(logs(tmp_path).values()) == {1}


def test_of_two_sweeps_on_one_output_each_run_is_done_by_one(root, tmp_path, is_whole):
    both = [start(root, tmp_path), start(root, tmp_path)]
    for code, out, errors in map(end, both):
        assert code == 0, errors
        assert out.splitlines()[-1].startswith("[4/4] ")
    is_whole(tmp_path)
    assert set(logs(tmp_path).values()) == {1}


def test_after_a_full_disk_the_same_command_completes_the_sweep(root, tmp_path, is_whole):
    limit = 16384  # bytes of a file: less than a checkpoint has

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code, out, errors = end(start(root, tmp_path, preexec_fn=fill))
    assert code == 1 and out.count("to be repeated: ") == 2
    lines = errors.splitlines()
    assert len(lines) == 4 and all("exit code 2: cannot write " in line for line in lines[:2])
    assert all(line.endswith("/sweep.log") for line in lines[:2])
    code, _, errors = end(start(root, tmp_path))
    assert code == 0, errors
    is_whole(tmp_path)
