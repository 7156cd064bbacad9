"""benchmarks/vit_mini/examine.py: each gate on plain numbers, and what it reads from runs."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.vit_mini import examine
from clip.tokens import tokenizer
from dassl.errors import UserError
from dassl.evaluation import read_predictions
from experiments.published import AVERAGES, Accuracies
from experiments.scores import Scores
from tests.experiments.finished import leave
from tests.trainers.tiny import tiny_clip

ZERO = Accuracies(50.0, 60.0, 54.5)


@pytest.mark.parametrize(
    ("gate", "numbers", "passes"),
    [
        (examine.leaves_room, (45.0, 80.0), True),
        (examine.leaves_room, (44.9, 60.0), False),
        (examine.leaves_room, (60.0, 80.1), False),
        (examine.costs_novel, (59.9, 60.0), True),
        (examine.costs_novel, (60.0, 60.0), False),
        (examine.fits_base, (3.0, 2.9), True),
        (examine.fits_base, (2.9, 0.1), False),
        (examine.fits_base, (4.0, 4.0), False),
        (examine.is_beyond_color, (ZERO, Accuracies(52.9, 50, 51), Accuracies(59, 50, 54)), True),
        (examine.is_beyond_color, (ZERO, Accuracies(53, 50, 51), Accuracies(59, 50, 54)), False),
        # where IVLP gains nothing, a control that loses more explains nothing
        (examine.is_beyond_color, (ZERO, Accuracies(40, 50, 44), Accuracies(49, 50, 49)), False),
        (examine.has_pictures, (1.5, 1.4, False), True),
        (examine.has_pictures, (1.4, 1.6, False), False),
        (examine.needs_context, (2.0, 1.9), True),
        (examine.needs_context, (1.9, 0.5), False),
        (examine.needs_context, (2.5, 2.5), False),
        (examine.understands, (60.0, 30.0, 9.9), True),
        (examine.understands, (60.0, 29.9, 5.0), False),
        (examine.understands, (60.0, 30.0, 10.0), False),
    ],
)
def test_a_gate_has_its_bounds(gate, numbers, passes):
    assert gate(*numbers).verdict == ("pass" if passes else "FAIL")


def test_figures_say_what_was_measured():
    assert examine.has_pictures(4.9, 5.1, True).verdict == "exempt"
    assert examine.needs_context(3.25, 1.0).figure == "-3.2 (± 1.0)"
    assert examine.needs_context(-1.0, 0.5).figure == "+1.0 (± 0.5)"
    found = examine.is_beyond_color(ZERO, Accuracies(51, 61, 55.5), Accuracies(70, 62, 65.8))
    assert found.figure == "base: control +1.0, IVLP +20.0; harmonic mean: +1.0, +11.3"


def words_of(count: int) -> list[str]:
    """Name words of one token each."""
    words = [w for w in ("cat", "dog", "lion", "puma", "zebra", "house") if len(token(w)) == 1]
    return words[:count]


def token(word: str) -> list[int]:
    return tokenizer().encode(word)


def test_the_nearest_words_are_those_of_the_smallest_angle():
    model = tiny_clip(layers=1)
    near, far, other, unknown = words_of(4)
    table = model.token_embedding.weight.data
    table[token(unknown) + token(near) + token(far) + token(other)] = 0.0
    table[token(unknown)[0], :2] = torch.tensor([2.0, 0.0])
    table[token(near)[0], :2] = torch.tensor([1.0, 1.0])
    table[token(far)[0], :2] = torch.tensor([-3.0, 0.0])
    known = [far, near]
    found = examine.nearest_words(model, [unknown, other], known, count=2)
    assert [name for name, _ in found[unknown]] == [near, far]
    assert [c for _, c in found[unknown]] == pytest.approx([math.sqrt(0.5), -1.0])
    assert found[other] == []  # its embedding is zero


class Pictures:
    """Stands in for a half: 4 classes of 5 pictures, recognized as the test says."""

    def __init__(self, names: str, places: dict[str, list[int]]) -> None:
        self.class_names = list(names)
        self.pictures = [f"{name}{i}" for name in names for i in range(5)]
        self.labels = torch.arange(4).repeat_interleave(5)
        self.places = places
        self.model = SimpleNamespace(clip=tiny_clip(layers=1))

    def right(self, template="", renamed=None):
        known = self.places["random" if template else "renamed" if renamed else "usual"]
        return {picture: float(int(picture[1]) in known) for picture in self.pictures}

    of_classes = examine.Half.of_classes


def test_gates_of_text_compare_the_same_pictures():
    places = {"usual": [0, 1, 2, 3], "random": [0], "renamed": [0, 1, 2]}
    halves = [Pictures("abcd", places), Pictures("efgh", places)]
    (context, names), lines = examine.gates_of_text("some", halves, {})
    assert context.verdict == "pass" and context.figure.startswith("-60.0 (± ")
    assert names.verdict == "-" and lines == []
    synonyms = {"a": "cat", "g": "dog"}
    (_, names), lines = examine.gates_of_text("some", halves, synonyms)
    assert names.figure == "synonym 60.0, name 80.0, chance 25.0" and names.verdict == "FAIL"
    assert [line.split(":")[0] for line in lines] == ["- cat", "- dog"]
    with pytest.raises(UserError, match="SYNONYMS: expected class names of some, got 'z'"):
        examine.gates_of_text("some", halves, {"z": "cat"})


def arguments(folder: Path, *seeds: int) -> argparse.Namespace:
    where = ["--output-dir", str(folder), "--datasets", "shapes", "--seeds", *map(str, seeds)]
    return examine.read_arguments(where)


def finish_all(folder: Path, right: dict[str, tuple[int, int]], seeds: tuple[int, ...]) -> None:
    """Leave runs of 10 base and 10 novel pictures, of which the first so many are right."""
    for method, counts in right.items():
        for job in examine.jobs_of("shapes", method, arguments(folder, *seeds)):
            for run, count in zip(job.runs, counts, strict=True):
                leave(run, [i < count for i in range(10)])


RIGHT = {"ZeroshotCLIP": (5, 6), examine.CONTROL: (6, 6), "CoOp": (9, 5), "KgCoOp": (7, 6)}


def test_gates_of_runs_read_results_and_predictions(tmp_path):
    finish_all(tmp_path, {**RIGHT, "IVLP": (9, 7)}, (1, 2))
    jobs = {m: examine.jobs_of("shapes", m, arguments(tmp_path, 1, 2)) for m in examine.METHODS}
    assert [len(jobs[method]) for method in examine.METHODS] == [1, 2, 2, 2, 2]
    gates = examine.gates_of_runs("shapes", jobs, Scores())
    difference = 196 * np.std([1] * 4 + [0] * 6, ddof=1) / math.sqrt(10)
    assert [(gate.figure, gate.verdict) for gate in gates[:4]] == [
        ("base 50.0, novel 60.0", "pass"),
        ("CoOp 50.0, zero-shot 60.0", "pass"),
        (f"+40.0 (± {difference:.1f})", "pass"),
        ("base: control +10.0, IVLP +40.0; harmonic mean: +5.5, +24.2", "pass"),
    ]
    assert gates[4].verdict == "FAIL"  # of ten pictures
    assert examine.gates_of_runs("digits", jobs, Scores())[4].verdict == "exempt"
    (jobs["IVLP"][1].runs[1].folder / "results.json").write_text("damaged")
    (gate,) = examine.gates_of_runs("shapes", jobs, Scores())
    assert gate.verdict == "not measured"


def test_correlations_are_those_of_base_and_novel_and_of_ranks():
    found = {
        "ZeroshotCLIP": Accuracies(50, 60, 54.5),
        "CoOp": Accuracies(60, 50, 54.4),
        "IVLP": Accuracies(70, 40, 50.9),  # which the papers' table does not have
        "HiCroPL": Accuracies(80, 30, 43.6),
    }
    # the papers rank HiCroPL first and CoOp last; here it is CLIP, CoOp, HiCroPL
    assert examine.correlations(found) == ("4", "-1.00", "3", "-0.50")
    assert examine.correlations({"CoOp": ZERO, "IVLP": ZERO}) == ("2", "-", "1", "-")
    four = ("ZeroshotCLIP", "CoOp", "CoCoOp", "KgCoOp")
    base, novel = ([AVERAGES[name][i] for name in four] for i in (0, 1))
    expected = f"{np.corrcoef(base, novel)[0, 1]:.2f}"
    assert examine.correlations({name: AVERAGES[name] for name in four})[1] == expected


def test_the_report_takes_what_has_finished_without_the_control(tmp_path):
    finish_all(tmp_path, {**RIGHT, "HiCroPL": (9, 9)}, (1,))
    rows = examine.report(arguments(tmp_path, 1, 2)).splitlines()
    cells = [cell.strip() for cell in rows[2].split("|")[1:-1]]
    r = np.corrcoef([5, 9, 7, 9], [6, 5, 6, 9])[0, 1]
    # CoOp, CLIP, KgCoOp, HiCroPL in the papers, and here: harmonic means 64, 55, 65 and 90
    assert cells == ["shapes", "4", f"{r:.2f}", "4", "0.80"]


@pytest.mark.parametrize("method", AVERAGES)
def test_published_harmonic_means_follow_from_base_and_novel(method):
    base, novel, mean = AVERAGES[method]
    # papers that print another
    as_printed = {"HISF": 80.49, "MetaPrompt": 79.36, "ProGrad": 76.17}
    assert 2 * base * novel / (base + novel) == pytest.approx(
        as_printed.get(method, mean), abs=0.00501
    )


@pytest.mark.slow
def test_the_command_measures_a_dataset_and_repeats_no_run(tmp_path, capsys):
    where = ["--datasets", "digits", "--seeds", "1", "--output-dir", str(tmp_path / "out")]
    where += ["--root", str(tmp_path / "data"), "--jobs", "1"]
    for method in examine.METHODS[1:]:  # zero-shot CLIP alone runs
        for job in examine.jobs_of("digits", method, examine.read_arguments(where)):
            for run in job.runs:
                leave(run, [True] * 9 + [False])
    # whose predictions are not of the dataset's pictures
    assert examine.main(where, {"digits": {"seven": "septet"}}) == 1
    out = capsys.readouterr().out
    assert "or of other pictures" in out and "- septet: " in out
    folder = tmp_path / "out/ZeroshotCLIP/vit_mini/digits_base"
    accuracy = json.loads((folder / "results.json").read_text())["accuracy"]
    assert f"| ZeroshotCLIP     | {accuracy:.1f} (± " in out
    run = examine.jobs_of("digits", "ZeroshotCLIP", examine.read_arguments(where))[0].runs[0]
    found = read_predictions(str(folder / "predictions.npz"))
    right = examine.Half(run).right()
    assert list(right.values()) == (found.top_indices[:, 0] == found.labels).tolist()
    assert [Path(path).name for path in right] == [Path(path).name for path in found.paths]
