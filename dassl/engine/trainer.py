"""The training loop, its checkpoints and its hooks.

A run leaves in its output folder: log.txt, config.yaml, tensorboard/, results.json,
<model name>/model.pth.tar-<epoch> and, while it is not finished, resume.pth.tar.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import random
import re
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.config import first_difference, to_dict
from dassl.data import DataManager
from dassl.engine.build import TRAINER_REGISTRY
from dassl.errors import LossError, UserError
from dassl.evaluation import build_evaluator
from dassl.utils.logger import log_only
from dassl.utils.meters import AverageMeter, MetricMeter
from dassl.utils.tools import (
    atomic_write,
    mkdir_if_missing,
    package_versions,
    tolist_if_not,
    write_json,
)
from dassl.utils.torchtools import load_checkpoint, save_checkpoint, save_torch_file

RESUME_FILE = "resume.pth.tar"
CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"

# Config keys that may change between a run and its continuation: they say where things are and
# what is shown or kept, not what is learned. The switches TEST.SAVE_* may change, too.
_SAVE_PREFIX = "SAVE_"
_FREE_KEYS = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE_MB",
    "DATALOADER.TEST.BATCH_SIZE",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    "TEST.NO_TEST",
    "TEST.SPLIT",
)
# The file for resuming is written only when at least this many times as long has gone by as
# writing it takes, so that large models spend no noticeable time on it.
_SAVE_INTERVAL = 10.0


class TrainerBase:
    """Holds models with their optimizers and schedules, saves and loads them, loops over epochs."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self._batch_paths: list[str] = []
        self.epoch = 0
        self.batch_idx = 0
        self.num_batches = 0
        self.best_result = -math.inf
        #: number of epochs that the present weights were trained for
        self.model_epoch = 0

    # Models ------------------------------------------------------------------------------------

    def register_model(
        self,
        name: str = "model",
        model: Any = None,
        optim: torch.optim.Optimizer | None = None,
        sched: Any = None,
    ) -> None:
        """Enters a model; ``name`` becomes the folder of its checkpoints."""
        if "_models" not in self.__dict__:
            raise AttributeError("register_model was called before super().__init__()")
        if name in self._models:
            raise ValueError(f"there is a model '{name}' already")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """``names`` as a list, all names for None.

        Raises:
            KeyError: no model has such a name.
        """
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise KeyError(name)
        return names

    def learned_state_dict(self, name: str) -> dict[str, Tensor]:
        """The tensors that checkpoints of a model hold; an override leaves frozen ones out."""
        return self._models[name].state_dict()

    def load_learned_state_dict(
        self, name: str, state_dict: Mapping[str, Tensor], path: str
    ) -> None:
        """Puts the tensors of a checkpoint into a model.

        Args:
            name: of the model.
            state_dict: as ``learned_state_dict`` gives it.
            path: of the checkpoint, for error messages.

        Raises:
            UserError: a tensor is missing, unexpected or of another shape.
        """
        expected = self.learned_state_dict(name)
        if not isinstance(state_dict, Mapping):
            raise UserError(f"checkpoint '{path}' holds no state_dict")
        for key, tensor in expected.items():
            if key not in state_dict:
                raise UserError(f"checkpoint '{path}' does not fit: it has no tensor '{key}'")
            shape = tuple(state_dict[key].shape)
            if shape != tuple(tensor.shape):
                raise UserError(
                    f"checkpoint '{path}' does not fit: tensor '{key}' has shape {shape}, "
                    f"this model's has {tuple(tensor.shape)}"
                )
        for key in state_dict:
            if key not in expected:
                raise UserError(
                    f"checkpoint '{path}' does not fit: this model has no tensor '{key}'"
                )
        self._models[name].load_state_dict(state_dict, strict=False)

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Saves every model as directory/<name>/model.pth.tar-<epoch + 1>, or under ``model_name``.

        A file holds state_dict (``learned_state_dict``), epoch and val_result.
        """
        for name in self.get_model_names():
            save_checkpoint(
                {
                    "state_dict": self.learned_state_dict(name),
                    "epoch": epoch + 1,
                    "val_result": None if val_result is None else float(val_result),
                },
                os.path.join(directory, name),
                is_best=is_best,
                model_name=model_name,
            )

    def find_checkpoint(self, folder: str, epoch: int | None = None) -> str:
        """The checkpoint of an epoch in a model's folder.

        Without an epoch it is model-best.pth.tar or, as runs without validation have none, the
        newest model.pth.tar-<epoch>.

        Raises:
            UserError: there is no such file.
        """
        if not os.path.isdir(folder):
            raise UserError(f"no checkpoint: the folder '{folder}' does not exist")
        found = (re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in os.listdir(folder))
        epochs = sorted(int(match.group(1)) for match in found if match)
        saved = "epochs saved there: " + (", ".join(map(str, epochs)) or "none")
        if epoch is not None:
            path = os.path.join(folder, f"model.pth.tar-{epoch}")
            if not os.path.isfile(path):
                raise UserError(f"checkpoint '{path}' does not exist; {saved}")
            return path
        best = os.path.join(folder, "model-best.pth.tar")
        if os.path.isfile(best):
            return best
        if not epochs:
            raise UserError(f"no checkpoint in '{folder}'")
        print(f"There is no model-best.pth.tar in {folder}: taking the newest ({saved})")
        return os.path.join(folder, f"model.pth.tar-{epochs[-1]}")

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Loads every model from directory/<name>/, as ``find_checkpoint`` chooses the file.

        Raises:
            UserError: a file is missing, corrupt or does not fit the model.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = self.find_checkpoint(os.path.join(directory, name), epoch)
            checkpoint = load_checkpoint(path)
            if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
                raise UserError(f"checkpoint '{path}' holds no state_dict")
            self.load_learned_state_dict(name, checkpoint["state_dict"], path)
            self.model_epoch = int(checkpoint.get("epoch", 0))
            val_result = checkpoint.get("val_result")
            result = "" if val_result is None else f", val_result={float(val_result):.1f}"
            print(f"Load {path} to {name} (epoch={self.model_epoch}{result})")

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Puts models into "train" or into "test" (also "eval") mode."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(mode)
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # Steps -------------------------------------------------------------------------------------

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Steps the schedules; trainers call it at the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Learning rate of the first parameter group of the first model; 0 without optimizer."""
        optim = self._optims[self.get_model_names(names)[0]]
        return 0.0 if optim is None else float(optim.param_groups[0]["lr"])

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raises ``LossError`` where the loss is infinite or not a number."""
        if not torch.isfinite(loss).all():
            self._raise_loss_error("loss", loss.detach().mean().item())

    def _raise_loss_error(self, name: str, value: float) -> None:
        images = ", ".join(self._batch_paths[:3]) or "unknown"
        raise LossError(
            f"{name} is {value} at epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
            f"/{self.num_batches} (first images: {images}); nothing of this epoch was saved, "
            "earlier checkpoints are as they were"
        )

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            optim = self._optims[name]
            if optim is not None:
                optim.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Gradients of a loss, which must be finite."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            optim = self._optims[name]
            if optim is not None:
                optim.step()

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        """One optimizer step on a loss, which must be finite."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # TensorBoard -------------------------------------------------------------------------------

    def init_writer(self, log_dir: str, purge_step: int | None = None) -> None:
        """Opens the TensorBoard files, if they are not open; drops points from a step on."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._writer = SummaryWriter(log_dir=log_dir, purge_step=purge_step)

    def close_writer(self) -> None:
        """Closes the TensorBoard files, if they are open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Adds a point to a TensorBoard curve; does nothing outside of training."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # The loop and its hooks --------------------------------------------------------------------

    # SimpleTrainer.train takes no arguments, as in the public toolbox; this signature allows both
    def train(self, *args: Any, **kwargs: Any) -> None:
        """``train(start_epoch, max_epoch)``; ``before_train`` may change ``self.start_epoch``."""
        self._train(*args, **kwargs)

    def _train(self, start_epoch: int, max_epoch: int) -> None:
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.model_epoch = self.epoch + 1
            self.after_epoch()
            self.save_progress()
        self.after_train()

    def before_train(self) -> None:
        """Hook."""

    def after_train(self) -> None:
        """Hook."""

    def before_epoch(self) -> None:
        """Hook."""

    def after_epoch(self) -> None:
        """Hook."""

    def save_progress(self) -> None:
        """Hook after ``after_epoch``: saves what an interrupted run needs to go on."""

    def extra_state(self) -> dict[str, Any]:
        """What else a trainer needs to go on after an interruption: tensors and plain values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes back what ``extra_state`` gave."""

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self, split: str | None = None) -> float:
        raise NotImplementedError

    def parse_batch_train(self, batch: Any) -> Any:
        raise NotImplementedError

    def parse_batch_test(self, batch: Any) -> Any:
        raise NotImplementedError

    def forward_backward(self, batch: Any) -> Mapping[str, float]:
        raise NotImplementedError

    def model_inference(self, input: Any) -> Tensor:
        raise NotImplementedError


class SimpleTrainer(TrainerBase):
    """Data, evaluation, checkpoints, interruption and resumption, all from a config.

    A trainer overrides ``build_model`` and ``forward_backward``, and whatever else it needs. One
    that keeps more of the final evaluation than its logits registers a switch ``TEST.SAVE_*``,
    names it in ``save_keys`` and overrides the hooks of the final evaluation.

    Attributes:
        save_keys: the switches ``TEST.SAVE_*`` that this trainer heeds.
        cfg: the config.
        device: where models and batches are.
        dm: the ``DataManager``; its loaders, num_classes and lab2cname are attributes here, too.
        output_dir: folder of the run.
        evaluator: what sums up predictions.
    """

    save_keys: tuple[str, ...] = ("SAVE_LOGITS",)
    # Trainers of the public kind set and read these in ways of their own
    model: Any
    optim: Any
    sched: Any
    scaler: Any = None

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self._time_begin = time.time()
        self._elapsed_before = 0.0
        self._last_save: float | None = None
        self._save_cost = 0.0
        self.cfg = cfg
        self._check_save_keys()
        self.check_cfg(cfg)
        use_cuda = torch.cuda.is_available() and cfg.USE_CUDA
        self.device = torch.device("cuda" if use_cuda else "cpu")
        self.start_epoch = 0
        self.max_epoch: int = cfg.OPTIM.MAX_EPOCH
        self.output_dir: str = cfg.OUTPUT_DIR
        self._model_dir = self.output_dir  # or where a finished run lies that RESUME names
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Hook: raise ``UserError`` for settings that the trainer cannot have."""

    def _check_save_keys(self) -> None:
        """Another trainer's switch would be on and do nothing."""
        for key, value in self.cfg.TEST.items():
            if key.startswith(_SAVE_PREFIX) and value and key not in self.save_keys:
                classes = map(TRAINER_REGISTRY.get, TRAINER_REGISTRY.registered_names())
                able = [c.__name__ for c in classes if key in getattr(c, "save_keys", ())]
                raise UserError(
                    f"TEST.{key} is {value}, but the trainer is {type(self).__name__}; "
                    f"it is for {', '.join(able) or 'no trainer here'}"
                )

    def build_data_loader(self) -> None:
        """Sets dm, the loaders, num_classes, num_source_domains and lab2cname."""
        dm = DataManager(self.cfg)
        self.dm = dm
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname

    def build_model(self) -> None:
        """Sets ``model`` and registers what is trained. Every trainer has its own."""
        raise NotImplementedError(f"{type(self).__name__} must define build_model")

    def train(self) -> None:
        """Trains to the end, going on where an earlier run of the same kind was stopped; tests."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        directory = self.cfg.RESUME or self.output_dir
        self.start_epoch = self.resume_model_if_exist(directory)
        self.time_start = time.time()
        if self.start_epoch == self.max_epoch:
            return
        mkdir_if_missing(self.output_dir)
        results = os.path.join(self.output_dir, RESULTS_FILE)
        if os.path.exists(results):  # it tells that a run is finished, and this one is not
            os.unlink(results)
        with atomic_write(os.path.join(self.output_dir, CONFIG_FILE)) as file:
            yaml.safe_dump(to_dict(self.cfg), file)
        # an interrupted epoch has left points that this run draws again
        done = self.start_epoch * len(self.train_loader_x)
        self.init_writer(os.path.join(self.output_dir, "tensorboard"), done or None)

    def after_train(self) -> None:
        print("Finish training")
        if self.cfg.TEST.NO_TEST:
            self.write_results({}, None)
        else:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self._model_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        elapsed = datetime.timedelta(seconds=round(self.elapsed_s()))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    def after_epoch(self) -> None:
        number = self.epoch + 1
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result >= self.best_result:
                self.best_result = float(result)
                self.save_model(
                    self.epoch,
                    self.output_dir,
                    val_result=result,
                    model_name="model-best.pth.tar",
                )
        if number == self.max_epoch or (frequency > 0 and number % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def elapsed_s(self) -> float:
        """Seconds that the run has taken, those before an interruption included."""
        return self._elapsed_before + time.time() - self._time_begin

    # Interruption and resumption ---------------------------------------------------------------

    def save_progress(self) -> None:
        """Writes resume.pth.tar at the end of an epoch, and removes it at the end of the run."""
        path = os.path.join(self.output_dir, RESUME_FILE)
        if self.epoch + 1 == self.max_epoch:
            if os.path.exists(path):
                os.unlink(path)
            return
        begin = time.monotonic()
        if self._last_save is not None and begin - self._last_save < (
            _SAVE_INTERVAL * self._save_cost
        ):
            return
        save_torch_file(self._resume_state(), path)
        self._last_save = time.monotonic()
        self._save_cost = self._last_save - begin

    def _resume_state(self) -> dict[str, Any]:
        return {
            "config": json.dumps(to_dict(self.cfg)),
            "epoch": self.epoch + 1,
            "models": {name: self.learned_state_dict(name) for name in self._models},
            "optimizers": {name: _state(optim) for name, optim in self._optims.items()},
            "schedulers": {name: _state(sched) for name, sched in self._scheds.items()},
            "scaler": _state(self.scaler),
            "random": _random_state(),
            "best_result": self.best_result,
            "elapsed_s": self.elapsed_s(),
            "extra": self.extra_state(),
        }

    def resume_model_if_exist(self, directory: str) -> int:
        """Takes up the run in ``directory``, if there is one.

        An unfinished run leaves models, optimizers, schedules and random states as they were at
        the end of its last saved epoch. Of a finished one the final models are loaded.

        Returns:
            The number of epochs done; MAX_EPOCH says that the run is finished.

        Raises:
            UserError: the run had another config, a file is corrupt or does not fit, or RESUME is
                set and there is nothing to resume.
        """
        path = os.path.join(directory, RESUME_FILE)
        if os.path.isfile(path):
            state = load_checkpoint(path)
            if not isinstance(state, dict) or "random" not in state:
                raise UserError(f"'{path}' is no file to resume from")
            self._check_same_config(json.loads(state["config"]), path)
            self._restore(state, path)
            if os.path.abspath(directory) != os.path.abspath(self.output_dir):
                self._copy_best_models(directory)
            print(f"Resuming the run in {directory}: {state['epoch']} epochs are done")
            return int(state["epoch"])

        names = [f"{name}/model.pth.tar-{self.max_epoch}" for name in self._models]
        if names and all(os.path.isfile(os.path.join(directory, name)) for name in names):
            config_path = os.path.join(directory, CONFIG_FILE)
            if os.path.isfile(config_path):
                with open(config_path, encoding="utf-8") as file:
                    self._check_same_config(yaml.safe_load(file), directory)
            print(f"The run in {directory} is finished: not training again, only evaluating")
            self._model_dir = directory
            self.load_model(directory, epoch=self.max_epoch)
            return self.max_epoch

        if self.cfg.RESUME:
            raise UserError(f"RESUME: there is no run to resume in '{directory}'")
        print("No checkpoint found, train from scratch")
        return 0

    def _copy_best_models(self, directory: str) -> None:
        """The best model so far may remain the best one of the run that goes on elsewhere."""
        for name in self._models:
            best = os.path.join(directory, name, "model-best.pth.tar")
            if os.path.isfile(best):
                target = os.path.join(self.output_dir, name, "model-best.pth.tar")
                with open(best, "rb") as old, atomic_write(target, "wb") as new:
                    shutil.copyfileobj(old, new)

    def _check_same_config(self, old: dict[str, Any], place: str) -> None:
        switches = (f"TEST.{key}" for key in self.cfg.TEST if key.startswith(_SAVE_PREFIX))
        difference = first_difference(old, to_dict(self.cfg), (*_FREE_KEYS, *switches))
        if difference is not None:
            key, before, now = difference
            raise UserError(
                f"'{place}' belongs to a run with {key} {before!r}, but now it is {now!r}; "
                "choose another OUTPUT_DIR, or remove the old run"
            )

    def _restore(self, state: dict[str, Any], path: str) -> None:
        if set(state["models"]) != set(self._models):
            raise UserError(f"'{path}' holds other models than this trainer's")
        for name in self._models:
            self.load_learned_state_dict(name, state["models"][name], path)
            for owner, kept in (
                (self._optims[name], state["optimizers"][name]),
                (self._scheds[name], state["schedulers"][name]),
            ):
                if owner is not None:
                    owner.load_state_dict(kept)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.best_result = state["best_result"]
        self._elapsed_before = state["elapsed_s"]
        self.load_extra_state(state["extra"])
        # last: building and loading may have drawn random numbers
        _set_random_state(state["random"])

    # Evaluation --------------------------------------------------------------------------------

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluates on "val" (or test, where there is no val) or "test".

        Without ``split`` it is the final evaluation, on TEST.SPLIT: results.json is written, and
        logits.npz with TEST.SAVE_LOGITS.

        Returns:
            The evaluator's first figure: accuracy in percent.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        is_final = split is None
        split = split or self.cfg.TEST.SPLIT
        if split == "val" and self.val_loader is not None:
            data_loader = self.val_loader
        else:
            split, data_loader = "test", self.test_loader
        print(f"Evaluate on the *{split}* set")

        if is_final:
            self.before_final_test()
        keep_logits = is_final and self.cfg.TEST.SAVE_LOGITS
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        paths: list[str] = []
        for batch in tqdm(data_loader, desc=split, disable=not sys.stderr.isatty()):
            input, label = self.parse_batch_test(batch)
            output = self.model_inference(input)
            self.evaluator.process(output, label)
            if keep_logits:
                logits.append(output.float().cpu())
                labels.append(label.cpu())
                paths.extend(batch["impath"])
            if is_final:
                self.after_final_batch(batch, output)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        if keep_logits:
            self._write_logits(torch.cat(logits), torch.cat(labels), paths)
        if is_final:
            self.after_final_test()
            self.write_results(results, split)
        return float(next(iter(results.values())))

    def before_final_test(self) -> None:
        """Hook before the first batch of the final evaluation."""

    def after_final_batch(self, batch: Any, output: Tensor) -> None:
        """Hook: a batch of the final evaluation and its logits (n, classes)."""

    def after_final_test(self) -> None:
        """Hook after the last batch of the final evaluation, before results.json is written."""

    def _write_logits(self, logits: Tensor, labels: Tensor, paths: list[str]) -> None:
        path = os.path.join(self.output_dir, "logits.npz")
        with atomic_write(path, "wb") as file:
            np.savez_compressed(
                file, logits=logits.numpy(), labels=labels.numpy(), impaths=np.array(paths)
            )
        print(f"Logits are saved to {path}")

    def write_results(self, results: Mapping[str, float], split: str | None) -> None:
        """Writes results.json: the figures (percent) and all that is needed to tell whose they are.

        Args:
            results: what the evaluator gave; empty where TEST.NO_TEST left the test out.
            split: what was evaluated on.
        """
        figures = {("error" if k == "error_rate" else k): float(v) for k, v in results.items()}
        record = {
            "accuracy": None,
            "error": None,
            "macro_f1": None,
            **figures,
            **(getattr(self.evaluator, "summary", {}) if results else {}),
            "split": split,
            "trainer": self.cfg.TRAINER.NAME,
            "dataset": self.cfg.DATASET.NAME,
            "seed": self.cfg.SEED,
            "epoch": self.model_epoch,
            "wall_time_s": round(self.elapsed_s(), 3),
            "versions": package_versions(),
            "config": to_dict(self.cfg),
        }
        path = os.path.join(self.output_dir, RESULTS_FILE)
        write_json(record, path)
        print(f"Results are saved to {path}")

    def model_inference(self, input: Any) -> Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: Any) -> tuple[Any, Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)


class TrainerX(SimpleTrainer):
    """A trainer on labelled images."""

    def run_epoch(self) -> None:
        """Calls ``forward_backward``, which returns named numbers such as loss, for each batch."""
        self.set_model_mode("train")
        losses = MetricMeter()
        batch_time = AverageMeter()
        data_time = AverageMeter()
        self.num_batches = len(self.train_loader_x)

        bar = tqdm(
            self.train_loader_x,
            desc=f"epoch [{self.epoch + 1}/{self.max_epoch}]",
            disable=not sys.stderr.isatty(),
        )
        # beside a bar on the terminal the lines are for the log file alone
        show: Callable[[str], None] = print
        if not bar.disable and sys.stdout.isatty():
            show = log_only

        end = time.time()
        for self.batch_idx, batch in enumerate(bar):
            data_time.update(time.time() - end)
            self._batch_paths = _image_paths(batch)
            loss_summary = self.forward_backward(batch)
            self._check_summary(loss_summary)
            batch_time.update(time.time() - end)
            losses.update(loss_summary)

            remaining = self.num_batches - self.batch_idx - 1
            remaining += (self.max_epoch - self.epoch - 1) * self.num_batches
            eta = datetime.timedelta(seconds=int(batch_time.avg * remaining))
            lr = self.get_current_lr()
            shown: dict[str, str] = {
                name: f"{losses.meters[name].avg:.4f}"
                for name in ("loss", "acc")
                if name in losses.meters
            }
            shown |= {"lr": f"{lr:.4e}", "eta": str(eta)}
            bar.set_postfix(shown, refresh=False)
            frequency = self.cfg.TRAIN.PRINT_FREQ
            if (self.batch_idx + 1) % frequency == 0 or self.num_batches < frequency:
                show(
                    f"epoch [{self.epoch + 1}/{self.max_epoch}] "
                    f"batch [{self.batch_idx + 1}/{self.num_batches}] "
                    f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
                    f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
                    f"{losses} lr {lr:.4e} eta {eta}"
                )
            step = self.epoch * self.num_batches + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)
            self.write_scalar("train/lr", lr, step)
            end = time.time()

    def _check_summary(self, loss_summary: Mapping[str, Any] | None) -> None:
        """A trainer that takes its own optimizer steps may not have called ``detect_anomaly``."""
        for name, value in (loss_summary or {}).items():
            if not math.isfinite(float(value)):
                self._raise_loss_error(name, float(value))

    def parse_batch_train(self, batch: Any) -> Any:
        """Image, label and domain of a batch, on the device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


def _image_paths(batch: Any) -> list[str]:
    paths: Iterable[str] = batch.get("impath", []) if isinstance(batch, Mapping) else []
    return list(paths)


def _state(owner: Any) -> Any:
    return None if owner is None else owner.state_dict()


def _random_state() -> dict[str, Any]:
    """The states of all global generators, as tensors and plain values."""
    numpy_state: Any = np.random.get_state(legacy=True)
    _, keys, position, has_gauss, cached = numpy_state
    version, values, gauss = random.getstate()
    return {
        "python": [version, list(values), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    words = keys.numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    # a run may go on on a machine with another number of GPUs, with other random numbers there
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
