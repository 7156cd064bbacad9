"""Kill a run with SIGKILL, at random moments and at each of its file operations, and resume it.

    python -m benchmarks.kill_runs

The run is CoOp on five classes of Digits, 2 epochs, with all that a run writes. After each kill the
same command is given again and must end with the very files of a run that nobody disturbed: the
same names and the same bytes, apart from the wall time, the logs and the cuts between TensorBoard's
files, whose points of training and validation must be the same. Epochs that were trained again are
counted.

Processes are forked from one that has only imported, so that each begins with its imports done.
Linux only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from dassl.command import Parser
from dassl.engine import resume
from dassl.utils import tools
from experiments.executors.local import context_of_runs

REPOSITORY = Path(train.__file__).parent
EPOCHS = 2
RUN = "run"  # name of the output folder, in a folder of its own for each trial
COUNT = "operations"  # name of the file with the number of a run's operations
# audit events besides "open"; writing and fsync have none and are counted apart
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link")


def command(root: Path) -> list[str]:
    """Return the command line of the run."""
    return [
        *("--trainer", "CoOp", "--seed", "1", "--root", str(root), "--output-dir", RUN),
        *("--dataset-config-file", str(REPOSITORY / "configs/datasets/digits.yaml")),
        *("--config-file", str(REPOSITORY / "configs/trainers/CoOp/vit_mini.yaml")),
        *("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", str(EPOCHS), "TRAIN.CHECKPOINT_FREQ", "1"),
        *("DATASET.SUBSAMPLE_CLASSES", "base"),
        *("TEST.FINAL_MODEL", "best_val", "TEST.SAVE_LOGITS", "True"),
        *("TEST.COMPUTE_CMAT", "True", "USE_CUDA", "False", "DATALOADER.NUM_WORKERS", "2"),
    ]


def start(
    arguments: Sequence[str], folder: Path, prepare: Callable[[], Any] | None = None
) -> BaseProcess:
    """Start a process that prepares itself and runs a command line in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    process = context_of_runs().Process(target=_run, args=(arguments, folder, prepare))
    process.start()
    return process


def _run(arguments: Sequence[str], folder: Path, prepare: Callable[[], Any] | None) -> None:
    torch.set_num_threads(1)  # as all processes here have: sums depend on the number
    os.chdir(folder)
    with open("printed", "a") as file, contextlib.redirect_stdout(file):
        with contextlib.redirect_stderr(file):
            if prepare:
                prepare()
            sys.exit(train.main(list(arguments)))


def end(process: BaseProcess) -> int | None:
    """Wait for a process; return its exit code, or the negative number of its signal."""
    process.join()
    return process.exitcode


def save_every_epoch() -> None:
    """Write the resume file after every epoch, however short."""
    resume.SAVE_INTERVAL = 0.0


class Operations:
    """Counts what this process does to files, and kills it before, or within, one of them.

    Args:
        last: number of the operation at which the process dies; 0: never.
    """

    def __init__(self, last: int = 0) -> None:
        self.count = 0
        self.last = last

    def watch(self) -> None:
        """Begin to count; the file COUNT has the number so far."""
        self.pid = os.getpid()
        self.report = os.open(COUNT, os.O_WRONLY | os.O_CREAT)
        save_every_epoch()
        fsync, write = os.fsync, tools._Target.write

        def counted_fsync(descriptor: int) -> None:
            self.happens()
            fsync(descriptor)

        def counted_write(file: tools._Target, data: Any) -> int:
            half = memoryview(data).nbytes // 2
            self.happens(lambda: write(file, memoryview(data).cast("B")[:half]))
            return write(file, data)

        mock.patch.object(os, "fsync", counted_fsync).start()
        mock.patch.object(tools._Target, "write", counted_write).start()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in CHANGES or (event == "open" and arguments[2] & writes):
            if arguments[0] != os.devnull:
                self.happens()

    def happens(self, first: Callable[[], Any] = lambda: None) -> None:
        if os.getpid() != self.pid:  # a process of the loader
            return
        self.count += 1
        os.pwrite(self.report, str(self.count).encode(), 0)
        if self.count == self.last:
            first()
            os.kill(os.getpid(), signal.SIGKILL)


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Read TensorBoard's points of training and validation: value by tag and step."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each cut
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: {point.step: point.value for point in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
        # a run that is killed in its final evaluation is evaluated again without curves
        if not tag.startswith("test/")
    }


def contents(folder: Path) -> dict[str, Any]:
    """Read what must be the same in each finished run's folder, by the names of the files."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith(("log.txt", "tensorboard")):
            continue
        found[name] = path.read_bytes()
        if name == "results.json":
            found[name] = {**json.loads(found[name]), "wall_time_s": None, "peak_memory_mb": None}
    return {**found, "tensorboard": curves(folder / "tensorboard")}


def trained_again(folder: Path) -> int:
    """Count the epochs, of one batch each, that were trained more than once."""
    logs = [path.read_text() for path in folder.glob("log.txt*")]
    return sum(text.count(" batch [1/1] ") for text in logs) - EPOCHS


class Trials:
    """Kills, and what became of the runs.

    Args:
        work: folder for all files.
    """

    def __init__(self, work: Path) -> None:
        self.work, self.root = work, work / "data"
        self.kills = self.repeated = self.most = self.different = 0
        self.failures: list[str] = []
        self.command = command(self.root)
        assert end(start(self.command, work)) == 0  # draws Digits
        begin = time.monotonic()
        assert end(start(self.command, work / "whole")) == 0
        self.duration = time.monotonic() - begin
        self.expected = contents(work / "whole" / RUN)
        self.forget_samples()
        assert end(start(self.command, work / "counted", Operations().watch)) == 0
        self.operations = int((work / "counted" / COUNT).read_text())

    def forget_samples(self) -> None:
        """Remove the few-shot samples, so that a run draws and writes them again."""
        shutil.rmtree(self.root / "digits" / "split_fewshot", ignore_errors=True)

    def at_operation(self, number: int) -> None:
        """Kill a run at the operation of this number, resume it and compare."""
        self.forget_samples()
        folder = self.work / f"operation-{number}"
        self.killed(end(start(self.command, folder, Operations(number).watch)), folder)
        self.finish(folder, save_every_epoch)

    def at_moment(self, moment: float, folder: Path) -> bool:
        """Kill the run in a folder after so many seconds; return whether it was still running."""
        self.forget_samples()
        process = start(self.command, folder)
        time.sleep(moment)
        process.kill()
        return self.killed(end(process), folder)

    def killed(self, code: int | None, folder: Path) -> bool:
        self.kills += code == -signal.SIGKILL
        if code not in (-signal.SIGKILL, 0):
            self.fail(f"{folder.name}: exit code {code} instead of a kill")
        return code == -signal.SIGKILL

    def fail(self, what: str) -> None:
        self.different += 1
        self.failures.append(what)

    def finish(self, folder: Path, prepare: Callable[[], Any] | None = None) -> None:
        """Give the command again, undisturbed, and compare what the run leaves."""
        code = end(start(self.command, folder, prepare))
        if code != 0:
            self.fail(f"{folder.name}: exit code {code} of the resumed run")
            return
        found = contents(folder / RUN)
        names = found.keys() | self.expected.keys()
        wrong = sorted(x for x in names if found.get(x) != self.expected.get(x))
        if wrong:
            self.fail(f"{folder.name}: {', '.join(wrong)} differ")
        again = trained_again(folder / RUN)
        self.repeated, self.most = self.repeated + again, max(self.most, again)
        shutil.rmtree(folder)

    def line(self, what: str) -> str:
        """Describe the kills since the last call, as a row of a table."""
        row = f"| {what} | {self.kills} | {self.repeated} | {self.most} | {self.different} |"
        self.kills = self.repeated = self.most = self.different = 0
        return row


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20, help="number of random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as other processes have: sums depend on the number
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        print(
            "| SIGKILL | kills | epochs trained again | most in one run | "
            "runs that end differently |\n|---|---|---|---|---|"
        )
        for number in range(1, trials.operations + 1):
            trials.at_operation(number)
        print(trials.line("at each file operation"), flush=True)
        draw = random.Random(args.seed).uniform
        for number in range(args.moments):
            place = Path(folder) / f"moment-{number}"
            while not trials.at_moment(draw(0, trials.duration), place):
                shutil.rmtree(place)  # the run was over before
            trials.finish(place)
        print(trials.line("at a random moment of a run"), flush=True)
        place = Path(folder) / "moments"
        for _ in range(args.moments):
            trials.at_moment(draw(0, trials.duration), place)
        trials.finish(place)
        print(trials.line("at random moments of one run, one after the other"), flush=True)
    print(*trials.failures, sep="\n")
    return 1 if trials.failures else 0


if __name__ == "__main__":
    sys.exit(main())
