"""The tables of docs/performance.md are those of the stored measurements."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from benchmarks.cost import cells, report
from benchmarks.cost.cells import Cell

ROOT = Path(__file__).parents[2]
GIB = 2**30
MACHINE = {
    "device": "cpu",
    "cpu": "Model X",
    "cores": 2,
    "low precision": ["avx512_bf16"],
    "memory": 16 * GIB,
    "threads": 2,
    "torch": "2.9",
    "system": "Linux",
}


def record(cell: Cell, seconds: float, gib: float = 1.0, **values):
    """Make the record of a cell with batches of 4 that reaches half of 100 GFLOP/s."""
    found = {
        "seconds": seconds,
        "host_seconds": seconds,
        "batch_seconds": seconds,
        "class_seconds": 0.0,
        "flops": 0.5e11 * seconds,
        "peak": gib * GIB,
    }
    return {
        "cell": dataclasses.asdict(cell),
        "failed": "",
        "learned": 1000,
        "batch": 4,
        "test_batch": 32,
        "no_step": "",
        "left_out": [],
        "computes_in": "float32",
        "rate": 1e11,
        "code": "abc",
        "date": "2026-11-26",
        **dict.fromkeys(cell.phases, found),
        **values,
    }


def results(*records):
    about = {"machine": MACHINE, "model": "ViT-B/16", "command": "python -m benchmarks.cost"}
    return {**about, "records": [*records]}


def row_of(table: str, *start: str) -> list[str]:
    """Find the one row of a Markdown table whose first columns are these."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    (found,) = [row for row in rows if row[: len(start)] == list(start)]
    return found


@pytest.mark.parametrize("kind", report.PLACES)
def test_a_page_shows_the_stored_measurements(kind):
    place = report.PLACES[kind]
    text = (ROOT / place.page).read_text(encoding="utf-8")
    made = report.tables(report.stored(ROOT, place))
    assert report.page(text, made) == text
    assert text.count("<!-- cost:") == text.count("<!-- /cost:") > 1


@pytest.mark.parametrize(("kind", "device"), [("cpu", "cpu"), ("gpu", "NVIDIA X")])
def test_a_report_keeps_the_measurements_and_shows_them(kind, device, tmp_path):
    (tmp_path / "docs").mkdir()
    place = report.PLACES[kind]
    text = (ROOT / place.page).read_text(encoding="utf-8")
    (tmp_path / place.page).write_text(text, encoding="utf-8")
    measured = results(record(Cell("CoOp", 50), 2), record(Cell("CoOp", 100), 3))
    measured["machine"] = MACHINE | {"device": device}
    report.store(measured, tmp_path)
    assert report.stored(tmp_path, place) == json.loads(json.dumps(measured))
    made = (tmp_path / place.page).read_text(encoding="utf-8")
    shown = re.findall(r"<!-- cost:(\w+) -->", text)
    assert {"machine", "overview", "variants"} <= set(shown)
    for name in shown:
        assert report.tables(measured)[name] in made
    assert "Not measured yet: `" not in made
    assert made.count("<!-- cost:") == text.count("<!-- cost:")
    assert "<svg" in (tmp_path / place.plot).read_text(encoding="utf-8")


def test_measurements_of_several_dates_and_codes_are_said_to_be():
    records = [record(Cell("CoOp", k), 1, date=f"2026-11-{20 + k}") for k in range(3)]
    assert "code abc.\n" in report.about(results(*records))
    records[1]["code"] = "def"
    made = report.about(results(*records))
    assert "code abc (2 of 3 measurements), def (1 of 3 measurements).\n" in made
    assert "Measured 2026-11-20 to 2026-11-22 by" in made


def test_variants_are_compared_with_the_floor_of_the_plain_step():
    cells_ = cells.variant_cells("MaPLe", 4, "bf16", has_graphs=True)
    steps = [record(cell, n) for cell, n in zip(cells_, (0.4, 0.3, 0.2, 0.1), strict=True)]
    steps = [r | {"cell": json.loads(json.dumps(r["cell"]))} for r in steps]
    steps[-1]["step"] = {**steps[-1]["step"], "host_seconds": 0.05, "flops": 0}
    found = results(*steps)
    assert row_of(report.tables(found)["variants"], "MaPLe 4 x 50")[2:] == [
        "400 ms (2.0)",
        "300 ms (1.5)",
    ]
    found["machine"] = MACHINE | {"device": "NVIDIA X"}
    assert row_of(report.tables(found)["variants"], "MaPLe 4 x 50")[2:] == [
        "400 ms (2.0, 100%)",
        "300 ms (1.5, 100%)",
        "200 ms (1.0, 100%)",
        "100 ms (0.5, 50%)",
    ]


def test_a_step_as_a_cuda_graph_stands_beside_the_step_on_a_gpu():
    graph = record(cells.graph_cell("MaPLe", 4, "fp32"), 1.5)
    found = results(record(Cell("MaPLe", 50), 2), graph, record(Cell("CoOp", 50), 2))
    found["machine"] = MACHINE | {"device": "NVIDIA X"}
    made = report.tables(found)
    assert row_of(made["overview"], "MaPLe", "fp32")[-1] == "1.5 (1.5x)"  # 100 GFLOP/s, 100 GFLOP
    assert row_of(made["overview"], "CoOp", "fp32")[-1] == "–"
    assert row_of(made["step"], "MaPLe", "fp32")[2] == "2"


def test_the_plain_reference_is_extrapolated_by_its_line_and_marked():
    plain = [Cell("MaPLe", k, path="plain") for k in (10, 50, 100)]
    ours = [Cell("MaPLe", k) for k in (10, 100, 1000)]
    records = [record(cell, 1 + 0.1 * cell.classes, 0.01 * cell.classes) for cell in plain]
    records += [record(cell, 1 + 0.01 * cell.classes) for cell in ours]
    made = report.tables(results(*records))
    row = row_of(made["step"], "MaPLe", "plain")
    assert row[2:6] == ["2", "6", "11", "101*"]
    assert row[6] == "1 s + 100.0 ms a class"
    assert row_of(made["step"], "MaPLe", "fp32")[2:6] == ["1.1", report.NOTHING, "2", "11"]
    assert row_of(made["memory"], "MaPLe", "plain")[5] == "10.00*"


def test_what_would_not_fit_is_out_of_memory():
    plain = [record(Cell("CoOp", k, path="plain"), k, 0.05 * k) for k in (10, 100)]
    made = report.tables(results(*plain, record(Cell("CoOp", 1000), 1)))
    assert row_of(made["step"], "CoOp", "plain")[4] == "out of memory (50 GiB*)"
    failed = record(Cell("CoOp", 1000, "bf16"), 1) | {"failed": "out of memory"}
    del failed["step"], failed["evaluation"]
    made = report.tables(results(*plain, failed))
    assert row_of(made["step"], "CoOp", "bf16")[4] == "out of memory"


@pytest.mark.parametrize(
    ("slope", "shown"), [(0.002, "1 s + 2.0 ms"), (-0.002, "1 s - 2.0 ms"), (-1e-6, "1 s + 0.0 ms")]
)
def test_growth_says_what_each_class_adds_or_saves(slope, shown):
    records = [record(Cell("CoOp", k), 1 + slope * k) for k in (50, 100)]
    assert row_of(report.tables(results(*records))["step"], "CoOp")[-1] == f"{shown} a class"


def test_ratios_are_plain_over_ours_and_compared_with_their_goals():
    row = next(row for row in cells.ROWS if row.title == "MaPLe, batch 4, 50 classes")
    fp32, low, plain = row.cells("bf16")
    fast = record(low, 1, computes_in="bfloat16", rate=2e11)
    made = report.tables(results(record(fp32, 2), fast, record(plain, 5)))["ratios"]
    assert row_of(made, row.title)[1:] == [
        *("5", "2", "3x", "2.50x", "2.50x", "no"),  # FLOPs are in proportion to seconds
        *("1", "7x", "5.00x", "10.00x", "no"),
    ]
    made = report.tables(results(record(fp32, 1), fast, record(plain, 5)))["ratios"]
    assert row_of(made, row.title)[2:7] == ["1", "3x", "5.00x", "5.00x", "yes"]


def test_ratios_beyond_100_classes_use_the_line_of_the_reference():
    row = next(row for row in cells.ROWS if row.title == "MaPLe, batch 4, 500 classes")
    fp32, _, *plain = row.cells("bf16")
    assert [cell.classes for cell in plain] == [10, 50, 100]
    records = [record(cell, 1 + 0.1 * cell.classes) for cell in plain]
    made = report.tables(results(record(fp32, 3), *records))["ratios"]
    assert row_of(made, row.title)[1:7] == ["51*", "3", "13x", "17.00x", "17.00x", "yes"]


def test_a_ratio_is_of_measurements_of_its_own_cells():
    row = next(row for row in cells.ROWS if row.title == "MaPLe, batch 4, 50 classes")
    fp32, low, plain = row.cells("bf16")
    other = [record(cell.but(method="CoOp"), 1) for cell in (fp32, low, plain)]
    assert "MaPLe, batch 4, 50" not in report.ratios(results(*other))
    assert "MaPLe, batch 4, 50" in report.ratios(results(record(fp32, 1), *other))


def test_a_row_with_an_option_that_is_missing_says_so():
    row = next(row for row in cells.ROWS if row.cell.options)
    fp32, _, plain = row.cells("bf16")
    made = report.tables(
        results(record(fp32, 1, 1, left_out=["MODEL.RECOMPUTE"]), record(plain, 1, 3))
    )["ratios"]
    assert row_of(made, row.title)[1:5] == ["3.00", "1.00", "2x", "3.00x"]
    assert "Measured without MODEL.RECOMPUTE" in made


def test_the_share_of_the_matrix_rate_and_flops_an_image():
    made = report.tables(results(record(Cell("MaPLe", 50), 2)))["overview"]
    row = row_of(made, "MaPLe", "fp32")
    assert row[2:6] == ["1,000", "4", "25", "3"]  # 100 GFLOP over 4 and 32 images
    assert row[-1] == "50%"


@pytest.mark.parametrize(("seconds", "verdict"), [(9.42, "yes"), (11.0, "no")])
def test_the_reference_is_compared_with_public_code_machine_for_machine(seconds, verdict):
    # 5.89 s at 160 GFLOP/s are 942 GFLOP, and so are 9.42 s at 100 GFLOP/s
    made = report.tables(results(record(Cell("MaPLe", 50, path="plain"), seconds)))["public"]
    row = row_of(made, "MaPLe 4 x 50")
    assert row[2] == "942" and row[-1] == verdict


def test_the_reference_takes_the_median_of_its_processes():
    cell = Cell("MaPLe", 50, path="plain")
    timed = [record(cell.but(row=row), n) for row, n in ((0, 9.42), (4, 30), (5, 9.42))]
    made = report.tables(results(*timed))["public"]
    assert row_of(made, "MaPLe 4 x 50")[-2:] == ["1.00", "yes"]


def test_no_two_cells_share_a_file():
    made = [cell for row in cells.ROWS for cell in row.cells("bf16")]
    made += cells.table_cells(["CoOp", "TCP"], ["CoOp"], cells.CLASSES, ["fp32", "bf16"])
    made += cells.growth_cells("CoOp", 32, True)
    assert len({cell.name for cell in made}) == len(set(made)) == len(made)
