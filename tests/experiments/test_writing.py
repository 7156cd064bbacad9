"""The generated parts of Markdown pages."""

import pytest

from experiments.writing import filled

PAGE = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- x:y -->\n<!-- /x:y -->\n"


def test_a_part_replaces_what_is_between_its_marks():
    assert filled(PAGE, "x", "new\nlines") == PAGE.replace("old", "new\nlines")
    assert filled(PAGE, "x:y", r"\1") == PAGE.replace("x:y -->\n<", "x:y -->\n\\1\n<")
    once = filled(PAGE, "x", "new")
    assert filled(once, "x", "new") == once


@pytest.mark.parametrize(
    "page",
    [
        "",
        PAGE.replace("<!-- x -->", ""),
        PAGE.replace("<!-- /x -->", ""),
        PAGE + PAGE,
        "<!-- /x -->\n<!-- x -->\n",
    ],
)
def test_a_page_without_one_place_for_a_part_is_refused(page):
    with pytest.raises(ValueError, match="^expected one <!-- x --> and below it one <!-- /x -->$"):
        filled(page, "x", "new")
