"""``experiments evidence``: cards stand for runs, and the page shows what they have."""

import json
import shutil
from pathlib import Path

import pytest

import train
from configs.protocols import BASE2NEW, CROSS_DATASET
from dassl.config import to_dict
from dassl.config.merge import flat
from experiments import evidence, result_cards, table, verify
from experiments.found import digest, settings_of
from experiments.result_cards import Part, Row, units_of
from experiments.runs import runs_of
from tests.experiments.finished import leave, leave_results

REPOSITORY = Path(__file__).parents[2]
METHODS = ("CoOp", "HiCroPL")
SETS = ("digits", "shapes")
TOTAL = 40


@pytest.fixture(autouse=True)
def page(tmp_path, monkeypatch):
    """Make a page, and a part of two methods on two datasets with two seeds."""
    monkeypatch.chdir(REPOSITORY)
    part = Part(BASE2NEW, SETS, tuple(Row(name, 2) for name in METHODS))
    monkeypatch.setattr(evidence, "parts", lambda: {"base2new": part})
    monkeypatch.setattr(evidence, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(result_cards, "CARDS", tmp_path / "cards")
    names = ("evidence:total", "evidence:base2new")
    marks = [f"<!-- {name} -->\nold\n<!-- /{name} -->" for name in names]
    evidence.PAGE.write_text("\n".join(["before", *marks, "after\n"]))
    return evidence.PAGE


def finish(output, *seeds, methods=METHODS, **changes):
    """Leave finished runs whose right answers differ in method, dataset, step and seed."""
    for i, method in enumerate(methods):
        for j, dataset in enumerate(("digits", "shapes")):
            for seed in seeds:
                for k, run in enumerate(
                    runs_of(BASE2NEW, method, dataset, seed, output_dir=output)
                ):
                    n = 10 + 7 * i + 3 * j + seed + 2 * k
                    leave(run, [True] * n + [False] * (TOTAL - n))
                    leave_results(run, n, TOTAL, nll=1.5, wall_time_s=1800, **changes)


def called(tmp_path, *options):
    places = ["--root", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    return evidence.main([*places, *options])


def rows(text, name):
    """Return the cells of the rows of a method."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines]


def test_the_page_shows_what_table_prints_from_the_runs(tmp_path, page, capsys):
    finish(tmp_path / "out", 1, 2)
    assert called(tmp_path, "--no-run") == 0
    capsys.readouterr()
    options = ["--datasets", "digits", "shapes", "--methods", *METHODS, "--seeds", "1", "2"]
    places = ["--root", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert table.main([*options, *places, "--no-run", "--intervals"]) == 0
    printed = capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    for i, dataset in enumerate(("average", "digits", "shapes")):
        lines = [line for line in printed.splitlines() if line.startswith(f"| {dataset} ")]
        for line, method in zip(lines, METHODS, strict=True):
            _, name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
            # the differences from HiCroPL, which stand behind the averages, have a row of CoOp
            own = [row for row in rows(text, method) if not row[1].startswith("+")][i]
            assert (name, ["2", *cells]) == (method, own)
    assert "16 runs, 8.0 hours of one process in all." in text
    assert "All parts so far: 16 of the 16 planned runs, 8.0 hours of one process." in text
    assert "No results yet" not in text


def test_differences_are_those_of_compare(tmp_path, page, capsys):
    from experiments import compare

    finish(tmp_path / "out", 1, 2)
    assert called(tmp_path, "--no-run") == 0
    capsys.readouterr()
    options = ["HiCroPL", "CoOp", "--datasets", "digits", "shapes", "--seeds", "1", "2"]
    places = ["--root", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert compare.main([*options, *places]) == 0
    (expected,) = rows(capsys.readouterr().out, "average")
    (found,) = (row for row in rows(page.read_text(), "CoOp") if row[1].startswith("+"))
    assert found == ["2", *expected]


def test_a_difference_is_of_the_seeds_that_both_methods_have(tmp_path, page, monkeypatch):
    few = Row("CoOp", 1), Row("KgCoOp", 2), Row("HiCroPL", 2)
    part = Part(BASE2NEW, ("digits", "shapes"), few)
    monkeypatch.setattr(evidence, "parts", lambda: {"base2new": part})
    finish(tmp_path / "out", 1, 2, methods=("CoOp", "KgCoOp", "HiCroPL"))
    assert called(tmp_path, "--no-run") == 0
    found = {
        name: row
        for name in ("CoOp", "KgCoOp")
        for row in rows(page.read_text(), name)
        if row[1].startswith("+")
    }
    # with each seed HiCroPL is right about 14 pictures more than CoOp, 7 more than KgCoOp, of 40
    assert [row[0] for row in found.values()] == ["1", "2"]
    assert found["CoOp"][1].startswith("+35.00") and found["KgCoOp"][1].startswith("+17.50")


def test_cards_stand_for_runs_that_are_elsewhere(tmp_path, page, monkeypatch):
    finish(tmp_path / "out", 1, 2)
    assert called(tmp_path, "--no-run") == 0
    text = page.read_text()
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(evidence, "sweep", None)  # nothing is run
    assert called(tmp_path) == 0
    assert page.read_text() == text


def test_only_the_seeds_that_a_card_lacks_are_run_and_added(tmp_path, page, monkeypatch):
    finish(tmp_path / "out", 1)
    assert called(tmp_path, "--no-run") == 0
    shutil.rmtree(tmp_path / "out")
    asked = []

    def sweep(runs, executor):
        asked.extend(runs)
        if len(asked) == 4:  # of the first dataset
            finish(tmp_path / "out", 2)
        return 0

    monkeypatch.setattr(evidence, "sweep", sweep)
    assert called(tmp_path, "--jobs", "2") == 0
    assert {run.seed for run in asked} == {2} and len(asked) == 8
    card = json.loads((result_cards.CARDS / "base2new" / "digits-CoOp.json").read_text())
    assert card["seeds"] == [1, 2] and card["command"].endswith("--seeds 1 2")
    assert [run["seed"] for run in card["runs"]] == [1, 1, 2, 2]
    assert card["machine"] == {}  # the first seed ran nobody knows where
    assert [row[0] for row in rows(page.read_text(), "CoOp")] == ["2"] * 4


def test_a_card_is_verified_by_the_runs_it_was_made_from(tmp_path, capsys):
    finish(tmp_path / "out", 1, 2)
    assert called(tmp_path, "--no-run") == 0
    path = result_cards.CARDS / "base2new" / "shapes-HiCroPL.json"
    places = ["--root", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert verify.main([str(path), *places]) == 0
    assert "verified: 4 of 4 runs" in capsys.readouterr().out


def test_a_seed_of_which_a_run_is_missing_is_not_kept(tmp_path, page):
    finish(tmp_path / "out", 1, 2)
    for run in runs_of(BASE2NEW, "CoOp", "digits", 2, output_dir=tmp_path / "out")[1:]:
        shutil.rmtree(run.folder)
    assert called(tmp_path, "--no-run") == 0
    text = page.read_text()
    difference, digits, shapes = rows(text, "CoOp")  # no average
    assert difference[0] == digits[0] == "1" and shapes[0] == "2"
    assert "where each has the same seeds. There is none for CoOp (Base, Novel)." in text


def test_methods_without_cards_are_named(tmp_path, page):
    finish(tmp_path / "out", 1, methods=("CoOp",))
    assert called(tmp_path, "--no-run") == 0
    assert "No results yet: HiCroPL." in page.read_text()
    assert "HiCroPL minus" not in page.read_text()


def test_without_cards_the_page_says_so(tmp_path, page):
    assert called(tmp_path, "--no-run") == 0
    assert "No results yet.\n" in page.read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "fp16"}, "tag ViT-Mini-2, fp32, split test, got ViT-Mini-2, fp16"),
        ({"OPTIM__LR": 0.5}, "the config of base2new/train_base/digits/shots_16/CoOp/vit_mini/"),
    ],
)
def test_runs_with_other_settings_do_not_extend_a_card(tmp_path, page, capsys, changes, said):
    finish(tmp_path / "out", 1)
    assert called(tmp_path, "--no-run") == 0
    finish(tmp_path / "out", 2, methods=("CoOp",), **changes)
    finish(tmp_path / "out", 2, methods=("HiCroPL",))
    capsys.readouterr()
    assert called(tmp_path, "--no-run") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [f"{name}-CoOp.json: expected " in line for name, line in zip(SETS, lines, strict=True)]
    assert said in lines[0]
    text = page.read_text()  # the other method's cards are extended all the same
    assert [row[0] for row in rows(text, "CoOp")] == ["1"] * 4
    assert [row[0] for row in rows(text, "HiCroPL")] == ["2"] * 3


def test_damaged_cards_are_named_before_anything_is_run(tmp_path, page, capsys, monkeypatch):
    finish(tmp_path / "out", 1)
    assert called(tmp_path, "--no-run") == 0
    (result_cards.CARDS / "base2new" / "shapes-HiCroPL.json").write_text("{")
    monkeypatch.setattr(evidence, "sweep", lambda *_: pytest.fail("something was run"))
    capsys.readouterr()
    assert called(tmp_path) == 2
    assert "shapes-HiCroPL.json' is not valid JSON" in capsys.readouterr().err


def test_damaged_bits_and_pages_are_one_line(tmp_path, page, capsys):
    finish(tmp_path / "out", 1)
    assert called(tmp_path, "--no-run") == 0
    capsys.readouterr()
    path = result_cards.CARDS / "base2new" / "digits-CoOp.json"
    card = json.loads(path.read_text())
    for wrong in ("AAAA", 7, "?", card["runs"][1]["right"]):
        card["runs"][0]["right"] = wrong
        path.write_text(json.dumps(card))
        assert called(tmp_path, "--no-run") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("right: expected bits of 11 in 40 images")
    path.unlink()
    page.write_text("no marks")
    assert called(tmp_path, "--no-run") == 2
    assert (
        "page.md: expected one <!-- evidence:base2new --> and below it one"
        in capsys.readouterr().err
    )


def test_targets_of_a_transfer_are_columns(tmp_path, page, monkeypatch):
    part = Part(CROSS_DATASET, ("emoji",), tuple(Row(name, 1) for name in METHODS))
    monkeypatch.setattr(evidence, "parts", lambda: {"cross_dataset": part})
    page.write_text(page.read_text().replace("base2new", "cross_dataset"))
    for i, method in enumerate(METHODS):
        for run in runs_of(CROSS_DATASET, method, "emoji", 1, output_dir=tmp_path / "out"):
            leave(run, [True] * (20 + 5 * i) + [False] * (20 - 5 * i))
            leave_results(run, 20 + 5 * i, TOTAL, nll=1.0, wall_time_s=1)
    assert called(tmp_path, "--no-run") == 0
    text = page.read_text()
    first = next(line for line in text.splitlines() if line.startswith("| Method"))
    assert [cell.strip() for cell in first.split("|")[1:-1]] == [
        *("Method", "Seeds", "emoji", "animals", "food", "faces", "shapes", "glyphs", "digits"),
        "Average",
    ]
    assert rows(text, "CoOp")[1][1].startswith("+12.50")


def test_every_part_is_planned_and_the_cards_in_the_repository_are_of_it(monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(REPOSITORY)
    planned, known = {}, {}
    for part in evidence.parts().values():
        for dataset in part.datasets:
            for unit in units_of(part, dataset, ["--root", "data", "--output-dir", "output"]):
                planned.setdefault(unit.path, set()).update(*unit.runs().values())
                known[unit.path] = {record["run"] for record in unit.card().get("runs", [])}
    for path, runs in known.items():
        assert runs <= planned[path], path
    assert set(result_cards.CARDS.glob("*/*")) <= planned.keys()


@pytest.mark.slow
def test_the_pages_show_the_cards_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(REPOSITORY)
    for name in ("PAGE", "ABLATIONS_PAGE"):
        page = getattr(evidence, name)
        monkeypatch.setattr(evidence, name, tmp_path / page.name)
        shutil.copy(page, tmp_path)
    assert called(tmp_path, "--no-run") == 0
    for page in (evidence.PAGE, evidence.ABLATIONS_PAGE):
        assert page.read_text() == (REPOSITORY / "docs" / page.name).read_text()


@pytest.mark.slow
def test_the_cards_in_the_repository_are_of_todays_settings(monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(REPOSITORY)
    places = ["--root", "data", "--output-dir", "output"]
    for part in evidence.parts().values():
        for unit in (u for dataset in part.datasets for u in units_of(part, dataset, places)):
            runs = unit.runs()[1]  # other seeds have the same settings
            for record in (r for r in unit.card().get("runs", []) if r["run"] in runs):
                parsed = train.build_parser().parse_args(runs[record["run"]].arguments)
                settings = settings_of(flat(to_dict(train.setup_cfg(parsed))), unit.row.method)
                assert digest(settings) == record["config"], record["run"]


def test_ablations_are_rows_of_the_papers_tables(tmp_path, monkeypatch):
    options = ("TRAINER.HICROPL.MAPPER_UPDATE", "in_place")
    rows_of_paper = (Row("HiCroPL", 1), Row("HiCroPL", 1, options))
    part = Part(BASE2NEW, (evidence.OF_ABLATIONS,), rows_of_paper)
    monkeypatch.setattr(evidence, "parts", lambda: {evidence.ABLATIONS: part})
    monkeypatch.setattr(evidence, "MEASURED", ("hicropl_update",))
    monkeypatch.setattr(evidence, "ABLATIONS_PAGE", tmp_path / "ablations.md")
    evidence.ABLATIONS_PAGE.write_text(
        "<!-- evidence:hicropl_update -->\n<!-- /evidence:hicropl_update -->\n"
    )
    for i, row in enumerate(rows_of_paper):
        for run in runs_of(
            *(BASE2NEW, row.method, evidence.OF_ABLATIONS),
            overrides=row.overrides,
            output_dir=tmp_path / "out",
        ):
            leave(run, [True] * (30 - i) + [False] * (10 + i))
            leave_results(run, 30 - i, TOTAL, nll=1.0)
    assert called(tmp_path, "--no-run") == 0
    text = evidence.ABLATIONS_PAGE.read_text()
    cells = [row[:3] for name in ("the flow", "copied in") for row in rows(text, name)]
    assert cells == [["75.0"] * 3, ["72.5"] * 3], text
    names = sorted(path.name for path in result_cards.CARDS.glob("*/*"))
    assert names == ["shapes-HiCroPL,MAPPER_UPDATE=in_place.json", "shapes-HiCroPL.json"]


def test_a_card_that_lacks_one_run_of_a_seed_gets_each_run_once(tmp_path):
    finish(tmp_path / "out", 1, 2)
    assert called(tmp_path, "--no-run") == 0
    path = result_cards.CARDS / "base2new" / "digits-CoOp.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "runs": card["runs"][1:]}))
    assert called(tmp_path, "--no-run") == 0
    assert json.loads(path.read_text())["runs"] == card["runs"]
