"""TRACKER: what a tracker gets of a run, with packages that stand in for the real ones."""

from __future__ import annotations

import builtins
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dassl.config import get_cfg_default, to_dict
from dassl.engine import build_trainer, trackers
from dassl.engine import trainer as trainer_module
from dassl.engine.same_run import check_same_config
from dassl.utils import UserError
from tests.dassl import toys


class Service:
    """Keeps what the packages are given: {run: points}, and how they were opened."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.points: dict[str, list[dict[str, float]]] = {}
        self.closed: list[str] = []
        self.fails_at = -1

    def add(self, name: str, point: dict[str, float]) -> None:
        own = self.points.setdefault(name, [])
        if len(own) == self.fails_at:
            raise ConnectionError("no route\nto the server")
        own.append(point)

    def run(self, name: str) -> Any:
        return SimpleNamespace(
            log=lambda values, step=None: self.add(name, {**values, "step": step}),
            finish=lambda: self.closed.append(name),
            define_metric=lambda *args, **kwargs: None,
        )

    def wandb(self) -> Any:
        def init(**given: Any) -> Any:
            self.opened.append(given)
            return self.run(given["id"])

        return SimpleNamespace(init=init, Settings=dict)

    def trackio(self) -> Any:
        def init(project: str, **given: Any) -> Any:
            self.opened.append({"project": project, **given})
            return self.run(given["name"])

        return SimpleNamespace(init=init)

    def mlflow(self) -> Any:
        def log_batch(run: str, metrics: list[tuple[str, float, int, int]]) -> None:
            for tag, value, _, step in metrics:
                self.add(run, {tag: value, "step": step})

        def create_run(experiment: str, run_name: str) -> Any:
            self.opened.append({"project": experiment, "name": run_name, "config": {}})
            return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

        def log_param(run: str, key: str, value: Any) -> None:
            self.opened[-1]["config"][key] = value

        def search_runs(experiments: list[str], query: str) -> list[Any]:
            found = [run for run in self.points if query == f"attributes.run_name = '{run}'"]
            return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found]

        client = SimpleNamespace(
            get_experiment_by_name=lambda name: None,
            create_experiment=lambda name: name,
            search_runs=search_runs,
            create_run=create_run,
            update_run=lambda run, status: None,
            log_param=log_param,
            log_batch=log_batch,
            set_terminated=self.closed.append,
        )

        def connect(place: str) -> Any:
            assert place.startswith("sqlite:///") and place.endswith("/run/mlflow.db")
            return client

        metric = lambda *values: values  # noqa: E731
        return SimpleNamespace(MlflowClient=connect, entities=SimpleNamespace(Metric=metric))


@pytest.fixture
def service(monkeypatch) -> Service:
    made = Service()
    for name in trackers.TRACKERS:
        package = getattr(made, name)()
        package.__file__ = f"{name}/__init__.py"
        monkeypatch.setitem(sys.modules, name, package)
    for variable in (*trackers.QUIET, "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    return made


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Toys", str(toys.draw(tmp_path / "data"))
    cfg.TRAINER.NAME, cfg.OUTPUT_DIR = "ToyTrainer", str(tmp_path / "run")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 12
    cfg.INPUT.SIZE = (8, 8)
    cfg.OPTIM.MAX_EPOCH = 3
    cfg.USE_CUDA = False
    return cfg


def curve(folder: str, tag: str) -> list[tuple[int, float]]:
    """Return the points that TensorBoard has."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(os.path.join(folder, "tensorboard")).Reload().Scalars(tag)
    return [(point.step, point.value) for point in found]


@pytest.mark.parametrize("tracker", trackers.TRACKERS)
def test_a_tracker_gets_the_points_that_tensorboard_gets(cfg, service, tracker):
    cfg.TRACKER = tracker
    build_trainer(cfg).train()
    ((name, points),) = service.points.items()
    assert name.startswith("ToyTrainer-Toys-seed-1-") and service.closed == [name]
    axes = {"train/loss": "batch", "test/accuracy": "epoch"} if tracker == "wandb" else {}
    for tag in ("train/loss", "test/accuracy"):
        axis = axes.get(tag, "step")
        found = [(p[axis], p[tag]) for p in points if tag in p]
        assert [step for step, _ in found] == [step for step, _ in curve(cfg.OUTPUT_DIR, tag)]
        assert [value for _, value in found] == pytest.approx(
            [value for _, value in curve(cfg.OUTPUT_DIR, tag)]
        )
    (opened,) = service.opened
    config = opened["config"]
    assert (config["OPTIM.LR"] if tracker == "mlflow" else config["OPTIM"]["LR"]) == cfg.OPTIM.LR
    assert opened["project"] == trackers.PROJECT
    assert opened.get("mode", "offline") == "offline"


@pytest.mark.parametrize("tracker", trackers.TRACKERS)
def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(cfg, service, tracker, monkeypatch):
    cfg.TRACKER = tracker
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (2, 1))
    trainer = build_trainer(cfg)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.close_writer()
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", None)
    build_trainer(cfg).train()
    assert len(service.points) == 1 and len(service.closed) == 2


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(cfg, service, caplog):
    cfg.TRACKER, service.fails_at = "wandb", 2
    build_trainer(cfg).train()
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == ["TRACKER: going on without it: no route to the server"]
    assert [len(points) for points in service.points.values()] == [2]
    assert len(curve(cfg.OUTPUT_DIR, "train/loss")) == 3 * 3


def test_a_tracker_that_cannot_be_opened_is_one_line_before_training(
    cfg, service, tmp_path, monkeypatch
):
    def init(**given: Any) -> Any:
        raise PermissionError("log in\nfirst")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    cfg.TRACKER = "wandb"
    with pytest.raises(UserError) as error:
        build_trainer(cfg).train()
    expected = "TRACKER: expected a tracker that can be opened, got wandb: log in first"
    assert str(error.value) == expected
    assert not list((tmp_path / "run").rglob("model.pth.tar*"))


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_package_that_is_missing_is_one_line_before_any_data(
    cfg, tmp_path, monkeypatch, is_folder
):
    """A folder wandb/, which that package makes, is no package."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "wandb")  # what the import leaves is taken back, too
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    if is_folder:
        (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(trainer_module, "DataManager", None)
    cfg.TRACKER = "wandb"
    with pytest.raises(UserError) as error:
        build_trainer(cfg)
    hint = "pip install -e '.[wandb]'"
    assert str(error.value) == f"TRACKER: expected the package wandb ({hint}), got none"
    assert not (tmp_path / "run").exists()


def test_no_package_is_imported_unless_the_key_asks_for_it(cfg, monkeypatch):
    imported = []
    real = builtins.__import__

    def watch(name: str, *args: Any) -> Any:
        imported.append(name.partition(".")[0])
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", watch)
    build_trainer(cfg).train()
    assert imported and not {*trackers.TRACKERS} & {*imported, *sys.modules}


def test_the_tracker_may_change_when_a_run_is_resumed(cfg):
    before = to_dict(cfg)
    cfg.TRACKER = "mlflow"
    check_same_config(before, to_dict(cfg), "run")


def test_packages_are_told_not_to_report_their_use(service, monkeypatch):
    monkeypatch.setenv("DO_NOT_TRACK", "false")  # somebody's own wish
    trackers.package_of("mlflow")
    assert os.environ["DO_NOT_TRACK"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
