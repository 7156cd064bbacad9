"""The page: sections in the template page.html, which allows no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dassl.errors import escaped
from experiments.found import Found
from experiments.outcomes import Outcomes
from experiments.report import figures, origins, sections
from experiments.report.blocks import Section
from experiments.report.sections import Group, Results
from experiments.rows import tables_of

HERE = Path(__file__).parent


def page_of(runs: Sequence[Found], skipped: Sequence[str], unfinished: int, root: str) -> str:
    """Return the HTML about finished runs.

    Args:
        runs: what ``experiments.found.find`` gives, as are the next two.
        skipped: a line for each result that was skipped.
        unfinished: number of unfinished runs.
        root: folder of the datasets; "" for that of each run.
    """
    import matplotlib
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    results = {run.place: run.results() for run in runs}
    tables, twice = tables_of(runs)
    groups = [Group(each) for each in tables]
    with matplotlib.rc_context(figures.STYLE):
        found = list(_sections(groups, results, root))
    found.append(origins.origins(results, [*skipped, *twice], unfinished))
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html")
    return template.render(sections=found, facts=_facts(runs), script=script, digest=digest)


def _visible(value: Any) -> Any:
    """Write control characters and the like as escapes; what is HTML already stays as it is."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return escaped(value, kept="\n") if is_text else value


def _sections(groups: Sequence[Group], results: Results, root: str) -> Iterator[Section]:
    outcomes = Outcomes()
    for group in groups:
        yield sections.accuracies(group)
        yield from filter(None, [sections.gains(group, outcomes)])
        yield sections.calibration(group, results)
        yield from filter(None, [sections.training(group, results)])
    yield from origins.mistakes(groups, results, root)
    yield from filter(None, [origins.words(groups, results), origins.cost(groups, results)])


def _facts(runs: Sequence[Found]) -> dict[str, str]:
    found = {
        "Finished runs": [str(len(runs))],
        "Methods": sorted({run.trainer for run in runs}),
        "Datasets": sorted({run.target for run in runs}),
        "Backbone": sorted({run.about["backbone"] for run in runs}),
        "Seeds": map(str, sorted({run.seed for run in runs})),
    }
    return {name: ", ".join(values) for name, values in found.items()}
