"""Test modules do not import each other, and the tests that a page names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
SHARED = {"unit", "clip_model", "batch", "plain_logits", "learned", "run", "backbone"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def tree(path: Path) -> ast.Module:
    """Parse a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(module: ast.Module) -> set[str]:
    """Name what a module imports, with and without the last part: it may be a module, too."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module or ''}.{a.name}" for a in node.names)}
    return names


def test_no_test_module_imports_another():
    modules = sorted(HERE.rglob("test_*.py"))
    assert len(modules) > 20
    found = {
        str(path.relative_to(HERE)): name
        for path in modules
        for name in imported(tree(path))
        if any(part.startswith("test_") for part in name.split("."))
    }
    assert found == {}


def test_shared_helpers_and_fixtures_are_defined_once():
    defined: dict[str, list[str]] = {name: [] for name in SHARED}
    for path in [HERE / "plain.py", *sorted((HERE / "trainers").rglob("*.py"))]:
        for node in ast.walk(tree(path)):
            if isinstance(node, FUNCTIONS) and node.name in SHARED:
                defined[node.name].append(path.name)
    assert {name: len(places) for name, places in defined.items()} == dict.fromkeys(SHARED, 1), (
        defined
    )


def test_test_modules_leave_the_trainers_api_to_the_helpers():
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted((HERE / "trainers").glob("test_*.py"))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and node.attr in ("check_settings", "load_learned_state_dict", "__new__", "_models")
    ]
    assert found == []


def test_the_tests_that_the_page_on_reliability_names_are_there():
    page = (HERE.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = {
        (path.relative_to(HERE.parent).as_posix(), node.name)
        for path in HERE.rglob("test_*.py")
        for node in tree(path).body
        if isinstance(node, FUNCTIONS)
    }
    named = re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", page)
    assert len(named) > 20
    for file, name in named:
        found = {place for place, test in tests if test == name}
        assert found and (not file or file in found), name
    for file in re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)`", page):
        assert (HERE.parent / file).is_file(), file
