"""experiments/tune.py: the choice of settings by validation images, with runs that only report."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import dassl.data.datasets.build as datasets_of_configs
from experiments import tune
from experiments.runs import Run
from experiments.sweep import INTERRUPTED
from tests.experiments.finished import leave_results

REPOSITORY = Path(__file__).parents[2]
LR = "--set OPTIM.LR=0.002,0.2,0.02"
PLACE = "base2new/train_base/shapes/shots_16/CoOp/vit_mini"


def right_of(run: Run) -> int:
    """Return on how many of 100 pictures a run is right: most with a rate of 0.02 and 8 tokens."""
    settings = dict(zip(run.overrides[::2], run.overrides[1::2], strict=True))
    distance = abs(float(settings["OPTIM.LR"]) - 0.02)
    return (
        80 + run.seed - round(100 * distance) - abs(int(settings.get("TRAINER.COOP.N_CTX", 8)) - 8)
    )


class Runs:
    """Stands for the sweep: leaves results, except where a run fails or the sweep is stopped."""

    def __init__(self) -> None:
        self.done: list[Run] = []
        self.failing = ""
        self.left = 1000

    def sweep(self, runs, executor, retries) -> int:
        code = 0
        for run in runs:
            if run.is_finished:
                continue
            if not self.left:
                return INTERRUPTED
            if self.failing and self.failing in run.variant:
                code = 1
                continue
            self.left -= 1
            self.done.append(run)
            leave_results(run, right_of(run), TEST__SPLIT="val")
        return code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stub = Runs()
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(tune, "sweep", stub.sweep)
    data = SimpleNamespace(val=["picture"], val_is_disjoint=True)
    monkeypatch.setattr(datasets_of_configs, "build_dataset", lambda cfg: data)
    return stub


def call(folder: Path, options: str, dataset: str = "shapes") -> int:
    places = ["--root", str(folder / "data"), "--output-dir", str(folder)]
    return tune.main(["--trainer", "CoOp", "--dataset", dataset, *places, *shlex.split(options)])


def record(folder: Path, place: str = PLACE) -> dict:
    return json.loads((folder / place / "tune.json").read_text())


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_best_on_validation_images_is_chosen_and_all_is_recorded(runs, tmp_path, capsys):
    options = f"{LR} --seeds 1 3 --overrides OPTIM.MAX_EPOCH 2"
    assert call(tmp_path, options) == 0
    out = capsys.readouterr().out
    assert rows(out) == [
        ["OPTIM.LR", "Validation"],
        ["--------", "----------"],
        ["0.02", "82.0 ± 1.4"],
        ["0.002", "80.0 ± 1.4"],
        ["0.2", "64.0 ± 1.4"],
    ]
    assert out.splitlines()[-1] == "--overrides OPTIM.MAX_EPOCH 2 OPTIM.LR 0.02"
    assert len(runs.done) == 6
    for run in runs.done:
        assert run.arguments[-2:] == ["TEST.SPLIT", "val"] and "--eval-only" not in run.arguments
        assert run.step.name == "train_base" and run.step.test == "base"
    found = record(tmp_path, f"{PLACE}/MAX_EPOCH=2")
    assert [(one["setting"], one["accuracies"]) for one in found["tried"]] == [
        ({"OPTIM.LR": "0.002"}, {"1": 79.0, "3": 81.0}),
        ({"OPTIM.LR": "0.2"}, {"1": 63.0, "3": 65.0}),
        ({"OPTIM.LR": "0.02"}, {"1": 81.0, "3": 83.0}),
    ]
    assert (found["chosen"]["setting"], found["chosen"]["seeds"]) == ({"OPTIM.LR": "0.02"}, [1, 3])
    assert found["chosen"]["mean"] == 82 and found["images"] == "validation"
    assert found["overrides"] == ["OPTIM.MAX_EPOCH", "2"]

    assert call(tmp_path, options) == 0
    assert len(runs.done) == 6 and capsys.readouterr().out == out


def test_a_stopped_search_resumes_and_keeps_what_earlier_ones_have_tried(runs, tmp_path, capsys):
    runs.left = 2
    options = f"{LR} --protocol few_shot --shots 4"
    assert call(tmp_path, options) == INTERRUPTED
    assert capsys.readouterr().out == ""
    place = "shapes/CoOp/vit_mini_4shots"
    assert [one["mean"] for one in record(tmp_path, place)["tried"]] == [79, 63]
    runs.left = 1000
    assert call(tmp_path, options) == 0
    assert [run.variant for run in runs.done] == [
        f"LR={rate},SPLIT=val" for rate in ("0.002", "0.2", "0.02")
    ]
    others = "--set OPTIM.LR=0.1,0.2 --protocol few_shot --shots 4 --seeds 2"
    assert call(tmp_path, others) == 0
    found = record(tmp_path, place)
    assert [(one["setting"]["OPTIM.LR"], one["accuracies"]) for one in found["tried"]] == [
        ("0.002", {"1": 79.0}),
        ("0.2", {"1": 63.0, "2": 64.0}),
        ("0.02", {"1": 81.0}),
        ("0.1", {"2": 74.0}),
    ]
    assert found["chosen"]["setting"] == {"OPTIM.LR": "0.1"}  # of the last command's


def test_a_setting_that_has_failed_is_not_chosen(runs, tmp_path, capsys):
    runs.failing = "LR=0.02,"
    assert call(tmp_path, LR) == 1
    captured = capsys.readouterr()
    assert rows(captured.out)[-1] == ["0.02", "-"]
    assert captured.out.splitlines()[-1] == "--overrides OPTIM.LR 0.002"
    runs.failing = "LR"
    assert call(tmp_path / "other", LR) == 1
    assert "error: nothing to choose from: no setting has finished" in capsys.readouterr().err


def test_of_equal_settings_the_first_is_chosen(runs, tmp_path, capsys):
    assert call(tmp_path, "--set OPTIM.LR=0.02 --set TRAINER.COOP.N_CTX=9,7") == 0
    assert capsys.readouterr().out.endswith("--overrides OPTIM.LR 0.02 TRAINER.COOP.N_CTX 9\n")


@pytest.mark.parametrize(
    ("val", "is_disjoint", "reason"),
    [(["picture"], False, "uses test images as validation images"), ([], True, "has none")],
)
def test_nothing_is_chosen_by_test_images(
    runs, tmp_path, monkeypatch, capsys, val, is_disjoint, reason
):
    data = SimpleNamespace(val=val, val_is_disjoint=is_disjoint)
    monkeypatch.setattr(datasets_of_configs, "build_dataset", lambda cfg: data)
    assert call(tmp_path, LR, "imagenet") == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "error: --dataset: expected one with validation images that are not test images, as "
        f"nothing is chosen by test images; got imagenet, which {reason}\n"
    )
    assert captured.out == "" and runs.done == []


def test_values_are_parted_by_commas_outside_of_brackets():
    options = ["A.B=(1, 3),[2],x", "C=1..4", "D=1e-4..0.1,log", "E=-1.5..2", "F=a..b,log"]
    assert tune.choices_of(options) == {
        "A.B": ("(1, 3)", "[2]", "x"),
        "C": tune.Range(1, 4, False),
        "D": tune.Range(1e-4, 0.1, True),
        "E": tune.Range(-1.5, 2.0, False),
        "F": ("a..b", "log"),
    }
    settings = tune.combinations({"A": ("1", "2"), "B": ("3", "4", "3")})
    assert settings == [("A", first, "B", second) for first, second in ("13", "14", "23", "24")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--set OPTIM.LR", "--set: expected KEY=VALUE,VALUE,... or KEY=LOW..HIGH[,log], got"),
        ("--set OPTIM.LR=1,", "--set: expected KEY=VALUE,VALUE,..."),
        ("--set 'OPTIM.LR=(1,2'", "--set: expected KEY=VALUE,VALUE,..."),
        ("--set OPTIM.LR=1..2", "--set: expected values of OPTIM.LR to try, got a range without"),
        ("--set OPTIM.LR=2..1 --trials 1", "--set: expected a LOW that is less than HIGH, got"),
        ("--set OPTIM.LR=0..1,log --trials 1", "--set: expected a LOW from above 0 that is less"),
        (f"{LR} {LR}", "--set: expected each key once, got OPTIM.LR twice"),
        (f"{LR} --overrides OPTIM.LR 1", "--set: expected keys that --overrides does not set, got"),
        ("--set TEST.SPLIT=val,test", "TEST.SPLIT: expected none, as tune never looks at test"),
        (f"{LR} --overrides TEST.SPLIT test", "TEST.SPLIT: expected none, as tune never looks"),
        ("--set SEED=1,2", "SEED: expected to be set by --seed or --seeds, got override 1,2"),
        ("--set OPTIM.LR=0.1,x", "OPTIM.LR: expected a number such as 0.02, got 'x'"),
        ("--set OPTIM.LR=-1,1", "OPTIM.LR: expected "),
        ("--set TRAINER.HISF.LAMBDA_LE=1", "TRAINER.HISF.LAMBDA_LE: expected no value, as CoOp"),
        (f"{LR} --config mine", "config: expected a config file, got configs/trainers/CoOp/mine"),
    ],
)
def test_bad_input_is_one_line_before_any_run(runs, tmp_path, capsys, options, message):
    assert call(tmp_path, options) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert runs.done == []


def test_a_damaged_record_is_named_before_any_run(runs, tmp_path, capsys):
    path = tmp_path / PLACE / "tune.json"
    path.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"version": 2, "tried": []}', '{"version": 1, "tried": [{}]}'):
        path.write_text(text)
        assert call(tmp_path, LR) == 2
        err = capsys.readouterr().err
        assert str(path) in err and err.startswith("error: ") and err.count("\n") == 1
    assert runs.done == []


def optuna_stub(values: list[dict]) -> ModuleType:
    """Return what tune needs of Optuna, whose sampler proposes given values."""
    module = ModuleType("optuna")
    told: list[tuple] = []

    class Trial(dict):
        def suggest_float(self, key, low, high, *, log):
            told.append((key, low, high, log))
            return self[key]

        suggest_int = suggest_float

        def suggest_categorical(self, key, choices):
            told.append((key, choices))
            return choices[self[key]]

    study = SimpleNamespace(
        ask=lambda: Trial(values.pop(0)),
        tell=lambda trial, value=None, state="COMPLETE": told.append((value, state)),
    )
    module.logging = SimpleNamespace(set_verbosity=lambda level: None, WARNING=30)
    module.samplers = SimpleNamespace(TPESampler=lambda seed: ("TPE", seed))
    module.trial = SimpleNamespace(TrialState=SimpleNamespace(FAIL="FAIL"))
    module.create_study = lambda direction, sampler: told.append((direction, sampler)) or study
    module.told = told
    return module


def test_trials_are_asked_for_and_told_one_after_another(runs, tmp_path, capsys, monkeypatch):
    rates = [0.0123456, 0.0999999, 0.05]
    stub = optuna_stub(
        [{"OPTIM.LR": rate, "TRAINER.COOP.N_CTX": 8, "OPTIM.NAME": 0} for rate in rates]
    )
    monkeypatch.setitem(sys.modules, "optuna", stub)
    runs.failing = "LR=0.05"
    names = "--set OPTIM.LR=0.001..0.1,log --set TRAINER.COOP.N_CTX=4..8 --set OPTIM.NAME=sgd,adam"
    assert call(tmp_path, f"{names} --trials 3") == 1
    ranges = [
        *(("OPTIM.LR", 0.001, 0.1, True), ("TRAINER.COOP.N_CTX", 4, 8, False)),
        ("OPTIM.NAME", ("sgd", "adam")),
    ]
    outcomes = [(80.0, "COMPLETE"), (73.0, "COMPLETE"), (None, "FAIL")]
    assert stub.told[0] == ("maximize", ("TPE", 1))
    assert stub.told[1:] == [told for outcome in outcomes for told in (*ranges, outcome)]
    best = "--overrides OPTIM.LR 0.01235 TRAINER.COOP.N_CTX 8 OPTIM.NAME sgd"
    assert capsys.readouterr().out.splitlines()[-1] == best
    assert [
        dict(zip(r.overrides[::2], r.overrides[1::2], strict=True))["OPTIM.LR"] for r in runs.done
    ] == ["0.01235", "0.1"]


def test_without_optuna_trials_are_refused_in_one_line(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert call(tmp_path, f"{LR} --trials 2") == 2
    line = "error: --trials: expected the package optuna; pip install -e '.[tune]'\n"
    assert capsys.readouterr().err == line


def test_optuna_chooses_the_same_settings_when_it_resumes(runs, tmp_path, capsys):
    pytest.importorskip("optuna")
    options = "--trials 12 --set OPTIM.LR=1e-4..1,log --set TRAINER.COOP.N_CTX=2..16"
    runs.left = 11
    assert call(tmp_path, options) == INTERRUPTED
    runs.left = 1000
    assert call(tmp_path, options) == 0
    resumed = [run.overrides for run in runs.done]
    runs.done.clear()
    assert call(tmp_path / "other", options) == 0
    assert [run.overrides for run in runs.done] == resumed and len(resumed) == 12
    found = record(tmp_path)
    assert found["chosen"]["mean"] == max(one["mean"] for one in found["tried"]) > 70
