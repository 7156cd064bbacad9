"""The sweeps of scripts/, run with a train.py that only records its arguments."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import script
from experiments.runs import Run
from tests.embedded import BACKBONE

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent
ROOMS = ("experiments", "trainers", "datasets", "clip", "dassl")
VARIABLES = {"DATA", "SHOTS", "CFG", "LOADEP", "SEED", "SOURCE", "SUB", "TRAINER"}
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*/*.sh"))

# Appends its arguments to calls.jsonl and leaves the results.json of a finished run.
STUB = """
import json, pathlib

def main(arguments):
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps(arguments) + "\\n")
    folder = pathlib.Path(arguments[arguments.index("--output-dir") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text('{"accuracy": 80.0}')
    return 0
"""


class Checkout:
    """Copies of scripts/ and experiments/ with the stub, in a folder with a blank in its name."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        for name in ("scripts", "experiments"):
            shutil.copytree(REPOSITORY / name, self.root / name)
        for name in ("configs", "dassl"):
            (self.root / name).symlink_to(REPOSITORY / name)
        (self.root / "train.py").write_text(STUB)

    def sh(
        self, script: str, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        return subprocess.run(
            ["sh", str(self.root / "scripts" / script), *arguments],
            cwd=cwd or self.root,
            env={**clean, "PYTHON": sys.executable, **environment},
            capture_output=True,
            text=True,
        )

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "experiments", *arguments],
            cwd=self.root,
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[list[str]]:
        file = self.root / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def options(call: list[str]) -> dict[str, str]:
    """Return {option or config key: value} of one call; flags have the value ''."""
    pairs, rest = {}, list(call)
    while rest:
        name = rest.pop(0)
        pairs[name] = "" if name == "--eval-only" else rest.pop(0)
    return pairs


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_wrong_number_of_arguments_is_one_line_and_exit_code_2(checkout, path):
    done = checkout.sh(f"{path.parent.name}/{path.name}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: usage: sh ") and done.stderr.count("\n") == 1
    assert "DATASET" in done.stderr
    assert checkout.calls() == []


def test_base_to_novel_trains_on_base_classes_and_tests_on_new_ones(checkout):
    assert checkout.sh("hicropl/base2new_train_hicropl.sh", "shapes", "1").returncode == 0
    assert checkout.sh("hicropl/base2new_test_hicropl.sh", "shapes", "1").returncode == 0
    train, test = map(options, checkout.calls())
    assert train == {
        "--root": "data",
        "--seed": "1",
        "--trainer": "HiCroPL",
        "--dataset-config-file": "configs/datasets/shapes.yaml",
        "--config-file": "configs/trainers/HiCroPL/vit_mini.yaml",
        "--output-dir": "output/base2new/train_base/shapes/shots_16/HiCroPL/vit_mini/seed1",
        "DATASET.NUM_SHOTS": "16",
        "DATASET.SUBSAMPLE_CLASSES": "base",
    }
    assert test == {
        **train,
        "--output-dir": "output/base2new/test_new/shapes/shots_16/HiCroPL/vit_mini/seed1",
        "--model-dir": train["--output-dir"],
        "--eval-only": "",
        "DATASET.SUBSAMPLE_CLASSES": "new",
    }


def test_finished_run_is_skipped_and_unfinished_one_is_started_again(checkout):
    command = ("coop/base2new_train.sh", "digits", "2")
    checkout.sh(*command)
    again = checkout.sh(*command)
    assert again.returncode == 0 and again.stdout.startswith("skipped, finished before: output/")
    assert len(checkout.calls()) == 1
    folder = checkout.root / options(checkout.calls()[0])["--output-dir"]
    (folder / "results.json").unlink()
    checkout.sh(*command)
    assert len(checkout.calls()) == 2


def test_test_without_a_finished_training_names_the_command_to_run_first(checkout):
    done = checkout.sh("hicropl/base2new_test_hicropl.sh", "oxford_pets", "3")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "sh scripts/hicropl/base2new_train_hicropl.sh oxford_pets 3" in done.stderr
    assert checkout.calls() == []


def test_an_epoch_asked_for_is_loaded_into_a_folder_of_its_own(checkout):
    checkout.sh("coop/base2new_test.sh", "shapes", "1", LOADEP="5")
    call = options(checkout.calls()[0])
    assert call["--load-epoch"] == "5" and call["--output-dir"].endswith("seed1_epoch5")


def test_environment_sets_data_shots_and_config(checkout, tmp_path):
    checkout.sh(
        "hicropl/base2new_train_hicropl.sh", "shapes", "1", DATA="/sets", SHOTS="4", CFG="mine"
    )
    call = options(checkout.calls()[0])
    assert call["--root"] == "/sets" and call["DATASET.NUM_SHOTS"] == "4"
    assert call["--config-file"] == "configs/trainers/HiCroPL/mine.yaml"
    assert call["--output-dir"].endswith("shots_4/HiCroPL/mine/seed1")


def test_works_from_any_folder_and_takes_a_relative_data_folder_from_there(checkout, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    done = checkout.sh("hicropl/few_shot.sh", "digits", "2", cwd=elsewhere, DATA="sets", SEED="7")
    assert done.returncode == 0, done.stderr
    assert options(checkout.calls()[0])["--root"] == str(elsewhere / "sets")


def test_few_shot_runs_three_seeds_unless_one_is_named(checkout):
    checkout.sh("hicropl/few_shot.sh", "oxford_pets", "4")
    checkout.sh("hicropl/few_shot.sh", "oxford_pets", "4", SEED="9")
    calls = [options(call) for call in checkout.calls()]
    assert [call["--seed"] for call in calls] == ["1", "2", "3", "9"]
    name = "vit_b16_c2_ep50_batch32_16ctx_few_shot"
    assert calls[0]["--output-dir"] == f"output/oxford_pets/HiCroPL/{name}_4shots/seed1"
    assert all("DATASET.SUBSAMPLE_CLASSES" not in call for call in calls)


@pytest.mark.parametrize(
    "dataset, shots, config",
    [
        ("oxford_pets", "1", "vit_b16_ep50"),
        ("oxford_pets", "4", "vit_b16_ep100"),
        ("oxford_pets", "16", "vit_b16"),
        ("imagenet", "16", "vit_b16_ep50"),
        ("digits", "16", "vit_mini"),
    ],
)
def test_coop_trains_fewer_epochs_for_fewer_shots(checkout, dataset, shots, config):
    checkout.sh("coop/few_shot.sh", dataset, shots, SEED="1")
    assert options(checkout.calls()[0])["--config-file"] == f"configs/trainers/CoOp/{config}.yaml"


def test_cross_dataset_tests_the_model_of_the_source(checkout):
    checkout.sh("hicropl/xd_train.sh", "emoji", "1")
    done = checkout.sh("hicropl/xd_test.sh", "digits", "1")
    assert done.returncode == 0, done.stderr
    train, test = map(options, checkout.calls())
    assert test["--model-dir"] == train["--output-dir"]
    assert "emoji/HiCroPL/vit_mini_cross_datasets_16shots" in test["--model-dir"]
    assert test["--dataset-config-file"] == "configs/datasets/digits.yaml"


def test_cross_dataset_keeps_the_results_of_two_sources_apart(checkout):
    checkout.sh("hicropl/xd_train.sh", "imagenet", "1")
    checkout.sh("hicropl/xd_train.sh", "caltech101", "1")
    checkout.sh("hicropl/xd_test.sh", "oxford_pets", "1")
    checkout.sh("hicropl/xd_test.sh", "oxford_pets", "1", SOURCE="caltech101")
    first, second = (options(call) for call in checkout.calls()[2:])
    assert "output/imagenet/" in first["--model-dir"]
    assert "output/caltech101/" in second["--model-dir"]
    assert first["--output-dir"] != second["--output-dir"]


def test_zeroshot_only_evaluates_and_keeps_class_subsets_apart(checkout):
    checkout.sh("zsclip/zeroshot.sh", "shapes")
    checkout.sh("zsclip/zeroshot.sh", "shapes", SUB="new")
    both, new = (options(call) for call in checkout.calls())
    assert "--eval-only" in both and "--model-dir" not in both
    assert both["DATASET.SUBSAMPLE_CLASSES"] == "all"
    assert new["DATASET.SUBSAMPLE_CLASSES"] == "new"
    assert both["--output-dir"] != new["--output-dir"]


def runs_for(path: Path, arguments: list[str]) -> list[Run]:
    """List what a script runs in the current environment, without running it."""
    called = path.read_text().splitlines()[-1].split(" script ")[1]
    trainer, step, name, folder, rest = called.split()
    assert (name, folder, rest) == ('"$0"', '"$OLDPWD"', '"$@"')
    return script.runs_for(trainer, step, "/somewhere", arguments)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_config_files_chosen_are_in_the_repository(checkout, path):
    chosen = set()
    for dataset in ("imagenet", "oxford_pets", "shapes"):
        named = {"zeroshot.sh": [dataset], "few_shot.sh": [dataset, "16"]}
        arguments = named.get(path.name, [dataset, "1"])
        chosen |= {str(run.config_file) for run in runs_for(path, arguments)}
    # The last one through the shell; with LOADEP the test scripts require no finished training.
    done = checkout.sh(f"{path.parent.name}/{path.name}", *arguments, LOADEP="1")
    assert done.returncode == 0, done.stderr
    chosen |= {options(call)["--config-file"] for call in checkout.calls()}
    assert chosen
    assert sorted(path for path in chosen if not (REPOSITORY / path).is_file()) == []


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in SCRIPTS}))
def test_folders_and_arguments_are_what_the_shell_library_made(monkeypatch, folder):
    """script_calls.txt was written by the scripts when they were shell code of their own.

    What came later (TCP and the methods after it) was written by these scripts and read. The source
    of transfer to embedded datasets, which was Shapes, is Emoji, and HiCroPL's few-shot runs of
    ImageNet have a config of their own.
    """
    expected: dict[str, list[str]] = {}
    for line in (HERE / "script_calls.txt").read_text().splitlines():
        command, _, arguments = line.partition(": ")
        if f" {command}".rpartition("/")[0].rpartition(" ")[2] == folder:
            expected.setdefault(command, []).append(arguments)
    assert expected or folder in ("mma", "cliplora")
    for command, calls in expected.items():
        words = command.split()
        environment = dict(word.split("=") for word in words if "=" in word)
        name, *arguments = words[len(environment) :]
        with monkeypatch.context() as context:
            for variable in VARIABLES:
                context.delenv(variable, raising=False)
            for variable, value in environment.items():
                context.setenv(variable, value)
            runs = runs_for(REPOSITORY / "scripts" / name, arguments)
            assert [joined(run.arguments) for run in runs] == calls


def joined(call: list[str]) -> str:
    return " ".join(sorted(" ".join(filter(None, pair)) for pair in options(call).items()))


@pytest.mark.slow
def test_a_script_with_the_real_train_py_tests_the_embedded_backbone(tmp_path):
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    for name in (*ROOMS, "configs", "train.py"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    done = subprocess.run(
        ["sh", "scripts/zsclip/zeroshot.sh", "digits"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file = tmp_path / "output/ZeroshotCLIP/vit_mini/digits/results.json"
    results = json.loads(file.read_text())
    assert results["config"]["MODEL"]["BACKBONE"]["NAME"] == BACKBONE
    assert results["total"] == 539 and 0 <= results["accuracy"] <= 100


def test_scripts_and_the_table_take_the_runs_of_one_another_as_finished(checkout):
    for name in ("datasets/emoji", "trainers/CoOp/vit_mini", "trainers/ZeroshotCLIP/vit_mini"):
        path = checkout.root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (checkout.root / "torch.py").write_text("def set_num_threads(number): pass")
    assert checkout.sh("coop/base2new_train.sh", "emoji", "1").returncode == 0
    assert checkout.sh("coop/base2new_test.sh", "emoji", "1").returncode == 0
    assert checkout.sh("zsclip/zeroshot.sh", "emoji", SUB="base").returncode == 0
    assert checkout.sh("coop/few_shot.sh", "emoji", "16", SEED="1").returncode == 0
    assert len(checkout.calls()) == 4
    command = ["table", "--methods", "ZeroshotCLIP", "CoOp", "--seeds", "1", "2"]
    done = checkout.python(*command, "--few-shot", "emoji", "--shots", "16")
    assert done.returncode == 0, done.stderr
    assert "| emoji   | CoOp         | 80.0 ± 0.0 |" in done.stdout
    # zero-shot on novel and all classes, and CoOp's three runs of seed 2
    assert len(checkout.calls()) == 4 + 2 + 3
    for name, *arguments in (
        ("coop/base2new_train.sh", "emoji", "2"),
        ("coop/base2new_test.sh", "emoji", "2"),
        ("coop/few_shot.sh", "emoji", "16"),
        ("zsclip/zeroshot.sh", "emoji"),
    ):
        again = checkout.sh(name, *arguments)
        assert again.stdout.startswith("skipped, finished before: output/"), again.stderr
    # except the third seed of few_shot.sh, which the table was not asked for
    assert len(checkout.calls()) == 9 + 1
