"""``experiments table OUTPUT``: finished runs that are found in folders, and what is skipped."""

import csv
import io
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import t

from configs.protocols import (
    BASE2NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    harmonic_mean,
)
from experiments import found, rows, table, views
from experiments.intervals import half_width_of_counts, propagated
from experiments.runs import runs_of
from tests.experiments.finished import leave_results

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(table, "run_all", lambda *arguments: pytest.fail("something was run"))


def printed(capsys, *arguments, code=0):
    """Return the text, the rows of all tables with a header each, and the lines on stderr."""
    assert table.main([str(argument) for argument in arguments]) == code
    out, errors = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("| ") and "---" not in line]
    cells = [[text.strip() for text in line.split("|")[1:-1]] for line in lines]
    return out, cells, errors.splitlines()


def pair(tmp_path, method="CoOp", dataset="digits", seed=1, shots=16, **options):
    return runs_of(BASE2NEW, method, dataset, seed, shots, output_dir=tmp_path, **options)


def test_a_cell_has_mean_deviation_seeds_and_an_interval_over_seeds_and_images(tmp_path, capsys):
    base, novel = (80, 84, 91), (50, 60, 52)
    for seed, *counts in zip((1, 2, 3), base, novel, strict=True):
        for run, correct in zip(pair(tmp_path, seed=seed), counts, strict=True):
            leave_results(run, correct)
    out, cells, errors = printed(capsys, tmp_path)

    def expected(values, half_width):
        over_seeds = t.ppf(0.975, 2) * statistics.stdev(values) / math.sqrt(3)
        half, mean = math.hypot(half_width, over_seeds), statistics.fmean(values)
        low, high = max(0, mean - half), min(100, mean + half)
        return f"{mean:.1f} ± {statistics.stdev(values):.1f} (3) [{low:.1f}, {high:.1f}]"

    # three seeds that are right about the same pictures: the binomial interval of one
    halves = [196 * math.sqrt(p * (1 - p) / 99) for p in (0.85, 0.54)]
    means = [harmonic_mean(*each) for each in zip(base, novel, strict=True)]
    of_mean = propagated(lambda values: harmonic_mean(*values), [85.0, 54.0], halves)
    assert cells == [
        ["Dataset", "Method", "Base", "Novel", "Harmonic mean"],
        [
            *("digits", "CoOp", expected(base, halves[0])),
            *(expected(novel, halves[1]), expected(means, of_mean)),
        ],
    ]
    caption, _, title, *_ = out.splitlines()
    assert caption.startswith("Accuracy in percent, ViT-Mini-2, fp32, split test, torch 2.14.1: ")
    assert title == "Base to novel, 16 shots:"
    assert errors == []


def test_counts_give_the_widest_interval_of_the_shares():
    assert half_width_of_counts([(30, 100)]) == pytest.approx(196 * math.sqrt(0.21 / 99))
    assert half_width_of_counts([(30, 100), (50, 100)]) == half_width_of_counts([(40, 100)])
    assert half_width_of_counts([(30, 100), (50, 99)]) is None
    assert half_width_of_counts([(1, 1)]) is None


def test_missing_cells_stay_empty_and_averages_are_over_complete_columns(tmp_path, capsys):
    for dataset in ("shapes", "digits"):
        for seed in (1, 2):
            train, test = pair(tmp_path, dataset=dataset, seed=seed)
            leave_results(train, 80 + seed)
            if (dataset, seed) != ("digits", 2):
                leave_results(test, 60 + seed)
        for run in pair(tmp_path, "KgCoOp", dataset):
            leave_results(run, 70)
    train, _ = pair(tmp_path, "VPT", "shapes")
    leave_results(train, 77)
    out, cells, _ = printed(capsys, tmp_path)
    short = [[cell.partition(" [")[0] for cell in line] for line in cells[1:]]
    assert short == [
        ["shapes", "CoOp", "81.5 ± 0.7 (2)", "61.5 ± 0.7 (2)", "70.1 ± 0.7 (2)"],
        ["shapes", "KgCoOp", "70.0 (1)", "70.0 (1)", "70.0 (1)"],
        ["shapes", "VPT", "77.0 (1)", "-", "-"],
        ["digits", "CoOp", "81.5 ± 0.7 (2)", "61.0 (1)", "69.6 (1)"],
        ["digits", "KgCoOp", "70.0 (1)", "70.0 (1)", "70.0 (1)"],
        ["average", "CoOp", "81.5 ± 0.7 (2)", "-", "-"],
        ["average", "KgCoOp", "70.0 (1)", "70.0 (1)", "70.0 (1)"],
        ["average", "VPT", "-", "-", "-"],
    ]
    assert out.splitlines()[-1] == (
        "An average is over all 2 datasets, where each has the same seeds. There is none for CoOp "
        "(Novel); VPT (Base, Novel)."
    )


# The run of the second seed, and the name of its row or what that must hold
SETTINGS = [
    ({"DATALOADER__VIEWS": 4}, {}, "CoOp (VIEWS 4)"),
    ({"TRAINER__COOP__PREC": "amp"}, {}, "CoOp (TRAINER.COOP.PREC=amp)"),
    ({"TEST__FINAL_MODEL": "best_val"}, {}, "CoOp (TEST.FINAL_MODEL=best_val)"),
    ({"OPTIM__LR": 0.5}, {}, "CoOp (OPTIM.LR=0.5)"),
    ({"MODEL__INIT_WEIGHTS": "some.pth"}, {}, "CoOp (MODEL.INIT_WEIGHTS=set)"),
    ({"precision": "bf16"}, {}, "CoOp (bf16)"),
    ({"precision": None}, {}, "CoOp (unknown precision)"),
    ({"split": "val"}, {}, "CoOp (split val)"),
    ({"MODEL__BACKBONE__NAME": "ViT-B/16"}, {}, "CoOp (ViT-B/16)"),
    ({}, {"config": "vit_b16"}, "CoOp (vit_b16)"),
    ({}, {"overrides": ["OPTIM.MAX_EPOCH", "2"]}, "CoOp (MAX_EPOCH=2)"),
    ({}, {"load_epoch": "5"}, "CoOp (epoch 5)"),
    ({}, {"shots": 4}, "CoOp"),
]


@pytest.mark.parametrize(("changes", "options", "name"), SETTINGS, ids=lambda value: str(value))
def test_runs_with_other_settings_have_rows_of_their_own(tmp_path, capsys, changes, options, name):
    epoch = options.pop("load_epoch", "")
    for seed, own, extra in ((1, {}, {}), (2, changes, options)):
        train, _ = pair(tmp_path, seed=seed, **extra)
        leave_results(replace(train, load_epoch=epoch if extra is options else ""), 80, **own)
    _, cells, errors = printed(capsys, tmp_path)
    assert len(cells) == 3 and errors == []
    assert [line[-3].partition(" [")[0] for line in cells[1:]] == ["80.0 (1)", "80.0 (1)"]
    assert name in {line[1] for line in cells[1:]}


def test_what_does_not_change_the_result_does_not_split_a_row(tmp_path, capsys):
    for seed, changes in (
        (1, {}),
        (2, {"DATASET__ROOT": "/elsewhere", "DATALOADER__NUM_WORKERS": 3, "RESUME": "there"}),
        (3, {"TRAINER__HICROPL__N_CTX": 2, "DATALOADER__VIEWS": 0}),  # another's, and the default
    ):
        leave_results(pair(tmp_path, seed=seed)[0], 80, **changes)
    _, cells, _ = printed(capsys, tmp_path)
    assert [line[1:3] for line in cells[1:]] == [["CoOp", "80.0 ± 0.0 (3) [72.1, 87.9]"]]


def test_names_say_what_a_reader_must_know(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rows, "TRANSDUCTIVE", ("TCP",))
    for method, changes in (
        ("HiCroPL", {"TRAINER__HICROPL__DESCRIPTIONS": "datasets/descriptions/{dataset}.json"}),
        ("TCP", {"DATALOADER__VIEWS": 2}),
    ):
        leave_results(pair(tmp_path, method)[0], 80, **changes)
    photo = {"TRAINER__HICROPL__DESCRIPTIONS": "x.json", "TRAINER__HICROPL__FROZEN_TEXT": "photo"}
    frozen = ["TRAINER.HICROPL.FROZEN_TEXT", "photo"]
    leave_results(pair(tmp_path, "HiCroPL", overrides=frozen)[0], 80, **photo)
    _, cells, _ = printed(capsys, tmp_path)
    assert {line[1] for line in cells[1:]} == {
        *("HiCroPL (descriptions)", "TCP (VIEWS 2, transductive)", "HiCroPL (FROZEN_TEXT=photo)"),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"accuracy": 80.0, "conf', "is not valid JSON"),
        ("", "is not valid JSON"),
        ('{"model": "resnet", "top1": 0.8}', "expected a number in [0, 100] under 'accuracy'"),
        ('{"accuracy": 80.0}', "expected the results of a run with its trainer and config"),
    ],
)
def test_truncated_and_foreign_results_are_named_skipped_and_counted(tmp_path, capsys, text, said):
    good, bad = pair(tmp_path)
    leave_results(good, 80)
    (leave_results(bad, 50) / "results.json").write_text(text)
    _, cells, errors = printed(capsys, tmp_path, code=1)
    assert cells[1][2:] == ["80.0 (1) [72.1, 87.9]", "-", "-"]
    assert len(errors) == 2 and errors[0].startswith(f"skipped: {bad.folder}/results.json: ")
    assert said in errors[0] and errors[1] == "skipped: 1 of 2 results"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"VERSION": 2}, "expected config VERSION 1 or less, got 2"),
        ({"VERSION": "x"}, "expected config VERSION 1 or less, got 'x'"),
        ({"trainer": "MaPLe"}, "expected trainer CoOp, as its folder says, got 'MaPLe'"),
        ({"SEED": 2}, "expected SEED 1, as its folder says, got 2"),
        ({"DATASET__NAME": "Food"}, "expected DATASET.NAME Digits, as its folder says"),
        ({"DATASET__NUM_SHOTS": 4}, "expected DATASET.NUM_SHOTS 16, as its folder says, got 4"),
        ({"DATASET__SUBSAMPLE_CLASSES": "base"}, "expected classes tested new, as its folder says"),
        ({"TEST__SUBSAMPLE_CLASSES": "all"}, "expected classes tested new, as its folder says"),
        ({"config": [1]}, "expected the results of a run with its trainer and config"),
    ],
    ids=str,
)
def test_results_of_another_version_or_run_are_skipped(tmp_path, capsys, changes, said):
    good, bad = pair(tmp_path)
    leave_results(good, 80)
    leave_results(bad, 50, **changes)
    _, cells, errors = printed(capsys, tmp_path, code=1)
    assert cells[1][3] == "-" and said in errors[0]
    assert errors[1:] == ["skipped: 1 of 2 results"]


def test_runs_of_the_command_views_are_known_and_in_no_table(tmp_path, capsys):
    train, _ = pair(tmp_path)
    leave_results(train, 80)
    leave_results(replace(train, step=views.VALIDATE), 70, split="val")
    _, cells, errors = printed(capsys, tmp_path)
    assert len(cells) == 2 and cells[1][:2] == ["digits", "CoOp"] and errors == []


def test_results_outside_the_scheme_and_unfinished_runs_are_named(tmp_path, capsys):
    good, begun = pair(tmp_path)
    leave_results(good, 80)
    begun.folder.mkdir(parents=True)
    (begun.folder / "config.yaml").touch()
    elsewhere = tmp_path / "mine" / "results.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text('{"accuracy": 1}')
    _, _, errors = printed(capsys, tmp_path, code=1)
    assert errors == [
        f"skipped: {elsewhere}: expected a folder of a protocol's run, as docs/experiments.md says",
        "skipped: 1 of 2 results",
        "unfinished runs, without results: 1",
    ]


def test_runs_on_other_test_images_are_skipped(tmp_path, capsys):
    for seed, total in ((1, 100), (2, 99), (3, 100)):
        leave_results(pair(tmp_path, seed=seed)[0], 80, total)
    _, cells, errors = printed(capsys, tmp_path, code=1)
    assert cells[1][2] == "80.0 ± 0.0 (2) [72.1, 87.9]"
    odd = pair(tmp_path, seed=2)[0].folder / "results.json"
    assert errors == [
        f"skipped: {odd}: expected 100 test images as in other runs, got 99",
        "skipped: 1 of 3 results",
    ]


def test_runs_on_validation_images_do_not_say_how_many_test_images_there_are(tmp_path, capsys):
    leave_results(pair(tmp_path)[0], 80)
    for rate in ("0.2", "0.02"):
        tuned = pair(tmp_path, overrides=("OPTIM.LR", rate, "TEST.SPLIT", "val"))[0]
        leave_results(tuned, 8, 10, split="val", OPTIM__LR=float(rate), TEST__SPLIT="val")
    _, cells, errors = printed(capsys, tmp_path)
    assert errors == [] and len(cells) == 4
    assert [row[2] for row in cells if "split test" in row[1]] == ["80.0 (1) [72.1, 87.9]"]


def test_results_without_counts_have_no_interval(tmp_path, capsys):
    for seed in (1, 2):
        path = leave_results(pair(tmp_path, seed=seed)[0], 80) / "results.json"
        path.write_text(path.read_text().replace('"correct": 80, "total": 100, ', ""))
    assert printed(capsys, tmp_path)[1][1][2] == "80.0 ± 0.0 (2)"


def test_a_run_in_two_outputs_counts_once(tmp_path, capsys):
    for name in ("a", "b"):
        leave_results(pair(tmp_path / name)[0], 80)
    _, cells, errors = printed(capsys, tmp_path / "a", tmp_path / "b", code=1)
    assert cells[1][2] == "80.0 (1) [72.1, 87.9]"
    first, second = (pair(tmp_path / name)[0].folder for name in ("a", "b"))
    assert errors[0] == f"skipped: {second}: the same run as in {first}"


def test_few_shot_and_transfers_have_tables_of_their_own(tmp_path, capsys):
    for shots in (1, 16):
        (run,) = runs_of(FEW_SHOT, "KgCoOp", "digits", 1, shots, output_dir=tmp_path)
        leave_results(run, 40 + shots)
    for protocol in (CROSS_DATASET, DOMAIN_GENERALIZATION):
        runs = runs_of(protocol, "CoOp", "emoji", output_dir=tmp_path)
        for correct, run in enumerate(runs, start=50):
            leave_results(run, correct)
    (zero,) = runs_of(FEW_SHOT, "ZeroshotCLIP", "digits", output_dir=tmp_path)
    leave_results(zero, 33)
    out, cells, errors = printed(capsys, tmp_path)
    titles = [line[:-1] for line in out.splitlines() if line.endswith(":")][1:]
    assert titles == [
        "Few-shot",
        "Cross-dataset, trained on emoji, 16 shots",
        "Domain generalization, trained on emoji, 16 shots",
    ]
    short = [[cell.partition(" ")[0] for cell in line] for line in cells]
    assert short == [
        ["Dataset", "Method", "0-shot", "1-shot", "16-shot"],
        # the recipe of the transfer is no few-shot training
        ["digits", "ZeroshotCLIP", "33.0", "-", "-"],
        ["digits", "KgCoOp", "-", "41.0", "56.0"],
        [
            *("Dataset", "Method", "emoji", "animals", "food", "faces", "shapes", "glyphs"),
            *("digits", "Average"),
        ],
        ["emoji", "ZeroshotCLIP", *("-" * 6), "33.0", "-"],
        ["emoji", "CoOp", *(f"{50 + i}.0" for i in range(7)), "53.5"],
        [
            *("Dataset", "Method", "emoji", "emoji_v2", "emoji_sketch", "emoji_noise"),
            *("emoji_rendition", "Average"),
        ],
        ["emoji", "CoOp", *(f"{50 + i}.0" for i in range(5)), "52.5"],
    ]
    assert errors == []
    runs[1].folder.rename(tmp_path / "moved")  # an average needs all targets
    _, cells, _ = printed(capsys, tmp_path, "--protocol", "domain_generalization", code=1)
    assert cells[-1][3] == "52.0 (1) [42.2, 61.8]" and "emoji_v2" not in cells[-2]


def test_a_table_as_csv_and_for_latex(tmp_path, capsys):
    for seed in (1, 2):
        train, _ = pair(tmp_path, seed=seed, overrides=["TRAINER.COOP.N_CTX", "4"])
        leave_results(train, 80 + 2 * seed)
    out, _, _ = printed(capsys, tmp_path, "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    half = math.hypot(196 * math.sqrt(0.83 * 0.17 / 99), t.ppf(0.975, 1))
    assert lines[0] == {
        **{"protocol": "base2new", "dataset": "digits", "method": "CoOp (N_CTX=4)", "shots": "16"},
        **{"column": "Base", "mean": "83.0", "standard_deviation": "1.4142", "seeds": "2"},
        **{"low": str(round(83 - half, 4)), "high": str(round(83 + half, 4))},
    }
    assert [(line["column"], line["mean"]) for line in lines[1:]] == [
        *(("Novel", ""), ("Harmonic mean", "")),
    ]
    ends = f"{83 - half:.1f}, {83 + half:.1f}"
    out, _, _ = printed(capsys, tmp_path, "--format", "latex")
    for line in (
        r"\begin{tabular}{llccc}",
        r"Dataset & Method & Base & Novel & Harmonic mean \\",
        rf"digits & CoOp (N\_CTX=4) & 83.0 $\pm$ 1.4 (2) [{ends}] & - & - \\",
    ):
        assert line in out.splitlines()
    assert [out.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_options_of_a_sweep_are_refused_with_outputs(tmp_path, capsys):
    for option in (["--seeds", "1"], ["--overrides", "A", "1"], ["--intervals"]):
        with pytest.raises(SystemExit) as stop:
            table.main([str(tmp_path), *option])
        assert stop.value.code == 2
        assert f"error: {option[0]}: expected no OUTPUT" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # progress would stand in front of it
        table.main(["--format", "csv"])
    assert "error: --format csv: expected OUTPUT or --no-run" in capsys.readouterr().err


def test_no_folder_and_an_empty_one_are_one_line(tmp_path, capsys):
    missing = tmp_path / "missing"
    _, _, errors = printed(capsys, missing, code=2)
    assert errors == [f"error: OUTPUT: expected a folder of runs, got '{missing}'"]
    _, _, errors = printed(capsys, tmp_path, code=2)
    assert errors == [
        f"error: OUTPUT: expected finished runs of a protocol, got none in {tmp_path}"
    ]


def test_every_step_is_found_again_in_its_folder(tmp_path):
    for protocol in (BASE2NEW, FEW_SHOT, CROSS_DATASET, DOMAIN_GENERALIZATION):
        for method in ("CoOp", "ZeroshotCLIP"):
            for options in ({}, {"overrides": ["OPTIM.LR", "0.1"], "backbone": "ViT-B/32"}):
                config = {"config": "vit_b16"} if options else {}
                for run in runs_of(
                    *(protocol, method, "emoji", 2, 4), output_dir=tmp_path, **config, **options
                ):
                    again = found.run_in(run.folder)
                    assert again is not None
                    for name in ("trainer", "target", "seed", "shots", "config", "variant"):
                        assert getattr(again, name) == getattr(run, name), (run.folder, name)
                    if run.is_trained:
                        assert again.dataset == run.dataset
                        assert again.step.folder == run.step.folder
