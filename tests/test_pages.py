"""README and the pages of docs/: links lead somewhere, tables say what the software says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dassl.engine import TRAINER_REGISTRY
from experiments.published import AVERAGES
from trainers.trainer import MethodTrainer

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INDEXES = sorted((ROOT / "docs").rglob("index.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    docs = ROOT / "docs"
    site = docs if page.is_relative_to(docs) else ROOT  # the site has the pages of docs/ alone
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.is_file() and place.is_relative_to(site), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: index.parent.name)
def test_an_index_has_every_page_of_its_folder_and_every_index_below(index):
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)]+)\)", prose(index))
    }
    expected = {*index.parent.glob("*.md"), *index.parent.glob("*/index.md")} - {index}
    assert expected <= linked
    assert {path.parent for path in index.parent.glob("*/*.md")} == {
        path.parent for path in index.parent.glob("*/index.md")
    }


def test_the_site_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", text))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert named == pages


def test_readme_is_short_and_its_methods_are_all_there_are():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 140
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| [`")]
    rows += [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    named = set()
    for method, learned, *figures in rows:
        names = re.findall(r"`(\w+)`", method)
        named |= {*names, *re.findall(r"`(\w+)`", learned)}
        known = [AVERAGES[name] for name in names if name in AVERAGES]
        expected = [f"{value:.2f}" for value in known[-1]] if known else ["–"] * 3
        assert figures == expected, method
    methods = {
        name
        for name in TRAINER_REGISTRY.registered_names()
        if issubclass(TRAINER_REGISTRY.get(name), MethodTrainer)
    }
    assert methods - named == {"StandardizedCLIP"}  # a control, and no method of the field
    page = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert methods <= set(re.findall(r"`(\w+)`", page))
