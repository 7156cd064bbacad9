"""Runs of train.py in several processes, as torchrun starts them, without its seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import train
from experiments.executors.local import context_of_runs
from tests.trainers import toy  # noqa: F401 - the processes need what it registers

WAIT_S = 600.0


def start(
    count: int, folder: Path, *runs: Sequence[str], prepare: Callable[[], None] | None = None
) -> list[Any]:
    """Start processes that call ``train.main`` with the arguments of one run after the other.

    Each first calls ``prepare``, a function of a module; it leaves what it prints in ``folder`` /
    <number>.txt, and exits with the last code.
    """
    stores = [dist.TCPStore("127.0.0.1", 0, wait_for_workers=False, is_master=True) for _ in runs]
    ports = [store.port for store in stores]
    context = context_of_runs()
    processes = [
        context.Process(target=_main, args=(rank, count, ports, str(folder), runs, prepare))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
        process.stores = stores  # torchrun's, which live as long as the processes
    return processes


def finish(processes: Sequence[Any]) -> list[int | None]:
    """Wait for the processes and return their exit codes."""
    for process in processes:
        process.join(WAIT_S)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def printed(folder: Path, rank: int) -> str:
    """Return what a process has printed."""
    return (folder / f"{rank}.txt").read_text(encoding="utf-8")


def _main(
    rank: int,
    count: int,
    ports: Sequence[int],
    folder: str,
    runs: Sequence[Sequence[str]],
    prepare: Callable[[], None] | None,
) -> None:
    torch.set_num_threads(1)
    if prepare:
        prepare()
    with open(os.path.join(folder, f"{rank}.txt"), "w", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        code = 0
        for port, arguments in zip(ports, runs, strict=True):
            os.environ |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            code = train.main(list(arguments))
    os._exit(code)
