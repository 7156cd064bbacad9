"""What every registered method costs at the size of ViT-B/16, with random weights.

    python -m benchmarks.cost                    measure, or go on measuring
    python -m benchmarks.cost --report           put what was measured into the pages of docs/

Each measurement is a process of its own and leaves a JSON file in --output-dir; --report copies
them to benchmarks/results. One that is in either place, from the same kind of machine, versions
and code, is not made again, so that a stopped run goes on, here or elsewhere, and --parts,
--methods, --classes and --precision can take a run in pieces. A measurement that fails, as for lack
of memory, is shown as what it is. Other programs change the figures: leave the machine idle.
docs/performance.md says how to read the tables; those of a GPU are in docs/performance-gpu.md.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.cost import cells, report
from benchmarks.cost.cells import Cell
from dassl.command import Parser, number, run, say
from dassl.errors import UserError, check_choice, shown
from dassl.json_file import read_json
from dassl.utils.memory import free_bytes
from dassl.utils.tools import atomic_write
from experiments.sweep import check_folders

ROOT = Path(__file__).parents[2]
# What the figures depend on; measurements of other code are made again.
CODE = (
    *("clip", "trainers", "dassl/engine", "dassl/optim", "configs/trainers", "configs/_base"),
    *("benchmarks/plain.py", "benchmarks/cost/measure.py"),
)
UNREAD = "_fast"  # ends the names of config files that no measurement reads
COMMAND = "python -m benchmarks.cost"  # in parts and places of one's own
PARTS = ("table", "ratios", "growth", "variants")
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "amx_tile", "bf16")
KEPT_FREE = 0.05  # share of the free memory that no measurement may have
WARM_UPS = {"step": 2, "evaluation": 1}
ENDED = "ended with exit code"
ByCell = dict[str, dict[str, Any]]
KILLED_AFTER = 10  # time limits, in which a single round must end


def code_version() -> str:
    """Return a short hash of the files that figures depend on."""
    digest = hashlib.sha256()
    for name in CODE:
        path = ROOT / name
        files = [path] if path.is_file() else sorted(path.rglob("*.[py]*"))
        for file in files:
            if file.suffix in (".py", ".yaml") and not file.stem.endswith(UNREAD):
                digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def machine(threads: int) -> dict[str, Any]:
    """Describe what the figures depend on besides the code."""
    import torch

    cpu = proc("cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine()
    flags = (proc("cpuinfo", r"(?:flags|Features)\s*:\s*(.+)") or "").split()
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "low precision": [flag for flag in BF16_FLAGS if flag in flags],
        "memory": round(total_memory() / report.GIB) * report.GIB,
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def proc(file: str, pattern: str) -> str:
    """Find something in a file of /proc; "" where that is not there."""
    try:
        found = re.search(pattern, Path("/proc", file).read_text(errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""


def total_memory() -> int:
    """Return the machine's memory in bytes; that of the GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return 1024 * int(proc("meminfo", r"MemTotal:\s+(\d+)") or 0)


class Child:
    """The process of one measurement."""

    def __init__(self, cell: Cell, free: int, threads: int, limit: float, log: Any):
        command = [sys.executable, "-m", "benchmarks.cost.measure"]
        command += [json.dumps(dataclasses.asdict(cell)), str(free)]
        places = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), PYTHONPATH=os.pathsep.join(places))
        self.cell, self.limit = cell, limit
        self.record: dict[str, Any] = {"cell": dataclasses.asdict(cell), "failed": ""}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=env,
        )
        self.record |= self.read()

    def read(self) -> dict[str, Any]:
        """Wait for an answer; say what ended the process where there is none."""
        assert self.process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(self.limit, stop)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        if late.is_set():
            return {"failed": "over the time limit"}
        return {"failed": "out of memory" if code == -9 else f"{ENDED} {code}"}

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        with suppress(OSError):  # it has died, which reading says
            self.process.stdin.write(f"{what}\n")
            self.process.stdin.flush()
        answer = self.read()
        self.record["failed"] = answer.get("failed", "")
        return answer

    def warm_up(self) -> None:
        """Do everything once, which also counts FLOPs and memory."""
        for what in self.cell.phases:
            if not self.record["failed"] and not (what == "step" and self.record["no_step"]):
                found = self.ask(what)
                if not self.record["failed"]:
                    self.record[what] = {**found, "rounds": 0}

    def keep(self, what: str, rounds: Sequence[dict[str, Any]]) -> None:
        """Put the medians of the rounds in place of the warm-up's times."""
        if rounds:
            medians = {key: report.median([each[key] for each in rounds]) for key in rounds[0]}
            self.record[what] |= {**medians, "rounds": len(rounds)}

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def measure(group: Sequence[Cell], options: Any, log: Any) -> list[dict[str, Any]]:
    """Measure cells by turns, so that what else the machine does meets all of them alike."""
    import torch

    limit, children = KILLED_AFTER * options.time_limit, list[Child]()
    free = int(free_bytes(torch.device("cpu")) * (1 - KEPT_FREE))
    try:
        for cell in group:
            child = Child(cell, free, options.threads, limit, log)
            children.append(child)
            child.warm_up()
            if len(group) > 1:  # all of them stay, with what they have taken
                peaks = (child.record.get(what, {}).get("peak", 0) for what in cell.phases)
                free -= child.record.get("resident", 0) + max(peaks)
        for what in group[0].phases:
            turns(children, what, options)
    finally:
        for child in children:
            child.end()
    return [child.record for child in children]


def turns(children: Sequence[Child], what: str, options: Any) -> None:
    """Repeat a phase of all children, one after the other in each round."""
    found: dict[int, list[dict[str, Any]]] = {i: [] for i in range(len(children))}
    start = time.monotonic()
    for _ in range(options.repeats):
        for i, child in enumerate(children):
            if what in child.record and not child.record["failed"]:
                answer = child.ask(what)
                if not child.record["failed"]:
                    found[i].append(answer)
        if time.monotonic() - start > options.time_limit:
            break
    for i, child in enumerate(children):
        child.keep(what, found[i])


# What there is to do -----------------------------------------------------------------------------


def methods_of(names: Sequence[str] | None) -> list[str]:
    """Return the registered methods, or those that are named."""
    import trainers
    from dassl.engine import TRAINER_REGISTRY
    from trainers.trainer import MethodTrainer

    assert trainers  # registers them
    known = [
        name
        for name in TRAINER_REGISTRY.registered_names()
        if issubclass(TRAINER_REGISTRY.get(name), MethodTrainer)
    ]
    for name in names or ():
        check_choice("--methods", name, known)
    return [name for name in known if not names or name in names]


def low_precision() -> str:
    """Name the precision that is compared with fp32: the device's own choice, or bf16."""
    from dassl.engine.optimize import PRECISIONS

    return "auto" if "auto" in PRECISIONS else "bf16"


def groups_of(options: Any) -> list[list[Cell]]:
    """Return the cells of all parts; those of a group are measured by turns."""
    import torch

    from benchmarks import plain
    from benchmarks.cost.measure import config, prompt_keys, settings_of

    methods = methods_of(options.methods)
    groups: list[list[Cell]] = []  # of ViT-B/16
    if "ratios" in options.parts:
        for row in cells.ROWS:
            if row.cell.method in methods:
                groups.append(row.cells(options.precision[-1]))
    if "table" in options.parts:
        table = cells.table_cells(methods, list(plain.METHODS), options.classes, options.precision)
        groups += [[cell] for cell in table]
    if "growth" in options.parts:
        for method in methods:
            cfg = config(Cell(method, cells.GROWTH_CLASSES))
            batch = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
            has_prompts = bool(prompt_keys(settings_of(cfg)))
            groups += [[cell] for cell in cells.growth_cells(method, batch, has_prompts)]
    if "variants" in options.parts:
        has_graphs = torch.cuda.is_available()
        batches, precision = dict(cells.VARIED), options.precision[-1]
        for method in methods:
            if method in batches:
                found = cells.variant_cells(method, batches[method], precision, has_graphs)
                groups += [[cell] for cell in found]
            elif has_graphs and (kind := kind_of(method)).steps:
                groups.append([cells.graph_cell(method, kind.batch, precision)])
    return [[cell.but(model=options.model) for cell in group] for group in groups]


@functools.cache
def kind_of(method: str) -> cells.Kind:
    """Return what the estimate is to know of a method, from an evaluation of the smallest size."""
    from benchmarks.cost.measure import Ours
    from trainers.features import Images

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        made = Ours(Cell(method, 2, views=True, model=cells.MODELS[1]), Path(folder))
    assert isinstance(made.tested, Images)  # the cell's features are known
    read = mock.Mock(return_value=made.test_images)
    made.tested = Images(read, made.tested.features)
    made.classes()
    made.test()
    return cells.Kind(
        made.batch,
        steps=not made.no_step,
        images_alone=not read.called,
        per_image=made.model.conditional,
    )


def estimate(groups: Iterable[Sequence[Cell]], options: Any, rate: float) -> float:
    """Estimate the seconds that groups take at a rate in FLOP/s, within a factor of about two."""
    total = 0.0
    for group in groups:
        total += cells.START_SECONDS * len(group)
        for phase in group[0].phases:
            each = [cells.rough_flops(cell, phase, kind_of(cell.method)) / rate for cell in group]
            turns_ = min(options.repeats, 1 + options.time_limit // sum(each)) if sum(each) else 0
            total += sum(each) * (turns_ + WARM_UPS[phase])
    return total


def path_of(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.json"


def finished(folder: Path, whose: dict[str, Any]) -> ByCell:
    """Return the records of this machine and code in a folder, by the names of their cells.

    A process that ended by itself, as for a missing package, has measured nothing.
    """
    found = {}
    for path in sorted(folder.glob("*-*.json")):
        record = read_json(str(path))
        if not isinstance(record, dict) or not isinstance(record.get("failed"), str):
            raise UserError(f"{path}: expected a measurement, got {shown(record)}")
        if record.pop("whose", None) == whose and not record["failed"].startswith(ENDED):
            found[path.stem] = {**record, "code": whose["code"]}
    return found


def stored(whose: dict[str, Any]) -> ByCell:
    """Return the repository's records of this machine by the names of their cells."""
    results = report.stored(ROOT, report.place_of(whose))
    if any(results[key] != whose[key] for key in ("machine", "model")):
        return {}
    return {Cell.of(record["cell"]).name: record for record in results["records"]}


def failed_before(cell: Cell, done: ByCell) -> bool:
    """Return whether memory was too short for the same with fewer classes."""
    smaller = (cell.but(classes=k).name for k in cells.CLASSES if k < cell.classes)
    return any(done.get(name, {}).get("failed") == "out of memory" for name in smaller)


def is_missing(cell: Cell, done: ByCell) -> bool:
    """Return whether there is no record of a cell, or one of another cell of this name."""
    return cell.name not in done or Cell.of(done[cell.name]["cell"]) != cell


def measure_all(options: Any, folder: Path, whose: dict[str, Any]) -> None:
    """Make the measurements that are missing, and say how long that takes.

    Raises:
        UserError: the folder cannot be written, or the code was changed meanwhile.
    """
    import torch

    from benchmarks.cost.measure import matrix_rate

    old = {name: r for name, r in stored(whose).items() if r["code"] == whose["code"]}
    done = {**old, **finished(folder, whose)}
    todo = [group for group in groups_of(options) if any(is_missing(c, done) for c in group)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    minutes = estimate(todo, options, matrix_rate(torch.float32, device)) / 60
    say(f"{len(todo)} measurements to make, {len(done)} made: about {minutes:.0f} minutes")
    begun = time.monotonic()
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        for i, group in enumerate(todo, 1):
            if len(group) == 1 and failed_before(group[0], done):
                values = dataclasses.asdict(group[0])
                records = [{"cell": values, "failed": "out of memory"}]
            else:
                records = measure(group, options, log)
            if (code := code_version()) != whose["code"]:
                raise UserError(f"code: expected {whose['code']} all along, got {code}")
            for cell, record in zip(group, records, strict=True):
                record |= {"whose": whose, "date": datetime.date.today().isoformat()}
                done[cell.name] = record
                with atomic_write(str(path_of(folder, cell))) as file:
                    json.dump(record, file)
                elapsed = (time.monotonic() - begun) / 60
                say(f"{i}/{len(todo)} {elapsed:.0f} min  {cell.name}: {report.in_short(record)}")


def collect(folder: Path, whose: dict[str, Any]) -> dict[str, Any]:
    """Put the records of this machine together: those of a folder, and else those that are stored.

    Raises:
        UserError: there are none.
    """
    found = {**stored(whose), **finished(folder, whose)}
    if not found:
        expected = "expected measurements of this machine, code and model"
        raise UserError(f"--output-dir: {expected}, got none in '{folder}'")
    about = {key: whose[key] for key in ("machine", "model")}
    return {**about, "command": COMMAND, "records": [found[name] for name in sorted(found)]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog=COMMAND, description=__doc__.splitlines()[0])
    positive = number(int, "a whole number of at least 1", lambda n: n >= 1)
    seconds = number(float, "seconds above 0", lambda s: 0 < s < float("inf"))
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path("output/cost"), help="where measurements are kept")
    add("--model", choices=cells.MODELS, default=cells.MODELS[0], help="small is a rehearsal")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--methods", nargs="+", help="registered trainers; all of them by default")
    add("--classes", nargs="+", type=positive, default=list(cells.CLASSES))
    add("--precision", nargs="+", help="PREC of the methods (fp32, and auto or else bf16)")
    add("--threads", type=positive, default=0, help="of torch; its own choice by default")
    add("--repeats", type=positive, default=3, help="rounds after the warm-up; medians are kept")
    add("--time-limit", type=seconds, default=120.0, help="seconds after which no round begins")
    add("--report", action="store_true", help="measure nothing; write the page of docs/")
    options = parser.parse_args(argv)
    import torch

    from dassl.engine.optimize import PRECISIONS

    options.precision = options.precision or ["fp32", low_precision()]
    for name in options.precision:
        check_choice("--precision", name, PRECISIONS)
    if options.report and options.model != cells.MODELS[0]:
        parser.error(f"--report: expected --model {cells.MODELS[0]}, got {options.model}")
    folder = str(options.output_dir)
    check_folders(root=folder, output_dir=folder, written=not options.report)
    options.threads = options.threads or torch.get_num_threads()
    whose = {"machine": machine(options.threads), "code": code_version(), "model": options.model}
    if not options.report:
        measure_all(options, options.output_dir, whose)
    if options.report and not finished(options.output_dir, whose):
        where = f"No measurements of this machine, code and model in {options.output_dir}"
        say(f"{where}: the pages are written from what is stored")
        for place in report.PLACES.values():
            report.store(report.stored(ROOT, place), ROOT)
        return 0
    results = collect(options.output_dir, whose)
    if options.report:
        kept = len(report.stored(ROOT, report.place_of(whose))["records"])
        if (got := len(results["records"])) < kept:
            what = f"expected as many measurements as another machine's that are stored, {kept}"
            raise UserError(f"--report: {what}, got {got}")
        report.store(results, ROOT)
    else:
        say("\n\n".join(report.tables(results).values()))
        report.plot(results, options.output_dir / "cost.svg")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
