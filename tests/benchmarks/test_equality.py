"""docs/equality.md names tests that exist, and the measurement behind it finds equality."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks.equality import measure
from benchmarks.equality.__main__ import CASES, COLUMNS, number
from benchmarks.equality.plain_steps import STEPS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "equality.md").read_text(encoding="utf-8")
TESTS = sorted(set(re.findall(r"(test_\w+\.py)::(\w+)", PAGE)))


def test_every_test_that_the_page_names_exists():
    functions: dict[str, set[str]] = {}
    modules = {module for module, _ in TESTS}
    for path in (p for p in (ROOT / "tests").rglob("test_*.py") if p.name in modules):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        functions.setdefault(path.name, set()).update(names)
    assert len(TESTS) > 50
    assert [test for test in TESTS if test[1] not in functions.get(test[0], set())] == []


def test_every_method_with_a_plain_step_has_a_row():
    assert CASES.keys() == STEPS.keys()
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    measured = {row[0].strip("`"): row[2:7] for row in rows if len(row) == 8}
    assert measured.keys() == CASES.keys()
    for name, cells in measured.items():
        *single, double = map(float, cells)
        assert max(single) < 2e-3 and double < 1e-10, name


def test_a_training_in_float64_is_that_of_the_plain_computation(monkeypatch):
    monkeypatch.setattr(measure, "BATCHES", 1)
    found = measure.method_differences("CoOp", "float64")
    assert found.keys() == set(COLUMNS)
    assert max(found.values()) < 1e-10


def test_another_rate_is_a_difference(monkeypatch):
    monkeypatch.setattr(measure, "BATCHES", 1)
    rates = measure.rates_of
    monkeypatch.setattr(measure, "rates_of", lambda *of: [1.01 * rate for rate in rates(*of)])
    found = measure.method_differences("CoOp", "fp32")
    assert found["gradients"] < 1e-5
    assert found["training"] == pytest.approx(0.01, rel=0.2)


def test_differences_are_rounded_up():
    assert [number(x) for x in (0, 3.14e-7, 1e-15)] == ["0", "3.3e-7", "1.1e-15"]
