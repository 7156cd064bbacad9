"""Which methods take a training step with 1,000 classes in the memory that is free, on a CPU.

    python -m benchmarks.cost.limited        in a control group, a container for example, of 8 GiB

Each method takes two steps at the size of ViT-B/16, in fp32 and in a process of its own, at the
paper's batch; CoCoOp and ProMPT, which encode the classes for each image, at a batch of 8.  Besides
its own process there is this one, which takes some memory, too.  Other programs do not matter: no
time is shown.  What was measured is kept as benchmarks/results/limited.json, which
docs/performance.md shows; methods that are not named keep what they have.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost import report
from benchmarks.cost.__main__ import Child, code_version, methods_of
from benchmarks.cost.cells import Cell
from dassl.command import Parser, run, say
from dassl.utils.memory import free_bytes

ROOT = Path(__file__).parents[2]
CLASSES = 1000
BATCHES = {"CoCoOp": 8, "ProMPT": 8}  # others: the paper's
MOST_SECONDS = 3600.0  # of a step


def take_steps(cell: Cell, threads: int) -> dict[str, Any]:
    """Take two steps in a process of its own; return what it took of what was free, in bytes."""
    free = int(free_bytes(torch.device("cpu")))
    with tempfile.TemporaryFile() as log:
        child = Child(cell, free, threads, MOST_SECONDS, log)
        try:
            child.warm_up()
        finally:
            child.end()
    return {**child.record, "free": free}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.cost.limited", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--methods", nargs="+", help="registered trainers; all of them by default")
    options = parser.parse_args(argv)
    found = {record["cell"]["method"]: record for record in report.kept(ROOT, "limited")}
    for method in methods_of(options.methods):
        cell = Cell(method, CLASSES, batch=BATCHES.get(method, 0), phases=("step",))
        record = take_steps(cell, torch.get_num_threads())
        if record.get("no_step"):
            continue
        record |= {"code": code_version(), "date": datetime.date.today().isoformat()}
        found[method] = record
        say(report.limited_table([record]))
        report.keep(ROOT, "limited", [found[name] for name in sorted(found)])
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
