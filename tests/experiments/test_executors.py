"""Where runs are executed: processes, Ray and Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dassl.errors import UserError
from experiments.executors import Command, execute, local
from experiments.executors.ray import Ray, check_reachable
from experiments.executors.slurm import Slurm

REPOSITORY = Path(__file__).parents[2]

# Trains for three epochs and goes on where an earlier attempt has ended; "interrupted" is Ctrl-C.
STUB = """
import os, pathlib, sys, time

def main(arguments):
    folder = pathlib.Path(arguments[arguments.index("--output-dir") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "epochs.txt"
    assert not (folder / "results.json").exists()
    try:
        for epoch in range(len(state.read_text().split()) if state.exists() else 0, 3):
            (folder / "pid").write_text(str(os.getpid()))
            time.sleep(float(os.environ.get("EPOCH_S", "0.1")))
            with state.open("a") as file:
                file.write(f"{epoch}\\n")
    except KeyboardInterrupt:
        return 130
    if "seed7" in folder.parts:
        print("error: no such thing", file=sys.stderr)
        return 2
    (folder / "results.json").write_text('{"accuracy": 50.0}')
    return 0
"""


# A process ---------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(("--seed", "1"), tmp_path / "run" / "sweep.log")


def stand_in(monkeypatch, main) -> None:
    monkeypatch.setitem(sys.modules, "train", SimpleNamespace(main=main))


def test_what_a_failed_command_prints_is_in_its_log_and_not_on_the_console(
    monkeypatch, capfd, command
):
    def main(arguments: list[str]) -> int:
        print("arguments:", *arguments)
        os.write(2, b"from another library\n")
        return 2

    stand_in(monkeypatch, main)
    assert execute(command) == 2
    assert execute(command) == 2
    lines = ["arguments: --seed 1", "from another library"]
    assert command.log.read_text().splitlines() == lines * 2
    print("back")
    assert capfd.readouterr() == ("back\n", "")


def test_a_command_that_ends_well_leaves_no_log(monkeypatch, command):
    command.log.parent.mkdir()
    command.log.write_text("of an earlier attempt\n")
    stand_in(monkeypatch, lambda arguments: print("fine") or 0)
    assert execute(command) == 0 and not command.log.exists()


def test_an_exception_is_exit_code_1_and_in_the_log(monkeypatch, command):
    stand_in(monkeypatch, lambda arguments: 1 / 0)
    assert execute(command) == 1
    assert command.log.read_text().splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    stand_in(monkeypatch, lambda arguments: 2)
    assert execute(Command((), tmp_path / "file" / "sweep.log")) == 2


# GPUs --------------------------------------------------------------------------------------------


def test_gpus_are_shared_out():
    assert local.shared_out(["0", "3"], 1) == ["0", "3"]
    assert local.shared_out(["0", "3"], 0.5) == ["0", "3", "0", "3"]
    assert local.shared_out(["0"], 0.1) == ["0"] * 10
    assert local.shared_out(["0"], 0.3) == ["0"] * 3
    assert local.shared_out(["0"], 0.7) == ["0"]


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [(None, 2, ["0", "1"]), ("", 1, ["0"]), ("2, 5", 2, ["2", "5"]), ("MIG-a,MIG-b", 1, ["MIG-a"])],
)
def test_gpus_have_the_names_that_this_process_knows_them_by(monkeypatch, visible, count, names):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert local.visible_gpus() == names


def test_runs_at_a_time_are_limited_by_the_shares_of_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local.Local(jobs=0, gpus_per_run=0.5).slots == 4
    assert local.Local(jobs=3, gpus_per_run=0.5).slots == 3
    assert local.Local(jobs=9, gpus_per_run=1).slots == 2
    assert local.Local(jobs=9).slots == 9
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="--gpus-per-run: expected 0 on a machine without a GPU"):
        local.Local(jobs=1, gpus_per_run=1)


# Looks for a GPU as little as what it imports.
AHEAD = """
import torch

def asked(*arguments):
    raise SystemExit("a GPU was looked for")

torch._C._cuda_getDeviceCount = torch.cuda.is_available = torch.cuda.device_count = asked
import sys
import experiments.executors.imports
needed = {"sklearn.metrics", "open_clip", "trainers.trainer", "dassl.engine.curves"}
sys.exit(not needed <= set(sys.modules))
"""


@pytest.mark.slow
def test_what_runs_are_forked_from_has_imported_all_and_looked_for_no_gpu():
    done = subprocess.run(
        [sys.executable, "-c", AHEAD], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# What is not there -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "make"), [("ray", Ray), ("submitit", lambda: Slurm(Path("jobs")))]
)
def test_an_extra_that_is_not_installed_is_one_line_that_names_it(monkeypatch, package, make):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        make()
    name = "slurm" if package == "submitit" else package
    assert str(error.value) == (
        f"--executor {name}: expected the package {package}; pip install -e '.[{name}]'"
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere", "127.0.0.1:x"])
def test_an_address_where_nobody_listens_is_one_line_at_once(address):
    with pytest.raises(UserError, match=f"--address: expected HOST:PORT .*, got '{address}' "):
        check_reachable(address)


@pytest.mark.parametrize("share", [0.5, 2])
def test_slurm_gives_whole_gpus(tmp_path, share):
    pytest.importorskip("submitit")
    with pytest.raises(
        UserError, match=f"^--gpus-per-run: expected 0 or 1 with Slurm, got {share}"
    ):
        Slurm(tmp_path, gpus_per_run=share)


def test_a_machine_without_slurm_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="^--executor slurm: expected a machine with Slurm's srun$"):
        Slurm(tmp_path)


# Sweeps of a stub --------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("experiments", "dassl", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "train.py").write_text(STUB)
    return tmp_path


SWEEP = "--trainer MMA --dataset shapes digits --protocol base2new --seeds 1".split()


def epochs(checkout: Path) -> list[int]:
    """Return how many epochs each finished run has trained."""
    return [
        len((path.parent / "epochs.txt").read_text().split())
        for path in checkout.glob("output/**/results.json")
    ]


def wait_for(checkout: Path, epoch: int) -> list[Path]:
    """Wait until two runs are past an epoch; return their folders."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        files = list(checkout.glob("output/**/epochs.txt"))
        if len(files) >= 2 and all(len(file.read_text().split()) >= epoch for file in files[:2]):
            return [file.parent for file in files[:2]]
        time.sleep(0.05)
    raise AssertionError("the runs do not begin")


# The sweep of a script with submitit's local executor in the place of Slurm's.
ON_THIS_MACHINE = """
import sys
from pathlib import Path
from experiments import run
from experiments.executors.slurm import Slurm
from experiments.sweep import sweep

arguments = run.read_arguments(sys.argv[1:])
sys.exit(sweep(run.plan(arguments), Slurm(Path("jobs"), cluster="local"), arguments.retries))
"""


@pytest.mark.slow
def test_slurm_jobs_that_are_killed_or_fail_are_submitted_again(checkout):
    pytest.importorskip("submitit")
    process = subprocess.Popen(
        [sys.executable, "-c", ON_THIS_MACHINE, *SWEEP[:-1], "1", "7"],
        cwd=checkout,
        env={**os.environ, "EPOCH_S": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed = next(f for f in wait_for(checkout, 1) if "seed7" not in f.parts)
    os.kill(int((killed / "pid").read_text()), signal.SIGKILL)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert epochs(checkout) == [3] * 4  # of seed 1; none was trained twice
    assert out.count("to be repeated: ") == 1 + 2
    lines = errors.splitlines()
    assert len(lines) == 4 and sum("exit code 2: no such thing; log: " in x for x in lines) == 2


@pytest.fixture
def cluster() -> Iterator[object]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield found
    found.shutdown()


@pytest.mark.slow
def test_a_sweep_outlives_a_node_of_its_ray_cluster(checkout, cluster):
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    command = [sys.executable, "-m", "experiments", "run", *SWEEP, "--executor", "ray"]
    process = subprocess.Popen(
        [*command, "--address", cluster.address],
        cwd=checkout,
        env={**os.environ, "EPOCH_S": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(checkout, 1)  # one on each node
    cluster.remove_node(second, allow_graceful=False)
    out, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert epochs(checkout) == [3] * 4
    assert sum(line.startswith("[") for line in out.splitlines()) == 4
    again = subprocess.run(
        [*command, "--address", cluster.address], cwd=checkout, capture_output=True, text=True
    )
    assert (again.returncode, again.stdout) == (0, "4 of 4 runs finished before\n")
