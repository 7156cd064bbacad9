"""experiments/table.py, in a checkout whose train.py only writes results."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.protocols import BASE2NEW, DOMAIN_GENERALIZATION, FEW_SHOT, harmonic_mean
from experiments import ablations, sweep, table
from experiments.cells import Cell
from experiments.runs import Job, Run, runs_of
from experiments.scores import Scores

REPOSITORY = Path(__file__).parents[2]

# Novel accuracy falls with the seed; the step named by FAIL ends like a user's error.
STUB = """
import json, os, pathlib, sys

def main(arguments):
    values = dict(zip(arguments, arguments[1:]))
    with open("calls.txt", "a") as file:
        file.write(" ".join(arguments) + "\\n")
    folder = pathlib.Path(values["--output-dir"])
    if os.environ.get("FAIL") in folder.parts:
        print("error: no such thing", file=sys.stderr)
        return 2
    assert "--model-dir" not in values or pathlib.Path(values["--model-dir"]).is_dir()
    part = values.get("DATASET.SUBSAMPLE_CLASSES", "all")
    accuracy = {"base": 90.0, "new": 62.0 - 2 * int(values["--seed"]), "all": 75.5}[part]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"accuracy": accuracy}))
    return 0
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("experiments", "benchmarks"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    (tmp_path / "configs").mkdir()
    for module in (REPOSITORY / "configs").glob("*.py"):
        shutil.copy(module, tmp_path / "configs")
    (tmp_path / "dassl").symlink_to(REPOSITORY / "dassl")
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
        [sys.executable, "-m", "experiments", "table", *arguments, "--jobs", "1"],
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
        ["shapes", "HiCroPL", "90.0 ± 0.0", "58.0 ± 2.8", "70.5 ± 2.1", "-"],
        ["digits", "ZeroshotCLIP", "90.0", "60.0", "72.0", "75.5"],
        ["digits", "HiCroPL", "90.0 ± 0.0", "58.0 ± 2.8", "70.5 ± 2.1", "75.5 ± 0.0"],
        ["average", "ZeroshotCLIP", "90.0", "60.0", "72.0", "-"],
        ["average", "HiCroPL", "90.0 ± 0.0", "58.0 ± 2.8", "70.5 ± 2.1", "-"],
    ]
    assert len({len(line) for line in lines}) == 1  # aligned
    # Without training: 2 + 3 tests. HiCroPL: 2 runs a seed and dataset, 1 more on all of digits;
    # the base classes are tested by the training itself, as in the scripts' folders.
    assert len(calls(checkout)) == 5 + 2 * (2 + 2 + 1)

    second = run(checkout, *COMPARE)
    assert [line for line in second.stdout.splitlines() if line.startswith("|")] == lines
    assert len(calls(checkout)) == 15


def test_a_failed_run_is_repeated_and_named_and_the_next_call_resumes(checkout):
    arguments = ("--datasets", "shapes", "--methods", "HiCroPL", "--seeds", "1", "2")
    failed = run(checkout, *arguments, FAIL="test_new")
    assert failed.returncode == 1
    folder = "output/base2new/test_new/shapes/shots_16/HiCroPL/vit_mini"
    assert failed.stderr.splitlines() == [
        f"error: HiCroPL on shapes, test_new, 16 shots, seed {seed}: exit code 2: no such thing; "
        f"log: {folder}/seed{seed}/sweep.log"
        for seed in (1, 2)
    ]
    assert len(calls(checkout)) == 2 + 2 * 2
    assert run(checkout, *arguments).returncode == 0
    assert len(calls(checkout)) == 6 + 2  # the trainings were not repeated
    assert not list(checkout.glob("output/**/sweep.log"))


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
    command = [
        sys.executable,
        "-m",
        "experiments",
        "table",
        "--jobs",
        "1",
        "--datasets",
        "shapes",
    ]
    process = subprocess.Popen(
        [*command, "--methods", "HiCroPL"], cwd=checkout, stderr=subprocess.PIPE, text=True
    )
    while not calls(checkout):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "stopped; the same command resumes from here\n"
    assert len(calls(checkout)) == 1


def test_unknown_names_end_with_exit_code_2_before_any_run(checkout):
    done = run(checkout, "--datasets", "shapes", "--methods", "HiCroP")
    assert done.returncode == 2 and "'HiCroP'" in done.stderr and "'HiCroPL'" in done.stderr
    assert run(checkout, "--datasets", "shapes", "--few-shot", "digits").returncode == 2
    assert calls(checkout) == []


def test_checkpoint_of_the_base_classes_is_loaded_for_novel_ones():
    train, new = runs_of(BASE2NEW, "HiCroPL", "shapes", 2)
    assert "--eval-only" not in train.arguments
    arguments = new.arguments
    assert "--eval-only" in arguments
    assert arguments[arguments.index("--model-dir") + 1] == str(train.folder)
    for run, subset in ((train, "base"), (new, "new")):
        assert run.arguments[run.arguments.index("DATASET.SUBSAMPLE_CLASSES") + 1] == subset


def test_harmonic_mean():
    assert harmonic_mean(80.0, 40.0) == pytest.approx(2 / (1 / 80 + 1 / 40))
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_a_closed_set_method_is_not_asked_for_novel_classes(tmp_path):
    runs = runs_of(BASE2NEW, "LinearProbe", "shapes", output_dir=tmp_path)
    assert [run.step.name for run in runs] == ["train_base"]
    leave(runs[0], 70.0)
    found = table.tabulate([Job(BASE2NEW, tuple(runs))], BASE2NEW, Scores())
    assert found.header == ("Dataset", "Method", "Base", "Novel", "Harmonic mean")
    assert found.rows == [(("shapes", "LinearProbe"), [Cell(70.0, None, 1, None), None, None])]


def leave(run: Run, accuracy: float, backbone: str = "ViT-B/16") -> None:
    """Write the results of a finished run."""
    results = {"accuracy": accuracy, "config": {"MODEL": {"BACKBONE": {"NAME": backbone}}}}
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "results.json").write_text(json.dumps(results))


def printed(capsys, *arguments: object, code: int = 0) -> tuple[str, list[list[str]], str]:
    """Return the caption, the table's cells and the errors of a command that runs nothing."""
    assert table.main(["--no-run", *map(str, arguments)]) == code
    out, errors = capsys.readouterr()
    lines = out.splitlines()
    cells = [[text.strip() for text in line.split("|")[1:-1]] for line in lines if "|" in line]
    return lines[0], [cells[0], *cells[2:]], errors


def test_few_shot_has_a_column_for_each_number_of_shots(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for shots, accuracy in ((1, 60.0), (16, 80.0)):
        for seed in (1, 2):
            (run,) = runs_of(FEW_SHOT, "CoOp", "dtd", seed, shots, output_dir=tmp_path)
            leave(run, accuracy + 2 * seed)
    (zero,) = runs_of(FEW_SHOT, "ZeroshotCLIP", "dtd", output_dir=tmp_path)
    leave(zero, 44.0)
    where = ("--output-dir", tmp_path, "--protocol", "few_shot", "--datasets", "dtd")
    caption, rows, errors = printed(
        capsys, *where, "--methods", "CoOp", "ZeroshotCLIP", "--seeds", 1, 2, "--shots", 16, 1
    )
    assert caption == (
        "Accuracy in percent, ViT-B/16, 16, 1 shots, seed 1 2, mean ± standard deviation:"
    )
    assert rows == [
        ["Dataset", "Method", "0-shot", "1-shot", "16-shot"],
        ["dtd", "CoOp", "-", "63.0 ± 1.4", "83.0 ± 1.4"],
        ["dtd", "ZeroshotCLIP", "44.0", "-", "-"],
    ]
    assert errors == ""


def test_cross_dataset_has_a_column_for_each_target_and_their_average(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(REPOSITORY)
    source, *targets = runs_of(DOMAIN_GENERALIZATION, "MMA", "imagenet", output_dir=tmp_path)
    for run, accuracy in zip((source, *targets), (70.0, 60.0, 50.0, 40.0, 80.0), strict=True):
        leave(run, accuracy)
    where = ("--output-dir", tmp_path, "--datasets", "imagenet", "--methods", "MMA", "--seeds", 1)
    _, rows, _ = printed(capsys, *where, "--protocol", "domain_generalization")
    assert rows == [
        [
            *("Dataset", "Method", "imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a"),
            *("imagenet_r", "Average"),
        ],
        ["imagenet", "MMA", "70.0", "60.0", "50.0", "40.0", "80.0", "57.5"],
    ]
    # The runs shared with the other protocol are finished for it, too; the targets are not.
    _, rows, errors = printed(capsys, *where, "--protocol", "cross_dataset", "--targets", "dtd")
    assert rows[1:] == [["imagenet", "MMA", "70.0", "-", "-"]]
    assert errors == "skipped: 0 damaged and 1 missing of 2 results\n"


def test_each_source_of_a_transfer_has_a_table_with_its_own_average(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for source in ("imagenet", "emoji"):
        for run in runs_of(DOMAIN_GENERALIZATION, "MMA", source, output_dir=tmp_path):
            leave(run, 60.0)
    where = ("--output-dir", tmp_path, "--datasets", "imagenet", "emoji", "--methods", "MMA")
    protocol = ("--seeds", 1, "--protocol", "domain_generalization", "--format", "csv")
    assert table.main(["--no-run", *map(str, (*where, *protocol))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "Average" in line] == [
        f"domain_generalization,{source},MMA,16,Average,60.0,,1,,"
        for source in ("imagenet", "emoji")
    ]
    assert len(lines) == 1 + 2 * 6


@pytest.mark.parametrize(
    "damage",
    [
        *('{"accuracy": 8', "", "[]", "[" * 200_000, '"text"', '{"accuracy": 8, "accuracy": 80}'),
        *(f'{{"accuracy": {n}}}' for n in ("null", "NaN", "1e400", '"80"', "true", "-1")),
        f'{{"accuracy": 1{400 * "0"}}}',
        '{"accuracy": 85.0, "correct": 4, "total": 5}',
    ],
    ids=lambda value: value[:20],
)
def test_damaged_results_are_named_skipped_and_counted(tmp_path, capsys, monkeypatch, damage):
    monkeypatch.chdir(REPOSITORY)
    for seed in (1, 2):
        train, test = runs_of(BASE2NEW, "CoOp", "emoji", seed, output_dir=tmp_path)
        leave(train, 60.0 + seed)
        leave(test, 50.0)
    (train.folder / "results.json").write_text(damage)
    where = ("--output-dir", tmp_path, "--methods", "CoOp", "--seeds", 1, 2)
    _, rows, errors = printed(capsys, *where, code=1)
    assert rows[1] == ["emoji", "CoOp", "61.0", "50.0 ± 0.0", "55.0"]
    first, last = errors.splitlines()
    assert first.startswith(f"skipped: {train.folder}/results.json: expected ")
    assert last == "skipped: 1 damaged and 0 missing of 4 results"


def test_results_without_a_config_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (run,) = runs_of(FEW_SHOT, "ZeroshotCLIP", "dtd", output_dir=tmp_path)
    leave(run, 44.0)
    for config in ({}, [], {"MODEL": 3}, {"MODEL": {"BACKBONE": {"NAME": ["ViT-B/16"]}}}):
        content = {"accuracy": 44, "config": config, "precision": ["bf16"]}
        (run.folder / "results.json").write_text(json.dumps(content))
        where = ("--output-dir", tmp_path, "--protocol", "few_shot", "--datasets", "dtd")
        caption, rows, _ = printed(capsys, *where, "--methods", "ZeroshotCLIP", "--seeds", 1)
        assert caption.startswith("Accuracy in percent, 1, 2, 4") and rows[1][2] == "44.0"
    (run.folder / "results.json").write_text('{"accuracy": 44, "precision": "bf16"}')
    assert printed(capsys, *where, "--methods", "ZeroshotCLIP")[0].startswith(
        "Accuracy in percent, bf16, 1, 2, 4"
    )


def test_a_file_as_root_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "file").touch()
    for command in (table, ablations):
        for name in ("file", "file/below"):
            assert command.main(["--root", str(tmp_path / name)]) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: --root: expected a folder")
            assert error.count("\n") == 1


@pytest.mark.parametrize("below", ["", "table"])
def test_folders_of_the_former_scheme_are_read(checkout, below):
    old = checkout / "output" / below / "emoji"
    for part, accuracy in (("train_base", 71.0), ("base", 71.0), ("new", 69.0)):
        folder = old / "HiCroPL" / "seed1" / part
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"accuracy": accuracy}))
    folder = old / "ZeroshotCLIP" / "seed1" / "base"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"accuracy": 58.0}))
    arguments = ("--methods", "HiCroPL", "ZeroshotCLIP", "--seeds", "1")
    done = run(checkout, *arguments)
    assert done.returncode == 0, done.stderr
    assert "| emoji   | HiCroPL      | 71.0 | 69.0  | 70.0          |" in done.stdout
    assert "| emoji   | ZeroshotCLIP | 58.0 | 60.0  |" in done.stdout
    (call,) = calls(checkout)  # what was missing, in the new scheme
    assert "--output-dir output/ZeroshotCLIP/vit_mini/emoji_new " in call
    # Other settings are other runs.
    for other in (("--shots", "4"), ("--overrides", "OPTIM.LR", "0.1"), ("--backbone", "RN50")):
        missing = run(checkout, "--no-run", "--config", "vit_mini", *arguments, *other)
        assert "| emoji   | HiCroPL      | -    |" in missing.stdout


def test_a_model_of_the_former_scheme_is_tested(checkout):
    old = checkout / "output/table/emoji/HiCroPL/seed1/train_base"
    old.mkdir(parents=True)
    (old / "results.json").write_text(json.dumps({"accuracy": 71.0}))
    assert run(checkout, "--methods", "HiCroPL", "--seeds", "1").returncode == 0
    (call,) = calls(checkout)
    assert "--model-dir output/table/emoji/HiCroPL/seed1/train_base" in call


def test_what_cannot_be_is_one_line_before_any_run(checkout):
    for arguments, message in (
        (("--overrides", "OPTIM.LR"), "expected KEY VALUE pairs, got 'OPTIM.LR' without a value"),
        (("--overrides", "DATASET.NUM_SHOTS", "4"), "expected to be set by --shots"),
        (("--config", "nothing"), "got configs/trainers/ZeroshotCLIP/nothing.yaml"),
        (
            ("--protocol", "cross_dataset", "--datasets", "digits"),
            "targets: expected dataset names",
        ),
    ):
        done = run(checkout, "--methods", "ZeroshotCLIP", *arguments)
        assert done.returncode == 2, arguments
        assert message in done.stderr and done.stderr.count("\n") == 1
    assert calls(checkout) == []


def test_former_command_lines_still_do_the_same(checkout):
    command = [sys.executable, "-m", "benchmarks.table", "--methods", "ZeroshotCLIP"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert "| emoji   | ZeroshotCLIP | 90.0 | 60.0  |" in done.stdout
    for name in ("ablations", "figures"):
        command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        assert done.stdout.startswith(f"usage: python -m experiments {name} ")


@pytest.mark.parametrize(
    ("place", "options"),
    [("file", []), ("file", ["--no-run"]), ("file/below", []), ("file/two/below", [])],
)
def test_an_output_dir_that_is_a_file(tmp_path, capsys, place, options):
    (tmp_path / "file").write_text("mine")
    where = ["--methods", "ZeroshotCLIP", "--root", str(tmp_path / "data")]
    arguments = [*where, "--output-dir", str(tmp_path / place), *options]
    assert table.main(arguments) == 2
    out, errors = capsys.readouterr()
    (line,) = errors.splitlines()
    assert out == "" and line.startswith("error: --output-dir: expected a folder")
    assert f"got '{tmp_path / place}'" in line
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "data").exists()


@pytest.mark.parametrize("options", [[], ["--no-run"]])
def test_a_root_that_is_a_file(tmp_path, capsys, options):
    (tmp_path / "file").write_text("mine")
    where = ["--root", str(tmp_path / "file"), "--output-dir", str(tmp_path / "out")]
    assert table.main(["--methods", "ZeroshotCLIP", *where, *options]) == 2
    expected = f"error: --root: expected a folder, got '{tmp_path / 'file'}'\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "out").exists()


def test_an_output_dir_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(sweep.tempfile, "TemporaryFile", refuse)
    where = ["--root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
    assert table.main(["--methods", "ZeroshotCLIP", *where]) == 2
    assert capsys.readouterr().err == (
        f"error: --output-dir: expected a folder that can be written, got '{tmp_path / 'out'}' "
        "(Read-only file system)\n"
    )
