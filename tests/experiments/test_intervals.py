"""experiments/intervals.py against closed forms and a simulation, and the cells of tables."""

import math
from pathlib import Path

import numpy as np
import pytest

from configs.protocols import BASE2NEW, base_and_novel, harmonic_mean, mean_of_targets
from dassl.evaluation.predictions import PREDICTIONS_FILE
from experiments import table
from experiments.intervals import (
    half_width_of_counts,
    half_width_over_seeds,
    mean_and_half_width,
    mean_difference,
    propagated,
    shares_right,
)
from experiments.runs import runs_of
from tests.experiments.finished import leave

REPOSITORY = Path(__file__).parents[2]


def test_one_seed_has_the_binomial_interval():
    mean, half_width = mean_and_half_width([1.0] * 30 + [0.0] * 70)
    assert mean == pytest.approx(30)
    assert half_width == pytest.approx(196 * math.sqrt(0.3 * 0.7 / 99))
    assert mean_and_half_width([1.0] * 5) == (100.0, 0.0)
    assert mean_and_half_width([1.0]) == (100.0, math.inf)


def test_seeds_that_agree_do_not_narrow_the_interval():
    right = {str(i): i % 3 == 0 for i in range(60)}
    shares = shares_right([right] * 5)
    assert shares == {picture: float(value) for picture, value in right.items()}
    opposite = {picture: not value for picture, value in right.items()}
    # where each picture is right for half of the seeds, every test set gives the same mean
    halves = shares_right([right, opposite])
    assert mean_and_half_width(halves.values()) == (50.0, 0.0)


def test_a_difference_is_paired():
    first = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0, "only": 1.0}
    second = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.5}
    mean, half_width = mean_difference(first, second)
    assert mean == pytest.approx(37.5)
    assert half_width == pytest.approx(196 * np.std([1, 0, 0, 0.5], ddof=1) / 2)


def test_the_delta_method_has_the_closed_forms():
    base, novel = 80.0, 60.0
    found = propagated(lambda values: harmonic_mean(*values), [base, novel], [1.5, 2.0])
    total = (base + novel) ** 2
    expected = math.hypot(2 * novel**2 / total * 1.5, 2 * base**2 / total * 2.0)
    assert found == pytest.approx(expected, rel=1e-6)
    steps = ["train_source", "test_target", "test_target"]

    def average(values):
        grouped = {
            name: [v for s, v in zip(steps, values, strict=True) if s == name] for name in steps
        }
        return mean_of_targets(grouped)

    assert propagated(average, [70.0, 50.0, 40.0], [9.0, 3.0, 4.0]) == pytest.approx(2.5)
    assert propagated(lambda values: harmonic_mean(*values), [0.0, 0.0], [1.0, 1.0]) == 0.0


def test_intervals_cover_the_truth_in_19_of_20_test_sets():
    random = np.random.default_rng(1)
    # each picture has a probability of being right, which three seeds share
    covered = {"base": 0, "mean": 0}
    truth = (0.5 * 0.9 + 0.5 * 0.3, 0.5 * 0.8 + 0.5 * 0.4)
    n_sets = 600
    for _ in range(n_sets):
        parts = []
        for high, low in ((0.9, 0.3), (0.8, 0.4)):
            chance = random.choice([high, low], size=150)
            shares = (random.random((3, 150)) < chance).mean(axis=0)
            parts.append(mean_and_half_width(shares.tolist()))
        (base, half), (novel, other) = parts
        covered["base"] += abs(base - 100 * truth[0]) <= half
        mean = propagated(lambda values: harmonic_mean(*values), [base, novel], [half, other])
        true_mean = harmonic_mean(100 * truth[0], 100 * truth[1])
        covered["mean"] += abs(harmonic_mean(base, novel) - true_mean) <= mean
    for count in covered.values():
        assert 0.93 < count / n_sets < 0.97


@pytest.mark.parametrize(("n_seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.02), (3, 0.08)])
def test_intervals_of_counts_and_seeds_cover_the_truth(n_seeds, spread):
    random = np.random.default_rng(2)
    covered, n_sets, truth, n = 0, 1000, 0.6, 400
    for _ in range(n_sets):
        # images that are easy or hard for all seeds, and seeds that are better or worse
        chance = random.choice([0.9, 0.3], size=n)
        seeds = np.clip(chance + spread * random.standard_normal((n_seeds, 1)), 0, 1)
        right = (random.random((n_seeds, n)) < seeds).sum(axis=1)
        images = half_width_of_counts([(int(count), n) for count in right])
        half = math.hypot(images, half_width_over_seeds((100 * right / n).tolist()))
        covered += abs(right.mean() / n - truth) * 100 <= half
    assert covered / n_sets > 0.94


def printed(capsys, folder: Path, *arguments: str) -> tuple[int, list[list[str]], list[str]]:
    """Return the exit code, the rows and the lines on stderr of a table that runs nothing."""
    where = ["--no-run", "--output-dir", str(folder), "--seeds", "1", "2", "--intervals"]
    code = table.main([*where, *arguments])
    out, errors = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("|")]
    rows = [[text.strip() for text in line.split("|")[1:-1]] for line in lines]
    return code, rows[2:], errors.splitlines()


def test_cells_show_the_interval_that_all_seeds_share(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    seeds = ([True] * 6 + [False] * 4, [True] * 8 + [False] * 2)
    for seed, right in enumerate(seeds, start=1):
        train, test = runs_of(BASE2NEW, "CoOp", "emoji", seed, output_dir=tmp_path)
        leave(train, right)
        leave(test, [True] * 5 + [False] * 5)
    for run in runs_of(BASE2NEW, "ZeroshotCLIP", "emoji", output_dir=tmp_path):
        leave(run, [True] * 5 + [False] * 5, predicts=False)
    base = 196 * np.std([1] * 6 + [0.5] * 2 + [0] * 2, ddof=1) / math.sqrt(10)
    novel = 196 * math.sqrt(0.25 / 9)
    mean = propagated(
        lambda values: base_and_novel({"train_base": values[:1], "test_new": values[1:]}),
        *([70.0, 50.0], [base, novel]),
    )
    code, rows, errors = printed(capsys, tmp_path, "--methods", "CoOp", "ZeroshotCLIP")
    assert code == 0
    assert rows[0][:4] == [
        *("emoji", "CoOp", f"70.0 ± 14.1 (± {base:.1f})"),
        f"50.0 ± 0.0 (± {novel:.1f})",
    ]
    assert rows[0][4].endswith(f" (± {mean:.1f})")
    assert rows[1] == ["emoji", "ZeroshotCLIP", "50.0", "50.0", "50.0"]
    assert errors == ["no intervals: 2 of 6 runs have no predictions that can be read"]


def test_averages_over_datasets_are_of_complete_methods(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    right = {"emoji": (6, 8), "food": (5, 9)}  # of 10 base classes' pictures, by seed
    for dataset, seeds in right.items():
        for seed, count in enumerate(seeds, start=1):
            train, test = runs_of(BASE2NEW, "CoOp", dataset, seed, output_dir=tmp_path)
            leave(train, [True] * count + [False] * (10 - count))
            leave(test, [True] * 5 + [False] * 5)
    for run in runs_of(BASE2NEW, "KgCoOp", "emoji", output_dir=tmp_path):
        leave(run, [True] * 5 + [False] * 5)
    options = ("--methods", "CoOp", "KgCoOp", "--datasets", "emoji", "food")
    _, rows, _ = printed(capsys, tmp_path, *options)
    halves = [
        196 * np.std([1] * 6 + [0.5] * 2 + [0] * 2, ddof=1) / math.sqrt(10),
        196 * np.std([1] * 5 + [0.5] * 4 + [0], ddof=1) / math.sqrt(10),
    ]
    novel = 196 * math.sqrt(0.25 / 9)
    base, novel = math.hypot(*halves) / 2, math.hypot(novel, novel) / 2
    # The seeds' means over datasets are 55 and 85; harmonic means with 50 are of these.
    means = [2 * 55 * 50 / 105, 2 * 85 * 50 / 135]
    assert rows[4][:4] == [
        *("average", "CoOp", f"70.0 ± {np.std([55, 85], ddof=1):.1f} (± {base:.1f})"),
        f"50.0 ± 0.0 (± {novel:.1f})",
    ]
    spread = f"{np.mean(means):.1f} ± {np.std(means, ddof=1):.1f} (± "
    assert rows[4][4].startswith(spread)
    assert rows[5] == ["average", "KgCoOp", "-", "-", "-"]


def test_damaged_predictions_are_named_and_leave_the_accuracy(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for run in runs_of(BASE2NEW, "ZeroshotCLIP", "emoji", output_dir=tmp_path):
        leave(run, [True, False])
    (run.folder / PREDICTIONS_FILE).write_bytes(b"PK\3\4 no more")
    code, rows, errors = printed(capsys, tmp_path, "--methods", "ZeroshotCLIP")
    assert code == 1
    assert rows[0][2:5] == ["50.0 (± 98.0)", "50.0", "50.0"]
    assert len(errors) == 2 and str(run.folder / PREDICTIONS_FILE) in errors[0]
    assert errors[1] == "no intervals: 1 of 2 runs have no predictions that can be read"
