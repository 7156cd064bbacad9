"""Runs as tasks of a Ray cluster, whose machines have the same folders under the same names."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
from typing import Any

from dassl.errors import UserError
from experiments.executors import Command, Executor, execute

OWN_ADDRESSES = ("auto", "local")  # Ray looks for these by itself
CONNECTION_S = 10
INTERRUPTION_S = 30  # until what is told to stop is left to the end of the connection


class Ray(Executor):
    """Executes commands where Ray finds a core and a share of a GPU.

    Ray itself repeats, up to three times, a command whose machine or process has died.

    Args:
        address: of the cluster; "" for RAY_ADDRESS, or without it this machine alone.
        jobs: commands that Ray is given at a time; 0 for all that are ready.
        gpus_per_run: share of a GPU that a run gets; 0 for none.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str = "", jobs: int = 0, gpus_per_run: float = 0) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--executor ray: expected the package ray; pip install -e '.[ray]'"
            ) from error
        check_reachable(address)
        self._ray: Any = ray
        self.slots = jobs or math.inf
        folder = os.getcwd()
        try:
            ray.init(
                address=address or None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": folder}},
            )
        except (ConnectionError, ValueError) as error:
            raise UserError(f"--address: {error}") from error
        # max_calls: each in a process of its own
        self._task = ray.remote(num_cpus=1, num_gpus=gpus_per_run, max_calls=1)(_work)
        self._folder = folder
        self._running: dict[Any, Command] = {}

    def start(self, command: Command) -> None:
        self._running[self._task.remote(command, self._folder)] = command

    def wait(self, timeout: float) -> list[tuple[Command, str]]:
        ended, _ = self._ray.wait(list(self._running), timeout=timeout)
        if ended:
            ended, _ = self._ray.wait(
                list(self._running), num_returns=len(self._running), timeout=0
            )
        return [(self._running.pop(task), self._problem(task)) for task in ended]

    def _problem(self, task: Any) -> str:
        try:
            code = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return f"exit code {code}" if code else ""

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task)
        if self._running:
            running, self._running = list(self._running), {}
            self._ray.wait(running, num_returns=len(running), timeout=INTERRUPTION_S)
        self._ray.shutdown()


def check_reachable(address: str) -> None:
    """Check that somebody listens at HOST:PORT; Ray itself tries for a quarter of an hour.

    Raises:
        UserError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not address or address in OWN_ADDRESSES:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECTION_S).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--address: expected HOST:PORT of a Ray cluster, got '{address}' ({error})"
        ) from error


def _work(command: Command, folder: str) -> int:
    os.chdir(folder)
    # Ray's way to cancel, which does nothing where Ray was started with Ctrl-C ignored (nohup)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return execute(command)
