"""What a sweep does next, with an executor that executes nothing."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from configs.protocols import BASE2NEW, CROSS_DATASET
from dassl.engine.progress import EpochProgress
from dassl.engine.run_folder import locked
from experiments import live, scheduler, sweep
from experiments.executors import Command, Executor
from experiments.runs import Run, runs_of
from experiments.scheduler import Scheduler


def finish(command: Command) -> str:
    """Leave the results of the command's run."""
    command.log.parent.mkdir(parents=True, exist_ok=True)
    (command.log.parent / "results.json").write_text("{}")
    return ""


class Fake(Executor):
    """Ends the command that was started first each time that somebody waits.

    Args:
        slots: commands at a time.
        end: called with a command that ends; returns its problem.
    """

    def __init__(self, slots: int = 1, end: Callable[[Command], str] = finish) -> None:
        self.slots = slots
        self.end = end
        self.started: list[str] = []
        self.running: list[Command] = []
        self.most = 0

    def start(self, command: Command) -> None:
        self.started.append(name(command.log.parent))
        self.running.append(command)
        self.most = max(self.most, len(self.running))

    def wait(self, timeout: float) -> list[tuple[Command, str]]:
        command = self.running.pop(0)
        return [(command, self.end(command))]

    def stop(self) -> None:
        self.running.clear()


def name(folder: Path) -> str:
    """Name a run of base-to-novel by its step and its seed."""
    steps = [part for part in folder.parts if part in ("train_base", "test_new")]
    return " ".join([*steps, folder.name])


def runs(tmp_path: Path, *seeds: int) -> list[Run]:
    """List two runs for each seed: a training, and a test of its model."""
    return [
        run for seed in seeds for run in runs_of(BASE2NEW, "CoOp", "dtd", seed, output_dir=tmp_path)
    ]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(scheduler, "POLL_S", 0)


def test_a_test_waits_for_its_training_and_comes_before_other_trainings(tmp_path):
    executor = Fake(slots=2)
    assert sweep.sweep(runs(tmp_path, 1, 2, 3), executor) == 0
    assert executor.started == [
        *("train_base seed1", "train_base seed2", "test_new seed1"),
        *("test_new seed2", "train_base seed3", "test_new seed3"),
    ]
    assert executor.most == 2
    again = Fake()
    assert sweep.sweep(runs(tmp_path, 1, 2, 3), again) == 0 and again.started == []


def test_all_targets_wait_for_the_one_source(tmp_path):
    source, *targets = runs_of(CROSS_DATASET, "CoOp", "emoji", output_dir=tmp_path)
    order: list[Path] = []

    def end(command: Command) -> str:
        order.append(command.log.parent)
        return finish(command)

    assert sweep.sweep([*targets, source], Fake(slots=9, end=end)) == 0
    assert order == [source.folder, *(run.folder for run in targets)]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_failure_is_repeated_after_all_others_and_then_named_with_its_log(
    tmp_path, capsys, retries
):
    def end(command: Command) -> str:
        if command.log.parent.name == "seed1":
            command.log.parent.mkdir(parents=True, exist_ok=True)
            command.log.write_text("first line\nerror: no such\x1b[2Jthing\n\n")
            return "exit code 2"
        return finish(command)

    executor = Fake(end=end)
    assert sweep.sweep(runs(tmp_path, 1, 2), executor, retries) == 1
    others = ["train_base seed2", "test_new seed2"]
    assert executor.started == ["train_base seed1", *others, *["train_base seed1"] * retries]
    train, _, *_ = runs(tmp_path, 1)
    what = "CoOp on dtd, train_base, 16 shots, seed 1: exit code 2: no such\\x1b[2Jthing"
    out, errors = capsys.readouterr()
    assert errors.splitlines() == [
        f"error: {what}; log: {train.folder}/sweep.log",
        "error: CoOp on dtd, test_new, 16 shots, seed 1: not run, as its training failed",
    ]
    assert out.count(f"to be repeated: {what}\n") == retries and f"\nfailed: {what}\n" in f"\n{out}"


def test_a_failure_that_does_not_last_is_none(tmp_path, capsys):
    failing = {"train_base seed1", "test_new seed1"}

    def end(command: Command) -> str:
        run = name(command.log.parent)
        if run in failing:
            failing.remove(run)
            return "killed by signal 9"
        return finish(command)

    executor = Fake(end=end)
    assert sweep.sweep(runs(tmp_path, 1), executor, retries=1) == 0
    assert executor.started == ["train_base seed1"] * 2 + ["test_new seed1"] * 2
    assert capsys.readouterr().err == ""


def test_a_run_that_ends_without_results_has_failed_and_one_with_results_has_not(tmp_path, capsys):
    assert sweep.sweep(runs(tmp_path, 1), Fake(end=lambda command: ""), retries=0) == 1
    assert "seed 1: no results.json; log: " in capsys.readouterr().err

    def killed_at_the_end(command: Command) -> str:
        finish(command)
        return "killed by signal 9"

    assert sweep.sweep(runs(tmp_path, 2), Fake(end=killed_at_the_end), retries=0) == 0


def test_a_run_that_another_sweep_is_at_work_on_is_waited_for(tmp_path):
    train, test = runs(tmp_path, 1)
    executor = Fake(slots=2)
    plan = Scheduler(runs(tmp_path, 1, 2), executor, retries=0)
    lines = plan.go()
    with locked(str(train.folder)):
        while len(plan.finished) < 2:
            next(lines)
        assert executor.started == ["train_base seed2", "test_new seed2"]
        assert [task.run for task in plan.elsewhere] == [train]
        finish(scheduler.command_of(train))
    assert list(filter(None, lines)) == [
        "[3/4] CoOp on dtd, train_base, 16 shots, seed 1: finished elsewhere",
        "[4/4] CoOp on dtd, test_new, 16 shots, seed 1: 0 s",
    ]
    assert executor.started[2:] == ["test_new seed1"]


def test_a_run_that_another_sweep_has_given_up_is_begun_here(tmp_path):
    train, _ = runs(tmp_path, 1)
    executor = Fake()
    plan = Scheduler([train], executor, retries=0)
    lines = plan.go()
    with locked(str(train.folder)):
        while not plan.elsewhere:
            next(lines)
    list(lines)
    assert executor.started == ["train_base seed1"] and plan.finished


def test_who_comes_second_to_a_folder_has_not_failed(tmp_path):
    train, _ = runs(tmp_path, 1)
    executor = Fake(end=lambda command: "exit code 2")
    plan = Scheduler([train], executor, retries=0)
    lines = plan.go()
    next(lines)
    assert executor.running  # it had been begun before the other sweep was seen
    with locked(str(train.folder)):
        while not plan.elsewhere:
            next(lines)
        assert plan.failed == []
    executor.end = finish
    list(lines)
    assert len(executor.started) == 2 and plan.finished and not plan.failed


def test_an_interruption_stops_what_is_running(tmp_path, capsys):
    def interrupt(command: Command) -> str:
        raise KeyboardInterrupt

    executor = Fake(slots=2, end=interrupt)
    assert sweep.sweep(runs(tmp_path, 1, 2), executor) == 130
    assert executor.running == []
    assert capsys.readouterr().err == "stopped; the same command resumes from here\n"


# The table ---------------------------------------------------------------------------------------


def epoch_line(capsys, losses: dict[str, float]) -> str:
    """Return the line of an epoch's last batch as the engine prints it."""
    progress = EpochProgress(2, 50, 4, None, 4, lambda *point: None)
    for _ in progress.batches([{}] * 4):
        progress.step(losses, lr=0.002)
    progress.flush()
    return capsys.readouterr().out


def test_the_progress_of_a_run_is_read_from_its_newest_log(tmp_path, capsys):
    assert live.progress(tmp_path / "nothing") == ()
    (tmp_path / "log.txt").write_text("epoch [9/50] batch [4/4] loss 1.0 (1.0) lr 1 eta 0:00:01\n")
    line = epoch_line(capsys, {"loss_ce": 7.0, "loss": 0.25, "acc": 50.0})
    (tmp_path / "log.txt-2026-01-31-12-00-00").write_text(f"{line}Evaluate on the *val* set\n")
    assert live.progress(tmp_path) == ("3/50", "0.2500", "0:00:00")
    (tmp_path / "log.txt-2026-01-31-12-00-01").write_text(epoch_line(capsys, {"x": 1.0}))
    assert live.progress(tmp_path) == ("3/50", "", "0:00:00")


def test_the_table_shows_what_is_running_and_counts_the_rest(tmp_path):
    plan = Scheduler(runs(tmp_path, *range(1, 9)), Fake(slots=2), retries=0)
    lines = plan.go()
    next(lines)
    train, _ = runs(tmp_path, 1)
    train.folder.mkdir(parents=True)
    (train.folder / "log.txt").write_text("epoch [1/2] batch [1/1] loss 1 (0.5) lr 1 eta 0:01:00\n")
    printed = io.StringIO()
    Console(width=100, file=printed).print(live.table(plan, height=4))
    rows = [row.strip("┃│ ") for row in printed.getvalue().splitlines()]
    cells = [[cell.strip() for cell in row.split("│")] for row in rows if "CoOp" in row]
    seeds = [f"CoOp on dtd, train_base, 16 shots, seed {seed}" for seed in (1, 2, 3, 4)]
    assert cells[0] == [seeds[0], "running", "1/2", "0.5", "0:01:00"]
    assert [row[:2] for row in cells[1:]] == [
        [seeds[1], "running"],
        [seeds[2], "queued"],
        [seeds[3], "queued"],
    ]
    assert rows[-1] == "2 running, 14 queued"
