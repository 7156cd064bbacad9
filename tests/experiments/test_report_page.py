"""The report in a browser: what should be visible is, on a screen, on a phone and in print."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.protocols import BASE2NEW
from dassl.evaluation.predictions import write_predictions
from experiments.report import main
from experiments.runs import runs_of
from tests.experiments.finished import leave_results

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to look at the page with"),
]
NAMES = ("<img src=x onerror=alert(1)>", "b", "c" * 60)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """Write the report on two methods and return its address."""
    place = tmp_path_factory.mktemp("page")
    labels = np.arange(9) % 3
    for trainer, wrong in (("ZeroshotCLIP", 3), ("CoOp", 1), ("KgCoOp", 2)):
        for run in runs_of(BASE2NEW, trainer, "shapes", output_dir=place / "out"):
            folder = leave_results(run, 9 - wrong, 9, DATASET__ROOT=str(place), ece=0.1)
            predicted = np.where(np.arange(9) < wrong, (labels + 1) % 3, labels)
            paths = [str(place / f"{i}.png") for i in range(9)]
            for path in paths:
                Image.new("RGB", (32, 32), "red").save(path)
            logits = {"logits": np.eye(3, dtype=np.float16)[predicted]}
            with open(folder / "predictions.npz", "wb") as file:
                write_predictions(file, paths, str(place), labels, NAMES, logits)
    assert main([str(place / "out"), "--html", str(place / "report.html")]) == 0
    return (place / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser, address) -> Iterator[Any]:
    """Open the page; whatever it asks for, says or complains about fails the test."""
    contexts, complaints = [], []

    def open_page(width: int, **how: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **how)
        contexts.append(context)
        page = context.new_page()
        for event in ("console", "pageerror", "dialog"):
            page.on(event, lambda what: complaints.append(str(what)))
        page.on("request", lambda request: asked(request.url))
        page.goto(address)
        return page

    def asked(url: str) -> None:
        if url != address and not url.startswith("data:"):
            complaints.append(url)

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def check_visible(page: Any, width: int) -> None:
    """Check that headings, notes, figures, pictures and tables are there to be seen."""
    for selector, least in (("h2", 6), ("svg", 7), (".card img", 4), ("td", 30), ("figcaption", 3)):
        found = page.locator(selector)
        assert found.count() >= least, selector
        for element in found.all():
            assert element.is_visible(), selector
            box = element.bounding_box()
            assert box["width"] > 5 and box["height"] > 5, selector
            if selector != "td":  # a wide table scrolls in its own frame
                assert box["x"] >= 0 and box["x"] + box["width"] <= width + 1, selector
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    loaded = "[...document.images].every(image => image.complete && image.naturalWidth === 32)"
    assert page.evaluate(loaded)
    assert page.locator("section b", has_text=NAMES[0]).first.is_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_everything_is_visible(visit, width):
    check_visible(visit(width), width)


def test_everything_is_visible_in_print(visit):
    page = visit(760)
    page.emulate_media(media="print")
    check_visible(page, 760)
    assert not page.locator("nav").is_visible()


def test_clicks_sort_a_table_by_number_or_by_name(visit):
    table = visit(1280).locator("#s1 table").first

    def column(number: int) -> list[str]:
        cells = table.locator(f"tbody td:nth-child({number})").all()
        return [cell.inner_text().split()[0] for cell in cells]

    base, names = (table.locator("th", has_text=text) for text in ("Base", "Method"))
    base.locator("button").click()
    assert base.get_attribute("aria-sort") == "descending"
    assert column(3) == ["88.9", "77.8", "66.7"]
    base.locator("button").click()
    assert base.get_attribute("aria-sort") == "ascending"
    assert column(3) == ["66.7", "77.8", "88.9"]
    names.locator("button").click()
    assert base.get_attribute("aria-sort") is None
    assert column(2) == ["ZeroshotCLIP", "KgCoOp", "CoOp"]
    names.locator("button").click()
    assert column(2) == ["CoOp", "KgCoOp", "ZeroshotCLIP"]


def test_it_is_readable_without_javascript(visit):
    page = visit(1280, java_script_enabled=False)
    assert page.locator("th", has_text="Harmonic mean").first.is_visible()
    assert page.locator("button").count() == 0
    assert page.locator("svg").first.is_visible()
