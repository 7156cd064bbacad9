"""What a sweep costs besides its runs, which here only sleep.

    python -m benchmarks.sweep

Half of the runs are trainings, half are tests that each wait for one. Per run there are the time
beyond the sleeping, most of which makes processes, and the processor time of the sweep's own
process, which plans, starts and watches; then the time of the same command where all is finished.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SLEEP_S = 0.1
TRAIN = f"""
import pathlib, time

def main(arguments):
    folder = pathlib.Path(arguments[arguments.index("--output-dir") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    time.sleep({SLEEP_S})
    (folder / "results.json").write_text("{{}}")
    return 0
"""


def make_checkout(folder: Path) -> None:
    """Make a checkout whose train.py only sleeps, and the working folder of this process."""
    for name in ("experiments", "dassl"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "train.py").write_text(TRAIN)
    (folder / "torch.py").write_text("def set_num_threads(number): pass")
    os.chdir(folder)
    sys.path.insert(0, str(folder))


def measured(count: int, jobs: int) -> tuple[str, ...]:
    """Return the row of a sweep of so many runs."""
    from configs.protocols import BASE2NEW
    from experiments.executors.local import Local
    from experiments.runs import runs_of
    from experiments.sweep import sweep

    def do() -> float:
        start = time.perf_counter()
        runs = [
            run
            for seed in range(count // 2)
            for run in runs_of(BASE2NEW, "CoOp", "dtd", seed, output_dir=f"output{count}")
        ]
        with redirect_stdout(io.StringIO()):
            assert sweep(runs, Local(jobs)) == 0
        return time.perf_counter() - start

    own = time.process_time()
    seconds = do()
    own = time.process_time() - own
    beyond = (seconds - count * SLEEP_S / jobs) / count
    return (
        *(str(count), f"{seconds:.1f} s", f"{1000 * beyond:.1f} ms"),
        *(f"{1000 * own / count:.2f} ms", f"{do():.2f} s"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # Here and not above: the processes of the runs import this module, too.
    from dassl.command import Parser
    from dassl.table import print_table
    from experiments.table import number_above_0

    parser = Parser(prog="python -m benchmarks.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", type=number_above_0, default=[200, 1000, 5000])
    parser.add_argument("--jobs", type=number_above_0, default=os.cpu_count() or 1)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        make_checkout(Path(folder))
        rows = [measured(count, arguments.jobs) for count in arguments.runs]
    print_table(("Runs", "Time", "Beyond", "Scheduler", "Finished before"), rows)
    return 0


if __name__ == "__main__":
    from dassl.command import run

    sys.exit(run(main))
