"""The sections about single runs: mistakes, words, cost, commands and versions."""

from __future__ import annotations

import ast
import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from dassl.utils.logger import LOG_FILE
from experiments.report import examples, figures
from experiments.report.blocks import Block, Cards, Figures, Listing, Section, Table
from experiments.report.sections import Group, Results, predictions_of
from experiments.runs import Run


def mistakes(groups: Sequence[Group], results: Results, root: str) -> list[Section]:
    """Show, of each dataset, what the best method confuses in the first table that has it."""
    found: dict[str, Section] = {}
    for group in groups:
        pairs: dict[str, list[tuple[str, Run]]] = defaultdict(list)
        for label, run in group.runs:
            pairs[run.target].append((label, run))
        for dataset in pairs.keys() - found.keys():
            label, runs = best_of(pairs[dataset], results)
            text = (
                f"{label}, {group.title}, seed {runs[0].seed}: of these methods the best on the "
                "dataset."
            )
            blocks, notes = mistakes_of(runs, results, root)
            found[dataset] = Section(f"Mistakes on {dataset}", text, blocks, notes)
    return [found[dataset] for dataset in sorted(found)]


def best_of(pairs: Sequence[tuple[str, Run]], results: Results) -> tuple[str, list[Run]]:
    """Return the label with the highest mean accuracy, and its runs of one seed.

    Methods that lack a column come last, and the runs are those with the most shots.
    """
    columns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for label, run in pairs:
        columns[label][run.column].append(results[run.place]["accuracy"])

    def quality(label: str) -> tuple[int, float]:
        means = [statistics.fmean(accuracies) for accuracies in columns[label].values()]
        return len(means), statistics.fmean(means)

    best = max(columns, key=quality)
    own = [run for label, run in pairs if label == best]
    first = min(own, key=lambda run: (-run.shots, run.seed))
    return best, [run for run in own if (run.shots, run.seed) == (first.shots, first.seed)]


def mistakes_of(runs: Sequence[Run], results: Results, root: str) -> tuple[list[Block], list[str]]:
    """Show confusion matrices, confused pairs and confident mistakes of runs on one dataset."""
    svgs, images, notes = [], [], []
    for run in runs:
        found = predictions_of(run)
        if found is None:
            notes.append(f"{run.place} has no predictions that can be read.")
            continue
        root = root or setting(results[run.place], "config", "DATASET", "ROOT")
        title = f"{run.target}, {run.column}"
        svgs.append(figures.confusions(title, examples.counts_of(found), list(found.class_names)))
        images += examples.judged(found)
    pairs, confident = examples.pairs_of(images, root), examples.mistakes_of(images, root)
    if confident and not any(card.pictures for card in confident):
        notes.append(f"The pictures are not below '{root}'; --root names another folder.")
    blocks: list[Block] = [
        Figures(svgs, {}, "Confusion matrices, as shares of the own class (rows)."),
        Cards("Most confused: a picture taken for another class, and one of that", pairs),
        Cards("Most confident mistakes", confident),
    ]
    return (blocks if confident else blocks[:1] if svgs else []), notes


def setting(results: object, *names: str) -> str:
    """Return a text in a run's results; "" where there is none."""
    for name in names:
        results = results.get(name) if isinstance(results, dict) else None
    return results if isinstance(results, str) else ""


def words(groups: Sequence[Group], results: Results) -> Section | None:
    """Tabulate the words nearest to learned contexts."""
    rows, notes = [], Counter[str]()
    firsts = [pair for group in groups for pair in group.firsts()]
    for label, run in firsts:
        context = examples.text_context(examples.learned_tensors(run.place))
        backbone = setting(results[run.place], "config", "MODEL", "BACKBONE", "NAME")
        if context is None:
            notes["Runs without a learned context in the place of words"] += 1
        elif not (found := examples.nearest_words(context, backbone)):
            notes[
                f"Contexts of {backbone or 'an unknown backbone'}, which is not on this machine"
            ] += 1
        else:
            rows.append([label, run.dataset, " ".join(found)])
    text = (
        "The whole word whose embedding is nearest to each learned token, with the Euclidean "
        "distance. It may say little: a token need not be near any word."
    )
    lines = [f"{what}: {number}." for what, number in notes.items()]
    blocks = [Table(["Method", "Dataset", "Words (distance)"], rows)] if rows else []
    return Section("Words nearest to learned contexts", text, blocks, lines) if firsts else None


def cost(groups: Sequence[Group], results: Results) -> Section | None:
    """Tabulate time, memory and learned values of the training runs."""
    rows = []
    for group in groups:
        by_label: dict[str, list[Run]] = {}
        for label, run in group.runs:
            if run.is_trained and not run.step.loads:
                by_label.setdefault(label, []).append(run)
        for label, runs in by_label.items():
            found = [results[run.place] for run in runs]
            cells = [label, group.title, str(len(runs))]
            for name in ("wall_time_s", "peak_memory_mb"):
                numbers = [n for each in found if isinstance(n := each.get(name), (int, float))]
                span = f" ({min(numbers):,.0f} to {max(numbers):,.0f})" if numbers else ""
                cells.append(f"{statistics.fmean(numbers):,.0f}{span}" if numbers else "-")
            learned = examples.learned_tensors(runs[0].place).values()
            number = sum(value.numel() for value in learned)
            rows.append([*cells, f"{number:,}" if number else "-"])
    header = ["Method", "Protocol", "Runs", "Seconds a run", "Peak memory in MB", "Learned values"]
    text = "Of training runs with their test, on whatever machine, alone or not: mean (range)."
    return Section("Cost", text, [Table(header, rows)]) if rows else None


def origins(results: Results, skipped: Sequence[str], unfinished: int) -> Section:
    """List versions and commands, and what was left out."""
    versions = Counter(
        ", ".join(f"{name} {version}" for name, version in found.items())
        for each in results.values()
        if isinstance(found := each.get("versions"), dict)
    )
    commands = [line for folder in sorted(results) if (line := command_in(folder / LOG_FILE))]
    rows = [[names, str(number)] for names, number in versions.most_common()]
    blocks: list[Block] = [Table(["Versions", "Runs"], rows)] if rows else []
    lists = {"Commands": commands, "Skipped results": skipped}
    blocks += [Listing(f"{what}: {len(lines)}", lines) for what, lines in lists.items() if lines]
    lacking = len(results) - len(commands)
    notes = [f"Runs without a log that names their command: {lacking}."] if lacking else []
    notes += (
        [f"Results that are skipped, for the reasons below: {len(skipped)}."] if skipped else []
    )
    notes += [f"Runs that are not finished: {unfinished}."] if unfinished else []
    return Section("Commands and versions", "", blocks, notes)


def command_in(log: Path) -> str:
    """Return the command of a run, as its log has the arguments; "" where that cannot be read."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            head = file.read(20_000)
    except OSError:
        return ""
    lines = head.partition("** Arguments **")[2].partition("** Config **")[0].splitlines()
    found = dict(line.split(": ", 1) for line in lines if ": " in line)
    try:
        pairs = [str(part) for part in ast.literal_eval(found.pop("opts"))]
    except (KeyError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ""
    words = ["python", "train.py"]
    for name, value in found.items():
        if value not in ("", "None", "False"):
            words += [f"--{name.replace('_', '-')}", *([value] if value != "True" else [])]
    return shlex.join([*words, *pairs])
