"""python -m experiments compare on finished runs whose right answers are known."""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from configs.protocols import BASE2NEW, DOMAIN_GENERALIZATION, FEW_SHOT, harmonic_mean
from dassl.evaluation.predictions import PREDICTIONS_FILE, write_predictions
from experiments import compare
from experiments.runs import Run, runs_of
from tests.experiments.finished import leave

REPOSITORY = Path(__file__).parents[2]
SIX = ("emoji", "animals", "food", "faces", "shapes", "glyphs")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def first(n: int, total: int = 40) -> list[bool]:
    """Be right about the first n images."""
    return [True] * n + [False] * (total - n)


def leave_base2new(folder: Path, method: str, dataset: str, *counts: tuple[int, int]) -> None:
    """Leave runs of seeds 1, 2, ... that are right about the first images of base and novel."""
    for seed, (base, novel) in enumerate(counts, start=1):
        train, test = runs_of(BASE2NEW, method, dataset, seed, output_dir=folder)
        leave(train, first(base))
        leave(test, first(novel))


def set_config(run: Run, config: object) -> None:
    path = run.folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))


def called(capsys, folder: Path, *arguments: object) -> tuple[int, str, list[str]]:
    """Return the exit code, what is printed and the lines on stderr."""
    options = ("--output-dir", folder) if "--output-dir" not in arguments else ()
    code = compare.main([*map(str, arguments), *map(str, options)])
    out, errors = capsys.readouterr()
    return code, out, errors.splitlines()


def rows_of(out: str) -> list[list[str]]:
    lines = [line for line in out.splitlines() if line.startswith("|")]
    cells = [[text.strip() for text in line.split("|")[1:-1]] for line in lines]
    return [row for row in cells if not set(row[0]) == {"-"}]


def numbers(cell: str) -> list[float]:
    """Return the mean and the two ends of a cell."""
    return [float(n) for n in re.findall(r"[+-]\d+\.\d+", cell)]


def test_one_seed_on_one_dataset(tmp_path, capsys):
    leave_base2new(tmp_path, "CoOp", "emoji", (30, 10))
    leave_base2new(tmp_path, "KgCoOp", "emoji", (20, 20))
    code, out, errors = called(capsys, tmp_path, "CoOp", "KgCoOp", "--seeds", 1)
    assert code == 0 and errors == []
    lines = out.splitlines()
    assert lines[0] == (
        "Differences of accuracy in points, 16 shots, seed 1, "
        "[95% interval over images, for this seed alone]:"
    )
    header, (name, base, novel, mean) = rows_of(out)
    assert header == ["Dataset", "Base", "Novel", "Harmonic mean"] and name == "emoji"
    half = 196 * np.std([1] * 10 + [0] * 30, ddof=1) / math.sqrt(40)  # of the ten that differ
    assert numbers(base) == pytest.approx([25, 25 - half, 25 + half], abs=0.4)
    assert numbers(novel) == pytest.approx([-25, -25 - half, -25 + half], abs=0.4)
    assert numbers(mean)[0] == pytest.approx(harmonic_mean(75, 25) - 50, abs=0.005)
    assert "CoOp against KgCoOp, on emoji: better in Base; worse in Novel" in out
    assert lines[-1] == (
        "No test over datasets: with 1 of them no p can be below 1; tests need 6 or more."
    )


def test_the_average_pairs_seeds_and_has_the_mean_of_means(tmp_path, capsys):
    counts = {
        "CoOp": {"emoji": [(30, 10), (32, 12)], "food": [(20, 20), (22, 24)]},
        "KgCoOp": {"emoji": [(28, 16), (28, 16)], "food": [(16, 20), (20, 22)]},
    }
    for method, datasets in counts.items():
        for dataset, seeds in datasets.items():
            leave_base2new(tmp_path, method, dataset, *seeds)
    options = ("--datasets", "emoji", "food", "--seeds", 1, 2)
    _, out, _ = called(capsys, tmp_path, "CoOp", "KgCoOp", *options)
    rows = {row[0]: row[1:] for row in rows_of(out)}

    def difference(seed: int, part: int) -> float:
        of = [[100 * counts[m][d][seed][part] / 40 for d in ("emoji", "food")] for m in counts]
        return float(np.mean(of[0]) - np.mean(of[1]))

    def of_means(method: str, seed: int) -> float:
        base, novel = (
            np.mean([100 * counts[method][d][seed][part] / 40 for d in ("emoji", "food")])
            for part in (0, 1)
        )
        return harmonic_mean(float(base), float(novel))

    base, novel, mean = (numbers(cell) for cell in rows["average"])
    assert base[0] == pytest.approx(np.mean([difference(s, 0) for s in (0, 1)]), abs=0.005)
    assert novel[0] == pytest.approx(np.mean([difference(s, 1) for s in (0, 1)]), abs=0.005)
    expected = np.mean([of_means("CoOp", s) - of_means("KgCoOp", s) for s in (0, 1)])
    assert mean[0] == pytest.approx(expected, abs=0.005)
    # Two seeds: at least Student's interval of one degree of freedom.
    seeds = [difference(s, 1) for s in (0, 1)]
    assert novel[2] - novel[0] >= 12.7 * np.std(seeds, ddof=1) / math.sqrt(2)
    assert rows["win / tie / loss"] == ["0 / 2 / 0", "0 / 2 / 0", "1 / 1 / 0"]
    assert "signed-rank test" not in rows
    assert "with 2 of them no p can be below 0.5" in out


def test_six_datasets_have_a_test(tmp_path, capsys):
    for number, dataset in enumerate(SIX):
        leave_base2new(tmp_path, "CoOp", dataset, (21 + number, 20))
        leave_base2new(tmp_path, "KgCoOp", dataset, (20, 20 + number % 2))
    options = ("--datasets", *SIX, "--seeds", 1)
    _, out, _ = called(capsys, tmp_path, "CoOp", "KgCoOp", *options)
    rows = {row[0]: row[1:] for row in rows_of(out)}
    assert rows["signed-rank test"][:2] == ["p = 0.0312", "-"]  # three of six differ in Novel
    assert "By the signed-rank test, on such datasets in general: better in Base" in out
    _, out, _ = called(capsys, tmp_path, "KgCoOp", "CoOp", *options)
    assert "on such datasets in general: worse in Base" in out


def test_three_methods_have_corrected_tests_ranks_and_a_diagram(tmp_path, capsys):
    skill = {"CoOp": 0, "KgCoOp": 3, "MaPLe": 6}
    for (number, dataset), method in itertools.product(enumerate(SIX), skill):
        count = 15 + number + skill[method] + (number == 0)
        leave_base2new(tmp_path, method, dataset, (count, 40 - count))
    path = tmp_path / "ranks.svg"
    options = ("--datasets", *SIX, "--seeds", 1, "--diagram", path)
    code, out, _ = called(capsys, tmp_path, *skill, *options)
    assert code == 0
    tests = [row[1:3] for row in rows_of(out) if row[0] == "signed-rank test"]
    assert tests == [["p = 0.0938", "p = 0.0938"]] * 3  # 2 / 2^6, times 3
    assert "Holm's correction leaves no p of the signed-rank test below 0.09375" in out
    ranks = {row[0]: row[1:3] for row in rows_of(out)[-5:]}
    assert ranks["MaPLe"] == ["1.00", "3.00"] and ranks["CoOp"] == ["3.00", "1.00"]
    assert ranks["Friedman's test"] == ["p < 0.0001", "p < 0.0001"]
    assert ranks["critical difference"] == ["1.35", "1.35"]  # 2.343 * sqrt(3 * 4 / 36)
    drawn = path.read_text()
    for text in ("Base", "Novel", "Harmonic mean", *skill, "critical difference 1.35"):
        assert f">{text}" in drawn


def test_missing_runs_are_named_and_not_averaged(tmp_path, capsys):
    for method, dataset in itertools.product(("CoOp", "KgCoOp"), ("emoji", "food")):
        leave_base2new(tmp_path, method, dataset, (30, 10), (32, 12))
    gone = runs_of(BASE2NEW, "KgCoOp", "food", 2, output_dir=tmp_path)[1]
    (gone.folder / "results.json").unlink()
    options = ("--datasets", "emoji", "food", "--seeds", 1, 2)
    code, out, errors = called(capsys, tmp_path, "CoOp", "KgCoOp", *options)
    assert code == 0
    rows = {row[0]: row[1:] for row in rows_of(out)}
    # the seed that both have remains, and is said to be alone
    assert [cell.endswith(" (1 of 2 seeds)") for cell in rows["food"]] == [False, True, True]
    assert [cell.startswith("+0.00") for cell in rows["food"]] == [True] * 3
    assert [cell.startswith("+0.00") for cell in rows["average"]] == [True, False, False]
    assert rows["average"][1:] == ["-", "-"]
    assert rows["win / tie / loss"] == ["0 / 2 / 0", "-", "-"]
    assert "no difference can be shown in Base; results are missing in Novel, Harmonic mean" in out
    assert errors == [
        f"missing: {gone.folder}",
        "skipped: 0 damaged and 1 missing of 16 runs",
    ]


def test_damaged_runs_are_named_and_skipped(tmp_path, capsys):
    for method in ("CoOp", "KgCoOp"):
        leave_base2new(tmp_path, method, "emoji", (30, 10), (32, 12))
    train, test = runs_of(BASE2NEW, "CoOp", "emoji", 1, output_dir=tmp_path)
    (test.folder / PREDICTIONS_FILE).write_bytes(b"PK\3\4 no more")
    other = runs_of(BASE2NEW, "CoOp", "emoji", 2, output_dir=tmp_path)[0]
    (train.folder / PREDICTIONS_FILE).write_bytes((other.folder / PREDICTIONS_FILE).read_bytes())
    code, out, errors = called(capsys, tmp_path, "CoOp", "KgCoOp", "--seeds", 1, 2)
    assert code == 1
    assert rows_of(out)[1][1].startswith("+0.00")
    assert errors[0] == (
        f"skipped: {train.folder / PREDICTIONS_FILE}: expected accuracy 75.0000 as in the "
        "results, got 80.0000"
    )
    assert str(test.folder / PREDICTIONS_FILE) in errors[1]
    assert errors[2:] == ["skipped: 2 damaged and 0 missing of 8 runs"]


@pytest.mark.parametrize("what", ["more", "label", "backbone", "seeds", "shots"])
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, what):
    for method in ("CoOp", "KgCoOp"):
        leave_base2new(tmp_path, method, "emoji", (30, 10), (32, 12))
    one, other = (runs_of(BASE2NEW, m, "emoji", output_dir=tmp_path)[0] for m in ("CoOp", "KgCoOp"))
    second = runs_of(BASE2NEW, "CoOp", "emoji", 2, output_dir=tmp_path)[0]
    place = f"cannot compare {one.folder} with {other.folder}: "
    if what == "more":
        leave(other, first(30, 41))
        reason = "40 and 41 test images, of which '40.png' of class 'a' is only in "
        expected = f"{place}{reason}{other.folder}"
    elif what == "label":
        labels = np.zeros(40, dtype=np.int64)
        labels[0] = 1
        logits = {"logits": np.eye(2, dtype=np.float16)[labels]}
        with open(other.folder / PREDICTIONS_FILE, "wb") as file:
            paths = [f"/data/{i}.png" for i in range(40)]
            write_predictions(file, paths, "/data", labels, ["a", "b"], logits)
        (other.folder / "results.json").write_text('{"accuracy": 100}')
        reason = "40 and 40 test images, of which '0.png' of class 'a' is only in "
        expected = f"{place}{reason}{one.folder}"
    elif what == "backbone":
        set_config(one, {"MODEL": {"BACKBONE": {"NAME": "ViT-B/16"}}})
        set_config(other, {"MODEL": {"BACKBONE": {"NAME": "RN50"}}})
        expected = f"{place}MODEL.BACKBONE.NAME is ViT-B/16 in one and RN50 in the other"
    elif what == "shots":
        set_config(one, {"DATASET": {"NUM_SHOTS": 16}})
        set_config(other, {"DATASET": {"NUM_SHOTS": 4}})
        expected = f"{place}DATASET.NUM_SHOTS is 16 in one and 4 in the other"
    else:
        set_config(one, {"SEED": 1, "OPTIM": {"LR": 0.1}})
        set_config(second, {"SEED": 2, "OPTIM": {"LR": 0.2}})
        expected = (
            f"cannot compare {one.folder} with {second.folder}: "
            "OPTIM.LR is 0.1 in one and 0.2 in the other"
        )
    code, out, errors = called(capsys, tmp_path, "CoOp", "KgCoOp", "--seeds", 1, 2)
    assert (code, out, errors) == (2, "", [f"error: {expected}"])


def test_settings_that_are_of_the_method_or_of_no_consequence_may_differ(tmp_path, capsys):
    for method in ("CoOp", "KgCoOp"):
        leave_base2new(tmp_path, method, "emoji", (30, 10), (32, 12))
        for seed in (1, 2):
            run = runs_of(BASE2NEW, method, "emoji", seed, output_dir=tmp_path)[0]
            places = {"OUTPUT_DIR": str(run.folder), "SEED": seed, "DATASET": {"ROOT": str(seed)}}
            set_config(run, {**places, "OPTIM": {"LR": len(method)}})
    code, _, errors = called(capsys, tmp_path, "CoOp", "KgCoOp", "--seeds", 1, 2)
    assert (code, errors) == (0, [])


def test_a_method_against_its_variant_and_against_another_output(tmp_path, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    leave_base2new(here, "CoOp", "emoji", (30, 10))
    leave_base2new(there, "CoOp", "emoji", (20, 10))
    overrides = ["TRAINER.COOP.N_CTX", "4"]
    for run in runs_of(BASE2NEW, "CoOp", "emoji", overrides=overrides, output_dir=here):
        leave(run, first(26))
    variant, other = "CoOp,TRAINER.COOP.N_CTX=4", f"CoOp@{there}"
    _, out, _ = called(capsys, here, "CoOp", variant, other, "--seeds", 1)
    assert f"CoOp - {variant}:" in out and f"{variant} - {other}:" in out
    found = [numbers(row[1])[0] for row in rows_of(out) if row[0] == "emoji"]
    assert found == [10.0, 25.0, 15.0]


def test_what_is_not_trained_stands_for_all_seeds_and_shots(tmp_path, capsys):
    for seed, shots in itertools.product((1, 2), (1, 4)):
        (run,) = runs_of(FEW_SHOT, "CoOp", "emoji", seed, shots, output_dir=tmp_path)
        leave(run, first(20 + 2 * shots))
    (run,) = runs_of(FEW_SHOT, "ZeroshotCLIP", "emoji", output_dir=tmp_path)
    leave(run, first(18))
    options = ("--protocol", "few_shot", "--seeds", 1, 2, "--shots", 1, 4)
    code, out, errors = called(capsys, tmp_path, "CoOp", "ZeroshotCLIP", *options)
    assert (code, errors) == (0, [])
    header, row = rows_of(out)
    assert header == ["Dataset", "1-shot", "4-shot"]
    assert [numbers(cell)[0] for cell in row[1:]] == [10.0, 25.0]


def test_a_transfer_has_a_row_for_each_target_and_leaves_out_the_source(tmp_path, capsys):
    for method, more in (("CoOp", 0), ("KgCoOp", 4)):
        runs = runs_of(DOMAIN_GENERALIZATION, method, "emoji", output_dir=tmp_path)
        for number, run in enumerate(runs):
            leave(run, first(20 - more * number))
    options = ("--protocol", "domain_generalization", "--seeds", 1)
    _, out, _ = called(capsys, tmp_path, "CoOp", "KgCoOp", *options)
    header, *rows = rows_of(out)
    assert header == ["Dataset", "Accuracy"]
    assert [(name, numbers(cell)[:1]) for name, cell in rows] == [
        *[("emoji (source)", [0.0]), ("emoji_v2", [10.0]), ("emoji_sketch", [20.0])],
        *[("emoji_noise", [30.0]), ("emoji_rendition", [40.0]), ("average", [25.0])],
        ("win / tie / loss", []),
    ]
    assert rows[-1][1] == "4 / 0 / 0"
    assert "with 4 of them no p can be below 0.125" in out


def test_a_method_without_novel_classes_is_compared_in_base(tmp_path, capsys):
    leave_base2new(tmp_path, "CoOp", "emoji", (30, 10))
    (run,) = runs_of(BASE2NEW, "LinearProbe", "emoji", output_dir=tmp_path)
    leave(run, first(20))
    code, out, errors = called(capsys, tmp_path, "CoOp", "LinearProbe", "--seeds", 1)
    assert (code, errors) == (0, [])
    assert numbers(rows_of(out)[1][1])[0] == 25.0 and rows_of(out)[1][2:] == ["-", "-"]


def test_methods_of_which_none_has_novel_classes(tmp_path, capsys):
    variants = ["LinearProbe", "LinearProbe,OPTIM.LR=1", "LinearProbe,OPTIM.LR=2"]
    for (number, dataset), (rank, text) in itertools.product(enumerate(SIX), enumerate(variants)):
        pair = text.partition(",")[2].split("=") if "," in text else []
        (run,) = runs_of(BASE2NEW, "LinearProbe", dataset, overrides=pair, output_dir=tmp_path)
        leave(run, first(15 + number + rank))
    code, out, _ = called(capsys, tmp_path, *variants, "--datasets", *SIX, "--seeds", 1)
    assert code == 0
    assert rows_of(out)[0] == ["Dataset", "Base"]
    assert ["LinearProbe,OPTIM.LR=2", "1.00"] in rows_of(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CoOp"], "METHOD: expected two or more, got CoOp"),
        (["CoOp", "CoOp"], "METHOD: expected two or more, got CoOp"),
        (["CoOp", "Koop"], "unknown method 'Koop'; did you mean"),
        (["CoOp", "CoOp,N_CTX"], "expected KEY=VALUE, got 'N_CTX'"),
        (["CoOp", "MaPLe", "--shots", "1", "2"], "--shots: expected one number"),
        (["CoOp", "MaPLe", "--diagram", "x.svg"], "--diagram: expected three or more methods"),
        (["CoOp", "MaPLe", "IVLP", "--diagram", "x.png"], "that ends in .svg, got 'x.png'"),
        (["CoOp", "MaPLe", "IVLP", "--diagram", "no/x.svg"], "a folder that exists, got"),
        (
            ["CoOp", "MaPLe", "--protocol", "cross_dataset", "--datasets", "emoji", "food"],
            "--datasets: expected one, the source",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        compare.main(arguments)
    out, errors = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert message in errors and errors.count("\n") == 1


def test_nothing_to_compare_is_one_line(tmp_path, capsys):
    code, out, errors = called(capsys, tmp_path, "CoOp", "KgCoOp")
    assert (code, out) == (2, "") and len(errors) == 1
    assert errors[0].startswith("error: METHOD: expected finished runs, got none in ")
    leave_base2new(tmp_path, "CoOp", "emoji", (30, 10))
    options = ("--seeds", 1, "--diagram", tmp_path / "x.svg")
    code, _, errors = called(capsys, tmp_path, "CoOp", "KgCoOp", "IVLP", *options)
    assert (code, errors) == (2, ["error: --diagram: expected 6 datasets or more, got 1"])
