"""The pages of docs/methods/: one for each method, with what the software itself says of it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from dassl.config.defaults import declared
from dassl.engine import TRAINER_REGISTRY
from experiments import method_pages
from experiments.method_pages import PAGES, PARTS, ROOT, cost, generated, measured, pages

METHODS = pages()
CODE = re.compile(r"`([\w/]+\.py): ([\w.]+)`")
KEY = re.compile(r"`(?![A-Z]_\d`)([A-Z][A-Z0-9_]*(?:\.\w+)*)`")  # W_1 is a symbol
every_page = pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def written(page: Path) -> str:
    """Return what of a page is written by hand."""
    return re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", text_of(page), flags=re.DOTALL)


def defined(file: str) -> set[str]:
    """Name the functions, classes and constants of a module, those of a class behind its name."""

    def of(body: list[ast.stmt], prefix: str) -> set[str]:
        names = set()
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                names |= of(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.Assign):
                names |= {prefix + t.id for t in node.targets if isinstance(t, ast.Name)}
        return names

    return of(ast.parse((ROOT / file).read_text(encoding="utf-8")).body, "")


def test_there_is_a_page_for_each_method_and_no_other():
    assert set(METHODS) == set(PAGES.glob("*.md")) - {PAGES / "index.md"}
    assert METHODS[PAGES / "tip_adapter.md"] == ["TipAdapter", "TipAdapterF"]
    for page, names in METHODS.items():
        assert set(names) <= set(re.findall(r"`(\w+)`", text_of(page).split("##")[0])), page


@every_page
def test_what_can_be_generated_is_current(page):
    assert generated(text_of(page), METHODS[page]) == text_of(page), (
        "python -m experiments.method_pages rewrites it"
    )


@every_page
def test_a_page_has_an_idea_in_five_sentences_and_all_other_parts(page):
    first, *parts = re.split(r"^## ", text_of(page), flags=re.M)
    assert first.startswith("# ")
    assert [part.split("\n")[0] for part in parts] == [
        *("Idea", "Equations", "What is learned", "Settings"),
        *("Left open, and decided here", "Published", "Measured", "Cost"),
    ]
    sentences = parts[0].strip().split("\n")[2:]
    assert len(sentences) == 5
    assert all(sentence.endswith(".") for sentence in sentences)
    equations = parts[1].strip().split("\n")[2:]
    assert len(equations) > 1
    for equation in equations:
        assert CODE.search(equation) or "same function" in equation, equation


@every_page
def test_the_named_functions_are_there(page):
    named = CODE.findall(text_of(page))
    assert len(named) == text_of(page).count(".py: ") > 2
    for file, name in named:
        assert name in defined(file), f"{file}: {name}"


@every_page
def test_the_named_config_keys_are_there(page):
    common, methods = declared(), TRAINER_REGISTRY.registered_names()
    keys = [key for name in METHODS[page] for key in declared(name)]
    own = {key.rpartition(".")[2] for key in keys if key not in common}
    nodes = {key.split(".")[0] for key in keys}
    for name in set(KEY.findall(written(page))) - set(methods):
        assert name in own or name in keys or name in nodes, name


def test_a_measured_cost_is_a_row_of_the_page(tmp_path, monkeypatch):
    cell = {"method": "CoOp", "classes": 50, "path": "ours", "batch": 0, "row": 0, "prompts": 0}
    cell |= {"views": False, "options": []}
    step = {"seconds": 0.4567, "peak": 3 * 2**29, "flops": 2e12}
    whole = {"cell": cell, "failed": "", "computes_in": "float32", "batch": 32, "step": step}
    failed = {"cell": cell, "failed": "out of memory", "computes_in": "bfloat16"}
    differences = (
        {"classes": 10},
        {"batch": 16},
        {"batch": 32},
        {"options": ["MODEL.COMPILE", "True"]},
    )
    others = [{**whole, "cell": {**cell, **one}} for one in differences]
    machine = {"device": "cpu", "cpu": "A processor"}
    results = {"machine": machine, "records": [whole, failed, *others]}
    (tmp_path / "cost.json").write_text(json.dumps(results))
    monkeypatch.setattr(method_pages, "COSTS", (tmp_path / "cost.json",))
    assert [line for line in cost(["CoOp"]).splitlines() if line.startswith("| `")] == [
        "| `CoOp` | A processor | float32 | 32 | 0.457 | 1.50 | 2,000 |",
        "| `CoOp` | A processor | bfloat16 | - | out of memory | - | - |",
    ]
    assert cost(["VPT"]).startswith("Not measured yet")


def test_measured_accuracies_are_the_averages_that_the_cards_give(tmp_path, monkeypatch):
    before = "| Method | Base |\n| --- | --- |\n| CoOp | 1 |\n"
    begin, end = "<!-- evidence:base2new -->", "<!-- /evidence:base2new -->"
    own = "\n| Method | Base |\n| ------ | ---- |\n| CoOp   | 2    |\n| VPT    | 3    |\n\ntext\n"
    page = tmp_path / "results.md"
    page.write_text(f"{before}{begin}\n{own}\n{before}{end}\n{before}")
    monkeypatch.setattr(method_pages, "RESULTS", page)
    assert measured(["CoOp"]).splitlines()[-1] == "| CoOp   | 2    |"
    assert measured(["MaPLe"]).startswith("Not measured yet")


def test_a_page_without_a_place_for_a_part_is_refused():
    text = "".join(f"<!-- {part} -->\nold\n<!-- /{part} -->\n" for part in PARTS)
    assert "old" not in generated(text, ["ZeroshotCLIP"])
    with pytest.raises(ValueError, match=r"expected one <!-- cost --> and below it one"):
        generated(text.replace("<!-- /cost -->", ""), ["ZeroshotCLIP"])
