"""From measurements to tables, the plot, and the pages of docs/."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cost import cells
from benchmarks.cost.cells import Cell, plain_sizes
from dassl.json_file import read_json
from dassl.utils.tools import atomic_write
from experiments.table import known_methods
from experiments.writing import filled

NOTHING = "–"
SHOWN_CLASSES = 50  # of the overview
GIB, MIB = 2**30, 2**20
Records = list[dict[str, Any]]


class Place(NamedTuple):
    """Where the measurements of one kind of device are kept and shown."""

    page: Path
    results: Path
    plot: Path


PLACES = {
    kind: Place(
        Path(f"docs/performance{suffix}.md"),
        Path(f"benchmarks/results/cost{suffix}.json"),
        Path(f"docs/images/cost{suffix}.svg"),
    )
    for kind, suffix in (("cpu", ""), ("gpu", "-gpu"))
}


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


# Reading records ---------------------------------------------------------------------------------


class Line(NamedTuple):
    """A straight line fitted to measurements by least squares of their relative errors."""

    start: float
    slope: float

    def at(self, x: float) -> float:
        return self.start + self.slope * x


def fitted(points: dict[float, float]) -> Line | None:
    """Fit x -> value; None where there are fewer than two x or a value is 0."""
    if len(points) < 2 or not all(points.values()):
        return None
    x, y = np.array(list(points)), np.array(list(points.values()))
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    return Line(float(start), float(slope))


def pick(records: Records, **wanted: Any) -> Records:
    """Return the records whose cells have these values; those of a row only where it is given."""
    wanted = {"row": 0, "prompts": 0, **wanted}
    return [r for r in records if all(r["cell"][key] == value for key, value in wanted.items())]


def one(records: Records, cell: Cell) -> dict[str, Any] | None:
    """Return the record of a cell, of whatever model."""
    return next((r for r in records if Cell.of(r["cell"]).but(model=cell.model) == cell), None)


def value_of(record: dict[str, Any] | None, phase: str, key: str) -> float | None:
    """Return a measured value; None where there is none."""
    found = (record or {}).get(phase)
    return None if found is None else found.get(key)


def seconds(x: float) -> str:
    """Write with three digits."""
    return f"{x:.3g}" if x < 100 else f"{x:,.0f}"


def gib(x: float) -> str:
    return f"{x / GIB:.2f}"


def in_short(record: dict[str, Any]) -> str:
    """Say in a few words what a record holds."""
    parts = [record["failed"]] if record["failed"] else []
    for phase in ("step", "evaluation"):
        if phase in record:
            found = record[phase]
            parts.append(f"{phase} {seconds(found['seconds'])} s, {gib(found['peak'])} GiB")
    return "; ".join(parts) or record.get("no_step", "")


def rate_of(records: Records, kind: str) -> float:
    """Return the median of the matrix rates measured in a type, in FLOP/s; 0 for none."""
    rates = [r["rate"] for r in records if r.get("computes_in") == kind and "rate" in r]
    return median(rates) if rates else 0.0


def share(record: dict[str, Any] | None) -> float | None:
    """Return what part of the matrix rate, measured by the same process, a step reaches."""
    if record is None or "step" not in record or not record["step"].get("seconds"):
        return None
    return record["step"]["flops"] / (record["rate"] * record["step"]["seconds"])


def methods_in(records: Records) -> list[str]:
    return list(dict.fromkeys(sorted(r["cell"]["method"] for r in records)))


def precisions_in(records: Records) -> list[str]:
    found = {r["cell"]["precision"] for r in records if r["cell"]["path"] == "ours"}
    return sorted(found, key=lambda name: (name != "fp32", name))


def plain_points(
    records: Records, method: str, batch: int, phase: str, key: str, row: int = 0
) -> dict[float, float]:
    """Return classes -> value of the plain reference at a batch."""
    points = {}
    for r in pick(records, method=method, path="plain", row=row):
        value = value_of(r, phase, key)
        if value is not None and r["batch"] == batch:
            points[r["cell"]["classes"]] = value
    return points


def plain_at(points: dict[float, float], classes: int) -> tuple[float | None, bool]:
    """Return a value of the plain reference, and whether it is extrapolated."""
    if classes in points:
        return points[classes], False
    line = fitted(points)
    return (None, False) if line is None or classes < max(points) else (line.at(classes), True)


# Tables ------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Not measured."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: float | None, write: Callable[[float], str], record: Any = None) -> str:
    """Write a value, or why there is none."""
    if value is not None:
        return write(value)
    return (record or {}).get("failed") or NOTHING


def about(results: dict[str, Any]) -> str:
    """Say on which machine, when and how it was measured, and how fast that multiplies."""
    m, records = results["machine"], results["records"]
    low = ", ".join(m["low precision"]) or "none"
    kinds = sorted({r["computes_in"] for r in records if "computes_in" in r}, reverse=True)
    rates = ", ".join(f"{kind} {rate_of(records, kind) / 1e9:,.0f} GFLOP/s" for kind in kinds)
    dates = sorted(record["date"] for record in records)
    first, last = dates[0], dates[-1]
    codes = Counter(record["code"] for record in records).most_common()
    code = codes[0][0]
    if len(codes) > 1:
        code = ", ".join(f"{version} ({n} of {len(records)} measurements)" for version, n in codes)
    versions = f"torch {m['torch']}, {m['system']}; code {code}"
    lines = [
        f"- Machine: {m['cpu']}, {m['cores']} cores, {m['threads']} threads, device "
        f"{m['device']}, {m['memory'] / GIB:.0f} GiB; instructions for low precision: {low}.",
        f"- {results['model']} with random weights; {versions}.",
        f"- Measured {first}{'' if first == last else f' to {last}'} by `{results['command']}`.",
        f"- Matrix rate (2048 x 768 x 3072): {rates}.",
    ]
    return "\n".join(lines)


def overview(results: dict[str, Any]) -> str:
    """Return a row for each method and precision at ``SHOWN_CLASSES`` classes."""
    records, rows = results["records"], []
    on_gpu = place_of(results) is PLACES["gpu"]
    for method in methods_in(records):
        for precision in precisions_in(records):
            found = pick(
                records,
                method=method,
                path="ours",
                precision=precision,
                batch=0,
                classes=SHOWN_CLASSES,
            )
            if not found:
                continue
            r = found[0]
            step, test = r.get("step"), r.get("evaluation")
            part = share(r)
            rows.append(
                [
                    method,
                    shown_precision(r),
                    f"{r['learned']:,}" if "learned" in r else NOTHING,
                    str(r.get("batch", NOTHING)) if step else NOTHING,
                    f"{step['flops'] / r['batch'] / 1e9:,.0f}" if step else NOTHING,
                    f"{test['flops'] / r['test_batch'] / 1e9:,.0f}" if test else NOTHING,
                    seconds(step["seconds"]) if step else r["failed"] or NOTHING,
                    seconds(r["test_batch"] / test["batch_seconds"]) if test else NOTHING,
                    gib(step["peak"]) if step else NOTHING,
                    gib(test["peak"]) if test else NOTHING,
                    shown(part, lambda x: f"{100 * x:.0f}%"),
                ]
            )
            if on_gpu:
                rows[-1] += [shown(part, lambda x: f"{1 / x:.1f}x"), host_share(step)]
                rows[-1].append(as_a_graph(records, r))
    header = ["method", "PREC", "learned values", "batch", "GFLOP an image, training"]
    header += ["GFLOP an image, test", "step, s", "images/s, evaluation", "memory of a step, GiB"]
    header += ["memory of an evaluation, GiB", "of the matrix rate"]
    header += ["step over floor", "launching", "as a CUDA graph, s (over floor)"] * on_gpu
    notes = sorted({(r["no_step"], r["cell"]["method"]) for r in records if r.get("no_step")})
    reasons = "; ".join(f"{method} {reason}" for reason, method in notes)
    made = [markdown(header, rows)]
    if notes:
        made.append(f"Without steps: {reasons}.")
    absent = [method for method in known_methods() if method not in {row[0] for row in rows}]
    if rows and absent:
        made.append(f"Not measured yet: {', '.join(absent)}.")
    return "\n\n".join(made)


def as_a_graph(records: Records, record: dict[str, Any]) -> str:
    """Return the seconds, and in brackets the ratio to the floor, of a step as a CUDA graph."""
    cell, flops = Cell.of(record["cell"]), value_of(record, "step", "flops")
    found = one(records, cells.graph_cell(cell.method, record.get("batch", 0), cell.precision))
    taken = value_of(found, "step", "seconds")
    if flops is None or taken is None:
        return NOTHING
    return f"{seconds(taken)} ({taken / flops * record['rate']:.1f}x)"


def host_share(step: dict[str, Any] | None) -> str:
    """Return the part of a step's time after which everything is launched."""
    return NOTHING if step is None else f"{100 * step['host_seconds'] / step['seconds']:.0f}%"


def shown_precision(record: dict[str, Any]) -> str:
    precision = record["cell"]["precision"]
    kind = record.get("computes_in", "")
    known = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(kind, kind)
    return precision if precision in (known, "fp32") or not known else f"{precision} ({known})"


def by_classes(results: dict[str, Any], phase: str, key: str, write: Callable[[float], str]) -> str:
    """Return a row for each method and precision, and the reference; a column for each K."""
    records = results["records"]
    sizes = sorted({r["cell"]["classes"] for r in pick(records, batch=0)})
    rows = []
    for method in methods_in(records):
        for precision in precisions_in(records):
            wanted = {"method": method, "path": "ours", "precision": precision, "batch": 0}
            found = {r["cell"]["classes"]: r for r in pick(records, **wanted)}
            if not any(phase in r or r["failed"] for r in found.values()):
                continue
            points = points_of(found, phase, key)
            values = [shown(points.get(k), write, found.get(k)) for k in sizes]
            rows.append([method, precision, *values, growth(fitted(points), key)])
        plain = pick(records, method=method, path="plain", batch=0)
        measured = {r["cell"]["classes"]: r for r in plain}
        points = points_of(measured, phase, key)
        if points:
            values = []
            memory = points_of(measured, phase, "peak")
            for k in sizes:
                value, is_extrapolated = plain_at(points, k)
                need, _ = plain_at(memory, k)
                text = shown(value, write, measured.get(k)) + "*" * is_extrapolated
                if is_extrapolated and need and need > results["machine"]["memory"] > 0:
                    text = f"out of memory ({need / GIB:.0f} GiB*)"
                values.append(text)
            rows.append([method, "plain", *values, growth(fitted(points), key)])
    return markdown(["method", "PREC", *(f"{k:,}" for k in sizes), "growth"], rows)


def points_of(measured: dict[int, Any], phase: str, key: str) -> dict[float, float]:
    return {k: v for k, r in measured.items() if (v := value_of(r, phase, key)) is not None}


def growth(line: Line | None, key: str, of: str = "a class") -> str:
    """Write a fitted line: what there is without any, and what each adds."""
    if line is None:
        return NOTHING
    if key == "peak":
        start, each, unit = f"{line.start / GIB:.2f} GiB", round(line.slope / MIB, 1), "MiB"
    else:
        start, each, unit = f"{seconds(max(0.0, line.start))} s", round(1000 * line.slope, 1), "ms"
    return f"{start} {'-' if each < 0 else '+'} {abs(each):.1f} {unit} {of}"


def growth_table(results: dict[str, Any]) -> str:
    """Say how time and memory of a step grow with batch and prompt length."""
    records, rows = results["records"], []
    for method in methods_in(records):
        lines = []
        steps = pick(records, method=method, path="ours", precision="fp32")
        steps = [r for r in steps if r["cell"]["batch"] and not r["cell"]["options"]]
        images = {r["cell"]["batch"]: r for r in steps}
        wanted = [
            r
            for m in cells.GROWTH_PROMPTS
            for r in pick(records, method=method, path="ours", prompts=m)
        ]
        prompts = {r["cell"]["prompts"]: r for r in wanted}
        for found, of in ((images, "an image"), (prompts, "a prompt")):
            for key in ("seconds", "peak"):
                lines.append(growth(fitted(points_of(found, "step", key)), key, of))
        if any(line != NOTHING for line in lines):
            rows.append([method, *lines])
    header = ["method", "time by batch", "memory by batch", "time by prompts", "memory by prompts"]
    return markdown(header, rows)


def by_flops(
    records: Records, plain: float | None, record: dict[str, Any] | None, phase: str
) -> float | None:
    """Return the ratio of the reference to ours if both reach the same part of the matrix rate.

    Args:
        plain: FLOPs of the reference, which computes in fp32.
    """
    own = value_of(record, phase, "flops")
    if record is None or not own or not plain:
        return None
    faster = rate_of(records, record["computes_in"]) / rate_of(records, "float32")
    return plain / own * faster


def ratios(results: dict[str, Any]) -> str:
    """Compare the ratios of the plain reference to ours with what is aimed at."""
    records, rows, missing = results["records"], [], set()
    low = (precisions_in(records) or ["fp32"])[-1]
    for row in cells.ROWS:
        phase = row.cell.phases[0]
        key = "peak" if row.quantity == "bytes" else "seconds"
        write = gib if key == "peak" else seconds
        measured = {k: one(records, row.plain(k)) for k in plain_sizes(row.cell.classes)}
        plain = points_of(measured, phase, key)
        ours = [one(records, row.ours(precision)) for precision in ("fp32", low)]
        if not plain and not any(ours):
            continue
        reference, is_extrapolated = plain_at(plain, row.cell.classes)
        flops, _ = plain_at(points_of(measured, phase, "flops"), row.cell.classes)
        values = [shown(reference, write) + "*" * is_extrapolated]
        for record, target in zip(ours, row.targets, strict=True):
            value = value_of(record, phase, key)
            if row.cell.options:
                missing |= set((record or {}).get("left_out", ()))
            ratio = reference / value if reference and value else None
            fewer = None if key == "peak" else by_flops(records, flops, record, phase)
            values += [
                shown(value, write, record),
                shown(target, lambda x: f"{x:g}x"),
                shown(ratio, lambda x: f"{x:.2f}x"),
                shown(fewer, lambda x: f"{x:.2f}x"),
                NOTHING if ratio is None or target is None else "yes" if ratio >= target else "no",
            ]
        rows.append([row.title, *values])
        if row.title == cells.SHARE_OF:
            values = [NOTHING]
            for record, goal in zip(ours, cells.SHARE_TARGETS, strict=True):
                part = share(record)
                values += [
                    NOTHING,
                    f"{100 * goal:.0f}%",
                    shown(part, lambda x: f"{100 * x:.0f}%"),
                    NOTHING,
                ]
                values += [NOTHING if part is None else "yes" if part >= goal else "no"]
            rows.append([f"share of the matrix rate, {row.title}", *values])
    header = ["", "plain, s or GiB"]
    for name in ("fp32", low):
        header += [f"ours, {name}", f"goal, {name}", f"measured, {name}", "by FLOPs", "met"]
    note = f"\n\nMeasured without {', '.join(sorted(missing))}, which this version lacks."
    return markdown(header, rows) + (note if missing else "")


def public(results: dict[str, Any]) -> str:
    """Compare the plain reference with the methods' public code, machine for machine."""
    records, rows = results["records"], []
    rate = rate_of(records, "float32")
    for p in cells.PUBLIC:
        values = []
        for key in ("flops", "seconds"):
            found: dict[float, list[float]] = {}  # of several processes
            for row in range(len(cells.ROWS) + 1):
                points = plain_points(records, p.method, p.batch, "step", key, row)
                for k, value in points.items():
                    found.setdefault(k, []).append(value)
            medians = {k: median(each) for k, each in found.items()}
            values.append(plain_at(medians, p.classes))
        (flops, _), (time, is_extrapolated) = values
        if flops is None or time is None:
            continue
        theirs = p.seconds * cells.PUBLIC_RATE * 1e9
        ratio = time * rate / theirs
        rows.append(
            [
                f"{p.method} {p.batch} x {p.classes}",
                seconds(p.seconds),
                f"{theirs / 1e9:,.0f}",
                f"{flops / 1e9:,.0f}",
                seconds(time) + "*" * is_extrapolated,
                f"{time * rate / 1e9:,.0f}",
                f"{ratio:.2f}",
                "yes" if abs(ratio - 1) <= cells.PUBLIC_TOLERANCE else "no",
            ]
        )
    header = ["step", "public, s", f"x {cells.PUBLIC_RATE:g} GFLOP/s", "plain, GFLOP counted"]
    header += ["plain, s", "x its rate, GFLOP", "plain / public", "within 15%"]
    return markdown(header, rows)


def variants(results: dict[str, Any]) -> str:
    """Compare the ways of computing a step: time, its ratio to the floor, on a GPU launching."""
    records, rows = results["records"], []
    on_gpu = place_of(results) is PLACES["gpu"]
    columns = {
        title: options
        for title, options in cells.VARIANTS.items()
        if on_gpu or "MODEL.CUDA_GRAPH" not in options
    }
    for method, batch in cells.VARIED:
        for precision in precisions_in(records):
            wanted = {"method": method, "path": "ours", "batch": batch, "precision": precision}
            found = {tuple(r["cell"]["options"]): r for r in pick(records, **wanted)}
            as_it_is = found.get(())
            if len(found) < 2 or as_it_is is None or "step" not in as_it_is:
                continue
            floor = as_it_is["step"]["flops"] / as_it_is["rate"]

            def write(record: dict[str, Any], floor: float = floor) -> str:
                time = record["step"]["seconds"]
                launched = f", {host_share(record['step'])}" if on_gpu else ""
                return f"{seconds(1000 * time)} ms ({time / floor:.1f}{launched})"

            values = [
                NOTHING if r is None else write(r) if "step" in r else r["failed"]
                for r in map(found.get, columns.values())
            ]
            title = f"{method} {batch} x {cells.GROWTH_CLASSES}"
            rows.append([title, shown_precision(as_it_is), *values])
    return markdown(["step", "PREC", *columns], rows)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Return the Markdown of each marker of the page."""
    names = [*("machine", "overview", "step", "memory", "evaluation", "growth", "variants")]
    names += ["ratios", "public"]
    if not results["records"]:
        text = "Not measured yet: `python -m benchmarks.cost`, then `--report`."
        return {name: text for name in [*names, "plot"]}
    made = (
        about(results),
        overview(results),
        by_classes(results, "step", "seconds", seconds),
        by_classes(results, "step", "peak", gib),
        by_classes(results, "evaluation", "batch_seconds", seconds),
        growth_table(results),
        variants(results),
        ratios(results),
        public(results),
    )
    picture = f"![Step time and memory by number of classes](images/{place_of(results).plot.name})"
    picture = picture if is_drawn(results) else "Not measured."
    return {**dict(zip(names, made, strict=True)), "plot": picture}


def is_drawn(results: dict[str, Any]) -> bool:
    """Return whether there is anything to draw: steps of the cost table."""
    return bool(pick(results["records"], batch=0, precision="fp32"))


def page(text: str, parts: dict[str, str]) -> str:
    """Put parts between a page's markers, ``<!-- cost:NAME -->`` and ``<!-- /cost:NAME -->``."""
    for name in re.findall(r"<!-- cost:(\w+) -->", text):
        text = filled(text, f"cost:{name}", parts[name])
    return text


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw step time and memory of all methods in fp32 by number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cost"  # the same names of elements each time
    from matplotlib import pyplot

    records = results["records"]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharex=True)
    kinds = (("seconds", 1, "seconds a step"), ("peak", GIB, "GiB beside the model"))
    for ax, (key, unit, label) in zip(axes, kinds, strict=True):
        for i, method in enumerate(methods_in(records)):
            wanted = {"method": method, "batch": 0, "precision": "fp32"}
            for path_, style in (("ours", "-"), ("plain", ":")):
                found = pick(records, path=path_, **wanted)
                measured = {r["cell"]["classes"]: r for r in found}
                points = sorted(points_of(measured, "step", key).items())
                if points:
                    x, values = zip(*points, strict=True)
                    name = method if path_ == "ours" else None
                    y = [value / unit for value in values]
                    marker = "osD^v"[i // 10 % 5]
                    ax.plot(x, y, style, color=f"C{i % 10}", marker=marker, ms=3, label=name)
        ax.set(xscale="log", yscale="log", xlabel="classes", ylabel=label)
        ax.grid(alpha=0.3)
    axes[0].set_title("ViT-B/16, fp32, the papers' batches; dotted: plain reference", loc="left")
    if axes[1].lines:
        axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def place_of(results: dict[str, Any]) -> Place:
    return PLACES["cpu" if results["machine"]["device"] == "cpu" else "gpu"]


def stored(root: Path, place: Place) -> dict[str, Any]:
    """Return the measurements that a page shows."""
    return read_json(str(root / place.results))


def store(results: dict[str, Any], root: Path) -> None:
    """Keep measurements in the repository, and write the page, and what can be drawn, from them."""
    place = place_of(results)
    with atomic_write(str(root / place.results)) as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    text = (root / place.page).read_text(encoding="utf-8")
    with atomic_write(str(root / place.page)) as file:
        file.write(page(text, tables(results)))
    if is_drawn(results):
        plot(results, root / place.plot)


# Measurements with a table of their own ---------------------------------------------------------


def profile_table(records: Records) -> str:
    """Show of each profiled step the time, its floor, and the shares of kinds of operations."""
    rows, kinds = [], list(records[0]["shares"]) if records else []
    for record in records:
        shares = [f"{100 * record['shares'][kind]:.0f}%" for kind in kinds]
        floor = record["flops"] / record["rate"]
        time = seconds(record["seconds"])
        rows.append([record["step"], record["precision"], time, seconds(floor), *shares])
    return markdown(["step", "PREC", "s", "at the matrix rate, s", *kinds], rows)


def limited_table(records: Records) -> str:
    """Show what each process had of the memory that was free, and whether it took its steps."""
    rows = []
    for record in records:
        cell, peak = record["cell"], value_of(record, "step", "peak")
        whole = None if peak is None else record["resident"] + peak
        batch = str(record.get("batch", NOTHING))
        values = [f"{cell['classes']:,}", batch, gib(record["free"]), shown(whole, gib, record)]
        rows.append([cell["method"], *values])
    return markdown(["method", "classes", "batch", "free, GiB", "taken, GiB"], rows)


TABLES = {"profile": profile_table, "limited": limited_table}


def kept(root: Path, name: str) -> Records:
    """Return the records of one of ``TABLES`` that are in the repository."""
    return read_json(str(root / f"benchmarks/results/{name}.json"))


def keep(root: Path, name: str, records: Records) -> None:
    """Keep records in the repository, and write their table into the page."""
    with atomic_write(str(root / f"benchmarks/results/{name}.json")) as file:
        json.dump(records, file, indent=1)
        file.write("\n")
    path = root / PLACES["cpu"].page
    text = path.read_text(encoding="utf-8")
    with atomic_write(str(path)) as file:
        file.write(filled(text, name, TABLES[name](records)))
