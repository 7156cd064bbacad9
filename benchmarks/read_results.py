"""Time ``python -m experiments table OUTPUT`` on many finished runs.

    python -m benchmarks.read_results --runs 5000

The runs are of all methods, datasets of the papers, protocols and three seeds, as many as asked
for; their results.json have the size of real ones, with accuracies drawn at random. The time is
that of the whole command in a process of its own, with the imports.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.choice import PUBLIC
from configs.protocols import PROTOCOLS
from dassl.command import Parser, number, run, say
from experiments.found import dataset_names
from experiments.runs import Run, runs_of
from experiments.table import known_methods

CLASSES = 100  # accuracies of classes in each results.json


def planned(output: Path) -> Iterator[Run]:
    """Yield the runs of all methods, dataset by dataset; twice are those that protocols share."""
    for protocol in PROTOCOLS.values():
        for dataset in ("imagenet",) if protocol.transfers else PUBLIC:
            for method in known_methods():
                for seed in (1, 2, 3):
                    for shots in protocol.shots:
                        place = (protocol, method, dataset, seed, shots)
                        yield from runs_of(*place, output_dir=output)


def results_of(planned_run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """Return results as a run writes them, with a random accuracy."""
    total = 5000
    correct = random.randint(total // 2, total)
    config["TRAINER"]["NAME"], config["SEED"] = planned_run.trainer, planned_run.seed
    config["DATASET"] |= {
        "NAME": dataset_names()[planned_run.target],
        "NUM_SHOTS": planned_run.shots,
        "SUBSAMPLE_CLASSES": planned_run.step.test,
    }
    return {
        "accuracy": 100 * correct / total,
        "per_class_accuracy": {f"class {i}": 100 * random.random() for i in range(CLASSES)},
        "total": total,
        "correct": correct,
        "split": "test",
        "trainer": planned_run.trainer,
        "precision": "fp16",
        "versions": {"torch": "2.14.1"},
        "config": config,
    }


def write(output: Path, n: int) -> int:
    """Write the results of n runs; return the bytes of one."""
    import trainers  # noqa: F401  declares the keys
    from dassl.config import get_cfg_default, to_dict

    configs = {name: to_dict(get_cfg_default(name)) for name in known_methods()}
    folders = {each.folder: each for each in planned(output)}
    size = 0
    for folder, each in list(folders.items())[:n]:
        folder.mkdir(parents=True)
        text = json.dumps(results_of(each, configs[each.trainer]), indent=4)
        (folder / "results.json").write_text(text, encoding="utf-8")
        size = len(text)
    return size


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(prog="python -m benchmarks.read_results", description=__doc__.split("\n")[0])
    positive = number(int, "a whole number above 0", lambda value: value > 0)
    parser.add_argument("--runs", type=positive, default=5000, help="(default: 5000)")
    arguments: argparse.Namespace = parser.parse_args(argv)
    random.seed(1)
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), arguments.runs)
        start = time.monotonic()
        command = [sys.executable, "-m", "experiments", "table", folder, "--format", "csv"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.monotonic() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cells = len(done.stdout.splitlines()) - 1
    say(
        f"{arguments.runs} results of {size / 1000:.0f} kB, {cells} cells: {seconds:.1f} s, "
        f"of which the processor works {used.ru_utime + used.ru_stime:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
