"""``benchmarks.cost.profile``: shares of a step's time, kept and shown."""

import re
from pathlib import Path

import pytest

import trainers.base
from benchmarks.cost import cells, profile, report

REPOSITORY = Path(__file__).parents[2]
ROW = 4  # MaPLe
measure = profile.profile


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Make a checkout of the page alone."""
    for name in (report.PROFILES, report.PLACES["cpu"].page):
        (tmp_path / name).parent.mkdir(parents=True)
    page = report.PLACES["cpu"].page
    (tmp_path / page).write_text((REPOSITORY / page).read_text("utf-8"), "utf-8")
    (tmp_path / report.PROFILES).write_text("[]")
    monkeypatch.setattr(profile, "ROOT", tmp_path)
    return tmp_path


def test_shares_add_up_and_rows_that_are_not_named_stay(checkout, monkeypatch):
    monkeypatch.setattr(profile, "profile", lambda cell: measure(cell.but(model="small")))
    assert profile.main(["--rows", str(ROW)]) == 0
    assert trainers.base.N_TEMPLATES > 1  # as before
    first = report.profiles(checkout)
    assert {record["step"] for record in first} == {cells.ROWS[ROW - 1].title}
    for record in first:
        assert sum(record["shares"].values()) == pytest.approx(1)
        assert record["shares"]["matrix products"] > 0 and record["shares"]["LayerNorm"] > 0
        assert 0 < record["flops"] / record["rate"] < record["seconds"]
    measured = {key: first[0][key] for key in ("seconds", "flops", "rate", "shares")}
    monkeypatch.setattr(profile, "profile", lambda cell: measured)
    assert profile.main(["--rows", "1"]) == 0
    kept = report.profiles(checkout)
    assert kept[len(kept) - len(first) :] == first and len(kept) == 2 * len(first)
    page = (checkout / report.PLACES["cpu"].page).read_text("utf-8")
    assert report.profile_table(kept) in page


def test_the_page_shows_what_is_kept():
    text = (REPOSITORY / report.PLACES["cpu"].page).read_text("utf-8")
    (shown,) = re.findall(r"<!-- profile -->\n(.*)\n<!-- /profile -->", text, re.S)
    assert shown == report.profile_table(report.profiles(REPOSITORY))
