"""Trains and tests methods on the embedded datasets and prints one table of their accuracies.

    python -m benchmarks.table --datasets shapes --methods ZeroshotCLIP CoOp HiCroPL --seeds 1 2 3

Base-to-novel: a method is trained on 16 images of each base class; its checkpoint is then loaded
again, once for the base and once for the novel classes. Few-shot: it is trained and tested on all
classes. Every run is one call of ``train.main``, as on the command line. A run that is finished
is not repeated, and one that was stopped goes on, so the same command may be given again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path("configs")
SHOTS = 16
INTERRUPTED = 130  # exit code of a run that was told to stop
UNTRAINED = ("ZeroshotCLIP", "ZeroshotCLIP2")
CLOSED_SET = ("LinearProbe",)  # know the classes that they were trained on and no others
HEADER = ("Dataset", "Method", "Base", "Novel", "Harmonic mean", "All classes")


class RunFailed(Exception):
    """A run ended with an exit code other than 0; the message is what it printed last."""


@dataclass(frozen=True)
class Job:
    """One method on one dataset with one seed, under one of the two protocols.

    ``subset`` is "base" for base-to-novel and "all" for few-shot; "val" trains on the base classes
    and tests on their validation images. ``options`` are KEY VALUE pairs for the config.
    """

    method: str
    dataset: str
    seed: int
    subset: str
    root: str
    output_dir: Path
    options: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """The method with its options, as a name for a folder."""
        pairs = zip(self.options[::2], self.options[1::2], strict=True)
        return ",".join([self.method, *(f"{key.rpartition('.')[2]}={v}" for key, v in pairs)])

    def __str__(self) -> str:
        protocol = {"base": "base to novel", "all": "few-shot", "val": "validation"}[self.subset]
        return f"{self.variant} on {self.dataset}, {protocol}, seed {self.seed}"

    def folder(self, part: str) -> Path:
        """Where the run ``part`` ("train_base", "base", "new", "all" or "val") keeps its files."""
        return self.output_dir / self.dataset / self.variant / f"seed{self.seed}" / part

    def accuracy(self, part: str) -> float:
        """The accuracy, in percent, that the finished run ``part`` left."""
        return float(json.loads((self.folder(part) / "results.json").read_text())["accuracy"])

    def runs(self) -> list[tuple[Path, list[str]]]:
        """Each run's folder and its arguments for ``train.main``, in the order of need."""
        if self.method in UNTRAINED:
            parts = ("base", "new") if self.subset == "base" else ("all",)
            return [self._run(part, part, "--eval-only") for part in parts]
        if self.subset == "all":
            return [self._run("all", "all")]
        if self.subset == "val":
            return [self._run("val", "base", "TEST.SPLIT", "val")]
        model = ("--eval-only", "--model-dir", str(self.folder("train_base")))
        runs = [self._run("train_base", "base"), self._run("base", "base", *model)]
        if self.method not in CLOSED_SET:
            runs.append(self._run("new", "new", *model))
        return runs

    def _run(self, part: str, classes: str, *options: str) -> tuple[Path, list[str]]:
        folder = self.folder(part)
        arguments = [
            *("--root", self.root),
            *("--seed", str(self.seed)),
            *("--trainer", self.method),
            *("--dataset-config-file", str(dataset_config(self.dataset))),
            *("--config-file", str(method_config(self.method))),
            *("--output-dir", str(folder)),
            *options,
            *("DATASET.NUM_SHOTS", str(SHOTS)),
            *("DATASET.SUBSAMPLE_CLASSES", classes),
            *self.options,
        ]
        return folder, arguments


def method_config(method: str) -> Path:
    return CONFIGS / "trainers" / method / "vit_mini.yaml"


def dataset_config(dataset: str) -> Path:
    return CONFIGS / "datasets" / f"{dataset}.yaml"


def work(job: Job) -> float:
    """Does those runs of ``job`` that are not finished yet.

    Returns:
        the seconds it took.

    Raises:
        RunFailed: a run did not end with exit code 0.
    """
    import train  # brings torch: in the worker processes alone

    start = time.monotonic()
    for folder, arguments in job.runs():
        if (folder / "results.json").is_file():
            continue
        printed = io.StringIO()  # the run keeps its own log.txt
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = train.main(arguments)
        if code == INTERRUPTED:
            os._exit(code)  # or this worker would begin the job that is next in its queue
        if code != 0:
            lines = printed.getvalue().strip().splitlines() or [f"exit code {code}"]
            raise RunFailed(f"{job}: {lines[-1].removeprefix('error: ')}")
    return time.monotonic() - start


def prepare_worker(threads: int) -> None:
    """Gives a worker process its share of the cores, and leaves Ctrl-C to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)


def run_all(jobs: Sequence[Job], workers: int) -> int:
    """Does the jobs in ``workers`` processes; returns the exit code of a command that does that.

    A job that fails, or a command that is told to stop, stops all; the line that says so is
    printed here.
    """
    # Being told to stop is the same as Ctrl-C: no worker may be left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        do_all(jobs, workers)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except RunFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


def do_all(jobs: Sequence[Job], workers: int) -> None:
    """Does the jobs in ``workers`` processes and prints a line as each ends.

    Raises:
        RunFailed: a run failed; those under way are stopped.
        KeyboardInterrupt: likewise.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(
        workers,
        # A fork would carry a copy of the parent's state, and hangs where CUDA or OpenMP has run.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=prepare_worker,
        initargs=(threads,),
    )
    try:
        futures = {pool.submit(work, job): job for job in jobs}
        for number, future in enumerate(as_completed(futures), start=1):
            seconds = future.result()
            print(f"[{number}/{len(jobs)}] {futures[future]}: {seconds:.0f} s", flush=True)
    except BaseException:
        # What is under way can go on later from its last checkpoint.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def harmonic_mean(base: float, novel: float) -> float:
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def cell(values: Sequence[float]) -> str:
    """Mean and, of several seeds, (population) standard deviation; "-" where nothing was run."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.pstdev(values):.1f}"


def rows(jobs: Sequence[Job]) -> list[tuple[str, ...]]:
    """The table of finished jobs: a row for each dataset and method, in the order of ``jobs``."""
    table: list[tuple[str, ...]] = []
    for dataset, method in dict.fromkeys((job.dataset, job.method) for job in jobs):
        mine = [job for job in jobs if (job.dataset, job.method) == (dataset, method)]
        halves = [job for job in mine if job.subset == "base"]
        base = [job.accuracy("base") for job in halves]
        novel = [job.accuracy("new") for job in halves if method not in CLOSED_SET]
        means = [harmonic_mean(*pair) for pair in zip(base, novel, strict=False)]
        table.append(
            (
                dataset,
                method,
                cell(base),
                cell(novel),
                cell(means),
                cell([job.accuracy("all") for job in mine if job.subset == "all"]),
            )
        )
    return table


def render(header: tuple[str, ...], table: Sequence[tuple[str, ...]]) -> str:
    """The table as Markdown, its columns padded so that it reads well on a terminal too."""
    columns = list(zip(header, *table, strict=True))
    widths = [max(map(len, column)) for column in columns]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in (header, rule, *table)
    )


def plan(arguments: argparse.Namespace) -> list[Job]:
    """The jobs that the command line asks for, dataset by dataset and method by method."""
    jobs = []
    for dataset in arguments.datasets:
        subsets = ["base", "all"] if dataset in arguments.few_shot else ["base"]
        for method in arguments.methods:
            # What is not trained is the same with every seed.
            seeds = arguments.seeds[:1] if method in UNTRAINED else arguments.seeds
            for seed in seeds:
                for subset in subsets:
                    where = (arguments.root, Path(arguments.output_dir))
                    jobs.append(Job(method, dataset, seed, subset, *where))
    return jobs


def worker_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}', and must be at least 1")
    return int(text)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that does jobs."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--root", default="data", help="folder of the datasets (default: data)")
    parser.add_argument("--output-dir", default="output/table", help="folder of the runs")
    parser.add_argument(
        "--workers",
        type=worker_count,
        default=min(4, os.cpu_count() or 1),
        help="runs at a time, which share the cores (default: one for each core, at most 4)",
    )


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks the command line; a wrong one ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.table",
        description="Train and test methods on the embedded datasets and print one table.",
    )
    known_methods = sorted(path.parent.name for path in CONFIGS.glob("trainers/*/vit_mini.yaml"))
    known_datasets = sorted(path.stem for path in CONFIGS.glob("datasets/*.yaml"))
    parser.add_argument("--datasets", nargs="+", default=["shapes"], choices=known_datasets)
    parser.add_argument("--methods", nargs="+", default=known_methods, choices=known_methods)
    parser.add_argument(
        "--few-shot",
        nargs="+",
        default=[],
        choices=known_datasets,
        help="of the datasets: those on which to train on all classes too",
    )
    add_run_arguments(parser)
    arguments = parser.parse_args(argv)
    if not set(arguments.few_shot) <= set(arguments.datasets):
        parser.error("--few-shot names a dataset that --datasets does not")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = read_arguments(argv)
    Path(arguments.root).mkdir(parents=True, exist_ok=True)
    jobs = plan(arguments)
    start = time.monotonic()
    # Methods are usually named from the simplest to the slowest: the slowest start first, so that
    # no core is idle at the end.
    slowness = {method: number for number, method in enumerate(arguments.methods)}
    code = run_all(sorted(jobs, key=lambda job: -slowness[job.method]), arguments.workers)
    if code != 0:
        return code
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    seeds = " ".join(map(str, arguments.seeds))
    spread = ", mean ± standard deviation" if len(arguments.seeds) > 1 else ""
    print(
        f"\nDone in {minutes} min {seconds} s. Accuracy in percent, ViT-Mini, {SHOTS} shots,",
        end="",
    )
    print(f" seed {seeds}{spread}:\n\n{render(HEADER, rows(jobs))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
