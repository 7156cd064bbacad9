"""The demo page in a browser that reaches no other machine."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference import Classifier, demo
from tests.inference.runs import Runs

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
pytest.importorskip("gradio", reason="the demo page needs gradio")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to look at the page with"),
]
WAIT = 180_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser, runs: Runs, tmp_path: Path, monkeypatch) -> Iterator[Any]:
    """Serve a run's page: visit(trainer) opens it as somebody new, in a browser of theirs."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    served: dict[str, str] = {}
    started, contexts, foreign = [], [], []

    def serve(trainer: str) -> str:
        listener = demo.listen("127.0.0.1", 0)
        page = demo.build_page(Classifier.from_run(runs.trained(trainer)))
        server = demo.server_of(page)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    def open_page(trainer: str = "VPT") -> Any:
        if trainer not in served:
            served[trainer] = serve(trainer)
        context = browser.new_context()
        contexts.append(context)
        context.set_default_timeout(WAIT)

        def route(request: Any) -> None:
            if request.request.url.startswith(served[trainer]):
                request.continue_()
            else:
                foreign.append(request.request.url)
                request.abort()

        context.route("**/*", route)
        page = context.new_page()
        page.goto(served[trainer])
        page.locator("#names textarea").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    for server, thread in started:
        server.should_exit = True
        thread.join()
    assert foreign == []


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = []
    for i, name in enumerate(("one.png", "two.png")):
        pixels = np.random.RandomState(i).randint(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        paths.append(tmp_path / name)
    (tmp_path / "broken.png").write_text("x")
    return [*paths, tmp_path / "broken.png"]


def upload(page: Any, *paths: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(list(paths))
    page.locator("#results article").nth(len(paths) - 1).wait_for()


def bars(page: Any, card: int = 0) -> dict[str, str]:
    """Return the widths of a card's bars by the class's name."""
    rows = page.locator("#results article").nth(card).locator("li")
    return {
        row.locator(".label").inner_text(): row.locator(".share").inner_text() for row in rows.all()
    }


def name_classes(page: Any, text: str) -> None:
    page.locator("#names textarea").fill(text)
    page.get_by_role("button", name="Use these names").click()


def shares(classifier: Classifier, path: Path) -> dict[str, str]:
    (found,) = classifier.predict(path)
    pairs = zip(found.labels, found.probabilities, strict=True)
    return {name: f"{100 * p:.1f}%" for name, p in pairs}


def test_pictures_names_and_threshold(visit, classifier, photos):
    page = visit()
    upload(page, photos[0])
    assert bars(page) == shares(classifier, photos[0])
    assert set(bars(page)) == {"red", "green"}
    assert page.locator("#results img").count() == 2

    name_classes(page, "red\nblue\npolar bear ${1+1} <b>")
    page.get_by_text("polar bear ${1+1} <b>").locator("visible=true").first.wait_for()
    page.wait_for_function("document.querySelectorAll('#results li').length === 3")
    others = classifier.with_classes(["red", "blue", "polar bear ${1+1} <b>"])
    assert bars(page) == shares(others, photos[0])

    page.locator("#threshold input[type=number]").fill("1")
    page.locator("#threshold input[type=number]").press("Tab")
    page.locator("#results h3", has_text="none of these").wait_for()
    assert bars(page) == shares(others, photos[0])
    (record,) = json.loads(page.locator("#json .cm-content").inner_text())
    assert (record["image"], record["label"]) == ("one.png", "none of these")
    assert {entry["label"] for entry in record["top"]} == set(bars(page))

    page.set_viewport_size({"width": 390, "height": 844})  # a phone's
    page.wait_for_function("document.documentElement.scrollWidth === 390", timeout=WAIT)


def test_what_is_wrong_is_one_line_and_the_rest_stays(visit, classifier, photos):
    page = visit()
    upload(page, *photos)
    error = page.locator("#results .problem").inner_text()
    assert "broken.png" in error and "\n" not in error
    for i in range(2):
        assert bars(page, i) == shares(classifier, photos[i])
    for text, message in (
        ("a\nb\na", "class names: expected different class names, got 'a' twice"),
        (" \n", "class names: expected at least one class name, got none"),
        ("very " * 80, "expected a context that leaves room for"),
    ):
        name_classes(page, text)
        page.locator("#error .problem", has_text=message).wait_for()
        assert bars(page) == shares(classifier, photos[0])
    name_classes(page, "a\nb")
    page.locator("#results .label", has_text="a").first.wait_for()
    assert page.locator("#error .problem").count() == 0
    assert set(bars(page)) == {"a", "b"}


def test_two_visitors_have_class_names_of_their_own(visit, classifier, photos):
    one, two = visit(), visit()
    upload(one, photos[0])
    name_classes(one, "cat\ndog")
    one.locator("#results .label", has_text="cat").wait_for()
    upload(two, photos[0])
    assert bars(two) == shares(classifier, photos[0])
    assert set(bars(one)) == {"cat", "dog"}
    upload(one, photos[1])
    page_names = one.locator("#names textarea").input_value()
    assert page_names == "cat\ndog" and set(bars(one)) == {"cat", "dog"}


def test_names_of_a_method_that_is_bound_to_them_are_read_only(visit, photos):
    page = visit("LinearProbe")
    names = page.locator("#names textarea")
    assert names.input_value() == "red\ngreen" and names.is_disabled()
    assert page.get_by_role("button", name="Use these names").count() == 0
    upload(page, photos[0])
    assert set(bars(page)) == {"red", "green"}
