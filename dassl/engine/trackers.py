"""Experiment trackers that ``TRACKER`` chooses: training's points go there, and to TensorBoard.

The packages are extras, imported only when asked for. Nothing leaves the machine unless variables
of the environment that the tracker itself reads say so, such as WANDB_MODE=online.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from yacs.config import CfgNode

from dassl.config.merge import flat
from dassl.errors import UserError
from dassl.utils.logger import log
from dassl.utils.tools import keep_random

PROJECT = "clip-prompt-learning"  # unless a variable of the tracker's names another
# Else the packages report their use or their faults to their makers.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}


class Tracker:
    """Takes the points of a run.

    Args:
        package: the tracker's.
        name: of the run, the same when it is resumed.
        config: of the run, as nested plain dicts.
        folder: of the run.
    """

    def __init__(self, package: Any, name: str, config: dict[str, Any], folder: str) -> None:
        raise NotImplementedError

    def log(self, kind: str, values: Mapping[str, float], step: int) -> None:
        """Take values by tag: at a batch for the kind "train", at an epoch for another."""
        raise NotImplementedError

    def close(self) -> None:
        """Store what is left."""
        raise NotImplementedError


class Wandb(Tracker):
    """Weights & Biases: in the run's folder, which ``wandb sync`` uploads; or WANDB_MODE."""

    def __init__(self, package: Any, name: str, config: dict[str, Any], folder: str) -> None:
        self.run = package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=os.path.abspath(folder),
            id=name,
            name=name,
            config=config,
            resume="allow",
            settings=package.Settings(console="off", silent=True, disable_git=True),
        )
        # wandb's own steps cannot fall, but epochs are smaller numbers than batches
        for tags, axis in (("*", "epoch"), ("train/*", "batch")):
            self.run.define_metric(tags, step_metric=axis)

    def log(self, kind: str, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "batch" if kind == "train" else "epoch": step})

    def close(self) -> None:
        self.run.finish()


class Trackio(Tracker):
    """Hugging Face's trackio: in TRACKIO_DIR, or else in its own folder in the home folder."""

    def __init__(self, package: Any, name: str, config: dict[str, Any], folder: str) -> None:
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        watching = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
        self.run = package.init(project, name=name, config=config, resume="allow", **watching)

    def log(self, kind: str, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class Mlflow(Tracker):
    """MLflow: in MLFLOW_TRACKING_URI, or else in mlflow.db in the run's folder."""

    AT_ONCE = 500  # points that are sent together

    def __init__(self, package: Any, name: str, config: dict[str, Any], folder: str) -> None:
        own = f"sqlite:///{os.path.abspath(folder)}/mlflow.db"
        self.client = package.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        self.metric = package.entities.Metric
        self.points: list[Any] = []
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self.client.create_experiment(project)
        known = self.client.search_runs([number], f"attributes.run_name = '{name}'")
        if known:
            self.run = known[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
        else:
            self.run = self.client.create_run(number, run_name=name).info.run_id
            for key, value in flat(config).items():
                self.client.log_param(self.run, key, value)

    def log(self, kind: str, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self.points += [self.metric(tag, value, now, step) for tag, value in values.items()]
        if len(self.points) >= self.AT_ONCE:
            self._send()

    def _send(self) -> None:
        points, self.points = self.points, []
        self.client.log_batch(self.run, metrics=points)

    def close(self) -> None:
        self._send()
        self.client.set_terminated(self.run)


TRACKERS: dict[str, type[Tracker]] = {"wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow}


def package_of(tracker: str) -> Any:
    """Import a tracker's package.

    Raises:
        UserError: it is not installed.
    """
    package = None
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    with suppress(ImportError), keep_random():
        package = importlib.import_module(tracker)
    if getattr(package, "__file__", None) is None:  # a folder of that name is no package
        hint = f"pip install -e '.[{tracker}]'"
        raise UserError(f"TRACKER: expected the package {tracker} ({hint}), got none")
    return package


def check_tracker(cfg: CfgNode) -> None:
    """Raise ``UserError`` if the package of the config's tracker is not installed."""
    if cfg.TRACKER:
        package_of(cfg.TRACKER)


class TrackedWriter:
    """A TensorBoard writer whose scalars a tracker gets, too.

    A tracker that fails is left out from then on, with a warning: training goes on, and TensorBoard
    has all points.
    """

    def __init__(self, writer: Any, tracker: Tracker) -> None:
        self._writer = writer
        self._tracker: Tracker | None = tracker
        self._place: tuple[str, int] = ("", 0)  # kind and step of the values that wait
        self._values: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)  # histograms and the like are TensorBoard's alone

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        self._writer.add_scalar(tag, value, step)
        place = (tag.partition("/")[0], step or 0)
        if place != self._place:
            self._send()
            self._place = place
        self._values[tag] = float(value)

    def close(self) -> None:
        self._writer.close()
        self._send()
        self._try(lambda tracker: tracker.close())
        self._tracker = None

    def _send(self) -> None:
        values, self._values = self._values, {}
        if values:
            kind, step = self._place
            self._try(lambda tracker: tracker.log(kind, values, step))

    def _try(self, action: Callable[[Tracker], None]) -> None:
        if self._tracker is not None:
            try:
                action(self._tracker)
            except Exception as error:  # each package has its own
                log.warning(f"TRACKER: going on without it: {_reason(error)}")
                self._tracker = None


def tracked(writer: Any, config: dict[str, Any], folder: str) -> Any:
    """Return a TensorBoard writer that serves the config's TRACKER, too, if there is one.

    Args:
        writer: None in a process that writes nothing.
        config: of the run, as nested plain dicts.
        folder: of the run.

    Raises:
        UserError: the tracker cannot be opened.
    """
    chosen = config["TRACKER"]
    if writer is None or not chosen:
        return writer
    # TensorBoard's first file is there as long as the run, and no other run has its name
    first = min(os.listdir(writer.get_logdir()))
    number = hashlib.sha256(first.encode()).hexdigest()[:8]
    name = f"{config['TRAINER']['NAME']}-{config['DATASET']['NAME']}-seed{config['SEED']}-{number}"
    try:
        with keep_random():
            tracker = TRACKERS[chosen](package_of(chosen), name, config, folder)
    except Exception as error:  # each package has its own
        writer.close()
        raise UserError(
            f"TRACKER: expected a tracker that can be opened, got {chosen}: {_reason(error)}"
        ) from error
    log.info(f"Points also go to {chosen}, as the run {name}")
    return TrackedWriter(writer, tracker)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
