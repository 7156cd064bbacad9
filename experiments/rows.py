"""Tables of finished runs that were found: which rows there are, and what they are called.

Runs share a row only if they have the same settings; its name says what tells it from others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from configs.choice import EMBEDDED, MINI, PAPERS, PUBLIC, TRANSDUCTIVE, config_of
from configs.protocols import (
    BASE2NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    PROTOCOLS,
    TEST_TARGET,
    TRAIN_ALL,
    Protocol,
)
from dassl.errors import UserError
from experiments.cells import Entry, Titled, tabulate
from experiments.found import Found
from experiments.intervals import half_width_of_counts
from experiments.runs import Run

SHARED = ("backbone", "precision", "split")  # in the caption if all runs agree
SAID = ("MODEL.BACKBONE.NAME", "DATALOADER.VIEWS")  # keys that names say in other words


class Names:
    """Names the rows of runs.

    Args:
        runs: all that are shown.
    """

    def __init__(self, runs: Sequence[Found]) -> None:
        self._several = [name for name in SHARED if len({run.about[name] for run in runs}) > 1]
        families: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for run in runs:
            own = families.setdefault(_family(run), [])
            if run.settings not in own:
                own.append(run.settings)
        self._differing = {family: _differing(own) for family, own in families.items()}

    def name(self, run: Found, protocol: Protocol) -> str:
        """Return the method with what tells its row from others, and what a reader must know."""
        tags = [] if _is_default(run, protocol) else [run.config]
        tags += filter(None, [run.variant, f"epoch {run.load_epoch}" if run.load_epoch else ""])
        tags += [run.about[name] for name in self._several]
        known = run.variant.split(",")
        if (views := run.settings.get("DATALOADER.VIEWS")) and f"VIEWS={views}" not in known:
            tags.append(f"VIEWS {views}")
        if run.trainer in TRANSDUCTIVE:
            tags.append("transductive")
        if text := run.about["text"]:
            tags.append(text)
        for key in self._differing[_family(run)]:
            pair = f"{key}={run.settings.get(key, 'default')}"
            if key not in SAID and pair.rpartition(".")[2] not in known:
                tags.append(pair)
        return f"{run.trainer} ({', '.join(tags)})" if tags else run.trainer


def _family(run: Found) -> tuple[str, ...]:
    return (run.trainer, run.config, run.variant)


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the keys in which settings differ."""
    keys = sorted({key for each in settings for key in each})
    return [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]


def _is_default(run: Found, protocol: Protocol) -> bool:
    for backbone in ("", MINI):
        try:
            usual = config_of(run.trainer, protocol, run.dataset, run.shots, backbone)
        except UserError:  # a method of one's own
            continue
        if usual == run.config:
            return True
    return False


def caption(runs: Iterable[Found]) -> str:
    """Say what the figures are and what all runs have in common."""
    runs = list(runs)
    parts = ["Accuracy in percent"]
    for name in (*SHARED, "torch"):
        found = sorted({run.about[name] for run in runs})
        if len(found) == 1 or name == "torch":
            parts += filter(None, found)
    return (
        f"{', '.join(parts)}: mean ± standard deviation over seeds (number of seeds) "
        "[95% interval over seeds and test images]"
    )


def tables_of(runs: Sequence[Found]) -> tuple[list[Titled], list[str]]:
    """Return a table for each protocol and source, and a line for each run that is there twice."""
    names = Names(runs)
    tables, twice = [], []
    for protocol in PROTOCOLS.values():
        for source, chosen in _groups(runs, protocol).items():
            trained = {run.shots for run in chosen if run.is_trained}
            several = protocol is not FEW_SHOT and len(trained) > 1
            shots = trained.pop() if len(trained) == 1 and protocol is not FEW_SHOT else 0
            placed: dict[tuple[tuple[str, ...], str, int], Entry] = {}
            for run in chosen:
                extra = [str(run.shots)] if several else []
                row = (source or run.dataset, names.name(run, protocol), *extra)
                column = run.target if protocol.transfers else run.column
                key = (row, column, run.seed)
                if key in placed:
                    twice.append(f"{run.at}: the same run as in {placed[key].run.place}")
                else:
                    placed[key] = Entry(row, column, run.accuracy, run)
            entries, columns = list(placed.values()), _columns(chosen, protocol, source)
            rows = sorted({entry.row for entry in entries}, key=_order)
            table = tabulate(entries, rows, columns, protocol, _half_width, over_seeds=True)
            title = f"{protocol.title} from {source}" if source else protocol.title
            title = protocol.title.capitalize() + (f", trained on {source}" if source else "")
            title += f", {shots} shots" if shots else ""
            tables.append(Titled(title, protocol, shots, table))
    return tables, list(dict.fromkeys(twice))


def _groups(runs: Sequence[Found], protocol: Protocol) -> dict[str, list[Found]]:
    """Return the runs of each table of a protocol, by the source that they transfer from, or ""."""
    targets = [run for run in runs if run.step is TEST_TARGET]
    if not protocol.transfers:
        sources = {_model(run) for run in targets}
        own = [
            run
            for run in runs
            if run.step in protocol.steps
            # the recipe of a transfer is no few-shot training
            and not (_model(run) in sources and not _is_default(run, protocol))
        ]
        return {"": own} if own else {}
    groups: dict[str, list[Found]] = {}
    for run in targets:
        if _transfer_of(run) is protocol:
            groups.setdefault(run.dataset, []).append(run)
    for source, own in groups.items():
        models, columns = {_model(run) for run in own}, {source, *(run.target for run in own)}
        for run in runs:
            is_row = not run.is_trained and run.target in columns
            if run.step is TRAIN_ALL and (is_row or _model(run) in models):
                own.append(run)
    return groups


def _model(run: Found) -> tuple[object, ...]:
    """Return what a run that tests a model and the one that trains it have in common."""
    return (*_family(run), run.dataset, run.shots, run.seed)


def _transfer_of(run: Found) -> Protocol:
    """Return the protocol of a target; targets of one's own are of cross-dataset."""
    known = DOMAIN_GENERALIZATION.targets.get(run.dataset, ())
    return DOMAIN_GENERALIZATION if run.target in known else CROSS_DATASET


def _columns(runs: Sequence[Found], protocol: Protocol, source: str) -> dict[str, str]:
    """Return {heading: step} in the order of the columns."""
    if protocol is BASE2NEW:
        return {step.column: step.name for step in protocol.steps}
    if protocol is FEW_SHOT:
        return {run.column: run.step.name for run in sorted(runs, key=lambda run: run.shots)}
    first, second = (step.name for step in protocol.steps)
    known = protocol.targets.get(source, ())
    others = sorted({run.target for run in runs} - {source}, key=lambda name: _place(name, known))
    return {source: first, **dict.fromkeys(others, second)}


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def _order(row: tuple[str, ...]) -> tuple[object, ...]:
    dataset, method, *shots = row
    trainer = method.partition(" ")[0]
    return (
        _place(dataset, (*PUBLIC, *EMBEDDED)),
        *(_place(trainer, list(PAPERS)), method, [int(n) for n in shots]),
    )


def _half_width(runs: Sequence[Run]) -> float | None:
    counts = [run.counts for run in runs if isinstance(run, Found) and run.counts is not None]
    return half_width_of_counts(counts) if len(counts) == len(runs) else None
