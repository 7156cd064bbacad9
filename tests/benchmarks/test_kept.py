"""``benchmarks.cost.profile`` and ``limited``: what is kept apart from the cost table."""

import functools
import re
from pathlib import Path

import pytest

import trainers.base
from benchmarks.cost import cells, limited, profile, report

REPOSITORY = Path(__file__).parents[2]
ROW = 4  # MaPLe
measure = profile.profile


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Make a checkout of the page alone."""
    page, results = report.PLACES["cpu"].page, tmp_path / "benchmarks/results"
    (tmp_path / page).parent.mkdir()
    (tmp_path / page).write_text((REPOSITORY / page).read_text("utf-8"), "utf-8")
    results.mkdir(parents=True)
    for name in report.TABLES:
        (results / f"{name}.json").write_text("[]")
    monkeypatch.setattr(profile, "ROOT", tmp_path)
    monkeypatch.setattr(limited, "ROOT", tmp_path)
    return tmp_path


def test_shares_add_up_and_rows_that_are_not_named_stay(checkout, monkeypatch):
    monkeypatch.setattr(profile, "profile", lambda cell: measure(cell.but(model="small")))
    assert profile.main(["--rows", str(ROW)]) == 0
    assert trainers.base.N_TEMPLATES > 1  # as before
    first = report.kept(checkout, "profile")
    assert {record["step"] for record in first} == {cells.ROWS[ROW - 1].title}
    for record in first:
        assert sum(record["shares"].values()) == pytest.approx(1)
        assert record["shares"]["matrix products"] > 0 and record["shares"]["LayerNorm"] > 0
        assert 0 < record["flops"] / record["rate"] < record["seconds"]
    measured = {key: first[0][key] for key in ("seconds", "flops", "rate", "shares")}
    monkeypatch.setattr(profile, "profile", lambda cell: measured)
    assert profile.main(["--rows", "1"]) == 0
    kept = report.kept(checkout, "profile")
    assert kept[len(kept) - len(first) :] == first and len(kept) == 2 * len(first)
    page = (checkout / report.PLACES["cpu"].page).read_text("utf-8")
    assert report.profile_table(kept) in page


def test_what_fits_is_shown_with_what_it_took(checkout, monkeypatch):
    monkeypatch.setattr(limited, "CLASSES", 3)
    monkeypatch.setattr(limited, "BATCHES", {"CoOp": 2})
    monkeypatch.setattr(limited, "Cell", functools.partial(cells.Cell, model="small"))
    assert limited.main(["--methods", "CoOp", "ZeroshotCLIP"]) == 0
    (record,) = report.kept(checkout, "limited")  # without the method that takes no steps
    assert record["cell"]["method"] == "CoOp" and record["batch"] == 2
    assert 0 < record["step"]["peak"] < record["resident"] < record["free"]
    monkeypatch.setattr(limited, "free_bytes", lambda device: 2**20)
    assert limited.main(["--methods", "MaPLe"]) == 0
    kept = report.kept(checkout, "limited")
    assert kept[0] == record and kept[1]["failed"] == "out of memory"
    row = report.limited_table(kept).splitlines()[2]
    taken = (record["resident"] + record["step"]["peak"]) / 2**30
    assert row == f"| CoOp | 3 | 2 | {record['free'] / 2**30:.2f} | {taken:.2f} |"
    page = (checkout / report.PLACES["cpu"].page).read_text("utf-8")
    assert report.limited_table(kept) in page


@pytest.mark.parametrize("name", report.TABLES)
def test_the_page_shows_what_is_kept(name):
    text = (REPOSITORY / report.PLACES["cpu"].page).read_text("utf-8")
    (shown,) = re.findall(rf"<!-- {name} -->\n(.*)\n<!-- /{name} -->", text, re.S)
    assert shown == report.TABLES[name](report.kept(REPOSITORY, name))
