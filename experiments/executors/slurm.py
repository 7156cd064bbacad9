"""Runs as jobs of a Slurm cluster, by submitit.

Partition, account, time limit and the like are those of sbatch's own environment variables, such as
SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_TIMELIMIT.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from dassl.errors import UserError
from experiments.executors import Command, Executor, execute

TIME_LIMIT_MIN = 24 * 60  # where SBATCH_TIMELIMIT is not set


class Slurm(Executor):
    """Executes each command as a job of its own.

    Args:
        folder: for the scripts and logs of the jobs; all machines see it.
        jobs: jobs in Slurm's queue at a time; 0 for all that are ready.
        gpus_per_run: GPUs of a job, 0 or 1.
        cluster: "local" has the jobs run on this machine, for tests.

    Raises:
        UserError: submitit is not installed, or this machine has no Slurm.
    """

    def __init__(
        self, folder: Path, jobs: int = 0, gpus_per_run: float = 0, cluster: str = "slurm"
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                "--executor slurm: expected the package submitit; pip install -e '.[slurm]'"
            ) from error
        if gpus_per_run not in (0, 1):
            raise UserError(f"--gpus-per-run: expected 0 or 1 with Slurm, got {gpus_per_run:g}")
        self._incomplete: type[Exception] = submitit.core.utils.UncompletedJobError
        self.slots = jobs or math.inf
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        except RuntimeError as error:
            raise UserError("--executor slurm: expected a machine with Slurm's srun") from error
        gpus = {"gpus_per_node": 1} if gpus_per_run else {}
        self._executor.update_parameters(name="train", timeout_min=TIME_LIMIT_MIN, **gpus)
        self._running: dict[Any, Command] = {}

    def start(self, command: Command) -> None:
        self._running[self._executor.submit(execute, command)] = command

    def wait(self, timeout: float) -> list[tuple[Command, str]]:
        ended = [job for job in self._running if job.done()]
        if not ended:
            time.sleep(timeout)
        return [(self._running.pop(job), self._problem(job)) for job in ended]

    def _problem(self, job: Any) -> str:
        try:
            code = job.result()
        except self._incomplete:  # killed, out of time or of memory
            return f"job {job.job_id} ended as {job.state}; {job.paths.stderr}"
        return f"exit code {code}" if code else ""

    def stop(self) -> None:
        for job in self._running:
            job.cancel()
