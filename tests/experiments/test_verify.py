"""``experiments verify``: result cards are written, checked and run again."""

import base64
import json
from pathlib import Path

import pytest

from configs.protocols import BASE2NEW
from experiments import verify
from experiments.runs import runs_of
from tests.experiments.finished import leave, leave_results

REPOSITORY = Path(__file__).parents[2]
CARDS = sorted((REPOSITORY / "experiments" / "cards").glob("*.json"))
RIGHT = [True] * 6 + [False] * 4
PLACE = "base2new/train_base/digits/shots_16/CoOp/vit_mini/seed1"


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def finish(tmp_path, right=RIGHT, **changes):
    """Leave the two runs of a card."""
    for run in runs_of(BASE2NEW, "CoOp", "digits", output_dir=tmp_path):
        leave(run, right)
        nll = {"nll": 10 / sum(right), **changes}
        leave_results(run, sum(right), len(right), **nll)


@pytest.fixture
def card(tmp_path, capsys):
    """Write a card of two finished runs."""
    finish(tmp_path / "out")
    path = tmp_path / "card.json"
    options = ["--datasets", "digits", "--methods", "CoOp", "--seeds", "1"]
    places = ["--root", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert verify.main([str(path), "--write", "--tolerance", "1", *places, *options]) == 0
    capsys.readouterr()
    return path


def checked(card, output, *options):
    return verify.main(
        [str(card), "--root", str(card.parent), "--output-dir", str(output), *options]
    )


def test_a_card_says_how_its_numbers_came_about(card):
    content = json.loads(card.read_text())
    assert content["command"] == (
        "python -m experiments table --datasets digits --methods CoOp --seeds 1"
    )
    for name, value in {
        **{"protocol": "base2new", "method": "CoOp", "tag": "ViT-Mini-2, fp32, split test"},
        **{"seeds": [1], "tolerance": 1, "machine": {}},  # nobody knows where they ran
    }.items():
        assert content[name] == value
    train, test = content["runs"]
    assert (train["step"], test["step"]) == ("train_base", "test_new")
    assert {**train, "config": "", "split": ""} == {
        **{"run": PLACE, "dataset": "digits"},
        **{"step": "train_base", "seed": 1, "config": "", "split": ""},
        **{"correct": 6, "total": 10, "accuracy": 60.0, "nll": 10 / 6},
        **{"right": base64.b64encode(bytes([0b11111100, 0])).decode(), "seconds": None},
    }


def test_equal_and_nearly_equal_runs_verify_a_card(card, capsys):
    assert checked(card, card.parent / "out") == 0
    out = capsys.readouterr().out
    assert out.count("| equal bits | yes") == 2
    assert out.splitlines()[-1] == "verified: 2 of 2 runs; 1 pictures of a test set may differ"
    finish(card.parent / "near", [True] * 7 + [False] * 3)
    assert checked(card, card.parent / "near") == 0
    assert "| 6 / 10 | 7 / 10 | +1         | yes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("right", "changes", "said"),
    [
        ([True] * 8 + [False] * 2, {}, "| +2         | NO"),
        ([True] * 4 + [False] * 6, {}, "| -2         | NO"),
        (RIGHT, {"OPTIM__LR": 0.5}, "other config"),
        ([*RIGHT, False], {}, "other split, total"),
    ],
)
def test_other_runs_do_not_verify_a_card(card, capsys, right, changes, said):
    finish(card.parent / "other", right, **changes)
    assert checked(card, card.parent / "other") == 1
    out = capsys.readouterr().out
    assert out.count(said) == 2 and "not verified: 0 of 2 runs" in out


def test_missing_runs_do_not_verify_a_card(card, capsys):
    assert checked(card, card.parent / "nothing") == 1
    assert capsys.readouterr().out.count("| missing    | NO") == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "expected format 1 or less, got 2"),
        ({"format": 0}, "expected format 1 or less, got 0"),
        ({"tolerance": -1}, "tolerance: expected 0 or more, got -1"),
        ({"seeds": ["a"]}, "seeds: expected those of the runs, [1], got ['a']"),
        ({"runs": (1, {"run": PLACE})}, f"runs[1].run: expected another one, got '{PLACE}'"),
        ({"runs": (1, {"correct": 11})}, "runs[1].correct: expected 0 to total 10, got 11"),
        ({"runs": (1, {"accuracy": 1e9})}, "runs[1].accuracy: expected 60.0, got 1000000000.0"),
        ({"runs": (1, {"seconds": "x"})}, "runs[1].seconds: expected a number from 0, got 'x'"),
        ({"seeds": 1}, "seeds: expected list, got 1"),
        ({"tolerance": True}, "tolerance: expected int, got True"),
        ({"runs": [{"run": "there"}]}, "runs[0].dataset: expected str, got None"),
        ({"machine": {"threads": "2"}}, "machine.threads: expected 1 or more, got '2'"),
        ({"runs": []}, "expected runs of a command 'python -m experiments table ...'"),
        ({"command": "rm -r x"}, "expected runs of a command 'python -m experiments table ...'"),
        ({"command": "python -m experiments table --seeds 2"}, "expected the runs of its command"),
        ({"command": "python -m experiments table 'output"}, "command: No closing quotation"),
        ({"command": "python -m experiments table output"}, "command: --root: expected no OUTPUT"),
        ({"command": "python -m experiments table --methods X"}, "command: argument --methods"),
        (None, "is not valid JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damaged_cards_are_one_line(card, capsys, changes, said):
    content = json.loads(card.read_text())
    if changes and isinstance(changes.get("runs"), tuple):
        i, values = changes["runs"]
        content["runs"][i] |= values
        changes = content
    card.write_text(json.dumps({**content, **changes}) if changes else card.read_text()[:-20])
    assert checked(card, card.parent / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line and str(card) in line


def test_a_card_that_cannot_be_written_is_one_line_before_any_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verify, "execute", lambda *arguments: pytest.fail("something was run"))
    for path in (tmp_path, tmp_path / "missing" / "card.json"):
        options = ["--methods", "CoOp", "--root", str(tmp_path), "--output-dir", str(tmp_path)]
        assert verify.main([str(path), "--write", *options]) == 2
        error = f"error: CARD: expected a file in a folder that exists, got '{path}'\n"
        assert capsys.readouterr().err == error


def test_cards_of_the_embedded_benchmark_can_be_read():
    assert len(CARDS) > 1
    for path in CARDS:
        content = verify.read_card(str(path))
        planned = verify.plan_of(verify.options_of(content), "data", "output")
        assert planned.runs.keys() == {run["run"] for run in content["runs"]}
        assert "AVX512" in content["machine"]["processor"]


@pytest.mark.slow
def test_the_cheapest_card_is_run_again(tmp_path, capsys):
    """Expect the same bits on the card's processor and versions, elsewhere few other pictures."""
    (path,) = (path for path in CARDS if path.stem == "linear_probe_digits")
    root, output = tmp_path / "data", tmp_path / "output"
    root.mkdir()
    places = ["--root", str(root), "--output-dir", str(output)]
    assert verify.main([str(path), "--rerun", *places]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    same = json.loads(path.read_text())["machine"] == verify.machine()
    demand = "this is the card's machine: the bits must be equal"
    assert (
        last
        == f"verified: 1 of 1 runs; {demand if same else '3 pictures of a test set may differ'}"
    )


def test_on_the_cards_machine_the_bits_must_be_equal(card, capsys, monkeypatch):
    content = json.loads(card.read_text())
    card.write_text(json.dumps({**content, "machine": {"threads": 1}}))
    monkeypatch.setattr(verify, "machine", lambda: {"threads": 1})
    monkeypatch.setattr(verify, "execute", lambda runs, threads: finish(card.parent / "again"))
    assert checked(card, card.parent / "again", "--rerun") == 0
    monkeypatch.setattr(
        verify, "execute", lambda runs, threads: finish(card.parent / "more", nll=1.6666667)
    )
    assert checked(card, card.parent / "more", "--rerun") == 1
    assert "| +0         | NO" in capsys.readouterr().out
    assert checked(card, card.parent / "more") == 0  # as finished runs, within a picture
