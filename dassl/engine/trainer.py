"""The training loop with its hooks, under the names of Dassl.pytorch."""

from __future__ import annotations

import datetime
import math
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl import distributed
from dassl.compat import __getattr__, data_attributes  # noqa: F401
from dassl.config import to_dict
from dassl.data import DataManager
from dassl.data.datasets import check_training
from dassl.engine import checkpoints, resume, run_folder, same_run, trackers
from dassl.engine.evaluate import evaluate
from dassl.engine.optimize import device_of, optimizer_step
from dassl.engine.progress import EpochProgress, loss_error
from dassl.engine.recorders import chosen_recorders, finish
from dassl.errors import UserError
from dassl.evaluation import build_evaluator
from dassl.utils.logger import log
from dassl.utils.tools import tolist_if_not


class TrainerBase:
    """Holds models with their optimizers and schedules, saves and loads them, loops over epochs.

    Attributes:
        epoch, batch_idx: where the loop is, counted from 0.
        num_batches: of this epoch.
        max_iter: where a trainer counts iterations instead of epochs, the number of them after
            which training ends; ``max_epoch`` is then the number of epochs that they take.
        best_result: on validation images so far, in percent.
        model_epoch: number of epochs that the present weights were trained for.
    """

    max_iter: int | None = None

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self._progress: EpochProgress | None = None  # of the epoch that is running
        self._class_names: list[str] = []  # of training, which checkpoints keep
        self.epoch = self.start_epoch = self.batch_idx = self.num_batches = self.model_epoch = 0
        self.best_result = -math.inf

    # Models ------------------------------------------------------------------------------------
    def register_model(
        self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None
    ) -> None:
        """Enter a model; ``name`` becomes the folder of its checkpoints."""
        if "_models" not in self.__dict__:
            raise AttributeError("register_model was called before super().__init__()")
        if name in self._models:
            raise ValueError(f"a model '{name}' is already registered")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """Return ``names`` as a list, all for None; ``KeyError`` for a name that no model has."""
        names = list(self._models) if names is None else tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise KeyError(name)
        return names

    def learned_state_dict(self, name: str) -> dict[str, Tensor]:
        """Return the tensors that checkpoints hold; an override leaves frozen ones out."""
        return self._models[name].state_dict()

    def load_learned_state_dict(self, name: str, state_dict: Mapping[str, Any], path: str) -> None:
        """Put the tensors of the checkpoint ``path`` into a model, where they fit exactly.

        Raises:
            UserError: a tensor is missing, unexpected, or of another shape or kind.
        """
        checkpoints.check_fit(state_dict, self.learned_state_dict(name), path)
        self._models[name].load_state_dict(state_dict, strict=False)

    def check_classes(self, trained: list[str], path: str) -> None:
        """Refuse a checkpoint that cannot serve the present classes; a hook."""

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Save every model as directory/<name>/model.pth.tar-<epoch + 1> or <model_name>."""
        kept = (epoch + 1, val_result, is_best, model_name, self._class_names)
        for name in self.get_model_names():
            folder = os.path.join(directory, name)
            checkpoints.save_model(self.learned_state_dict(name), folder, *kept)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load every model from directory/<name>/, as ``find_checkpoint`` chooses the file.

        Raises:
            UserError: a file is missing, corrupt or does not fit the model.
        """
        if not directory:
            log.info("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = checkpoints.find_checkpoint(os.path.join(directory, name), epoch)
            checkpoint = checkpoints.load_model(path)
            self.check_classes(checkpoint["class_names"], path)
            self.load_learned_state_dict(name, checkpoint["state_dict"], path)
            self.model_epoch = checkpoint["epoch"]
            log.info(f"Load {path} to {name} ({checkpoints.describe(checkpoint)})")

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Put models into "train" or into "test" (also "eval") mode."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(mode)
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # Steps -------------------------------------------------------------------------------------
    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the schedules; trainers call it at the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Return the first learning rate of the first model; 0 without optimizer."""
        optim = self._optims[self.get_model_names(names)[0]]
        return 0.0 if optim is None else float(optim.param_groups[0]["lr"])

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raise ``LossError`` at once where the loss is infinite or not a number."""
        if not torch.isfinite(loss).all():
            images = [] if self._progress is None else self._progress.images
            place = (self.epoch, self.batch_idx, self.num_batches, images)
            raise loss_error("loss", loss.detach().mean().item(), *place)

    def _optimizers(self, names: str | list[str] | None) -> list[torch.optim.Optimizer]:
        return [o for o in map(self._optims.get, self.get_model_names(names)) if o is not None]

    def _watch(self, loss: Tensor) -> None:
        """Have a loss checked when the epoch reads values, or at once outside of an epoch."""
        if self._progress is None:
            self.detect_anomaly(loss)
        else:
            self._progress.watch(loss)

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        for optimizer in self._optimizers(names):
            optimizer.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss; one that is not finite stops the epoch."""
        self._watch(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        for optimizer in self._optimizers(names):
            optimizer.step()

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        """Take one optimizer step on a loss; one that is not finite stops the epoch."""
        self._watch(loss)
        optimizer_step([loss], self._optimizers(names))

    def init_writer(self, log_dir: str, purge_step: int | None = None) -> None:
        """Open the TensorBoard files, if they are not open; drop points from a step on."""
        if self._writer is None and distributed.is_first():
            self._writer = run_folder.open_tensorboard(log_dir, purge_step)

    def close_writer(self) -> None:
        """Close the TensorBoard files, if they are open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Add a point to a TensorBoard curve; do nothing outside of training."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # The loop and its hooks --------------------------------------------------------------------
    # SimpleTrainer.train takes no arguments, as in the public toolbox; this signature allows both
    def train(self, *args: Any, **kwargs: Any) -> None:
        """Train from ``start_epoch`` to ``max_epoch``; ``before_train`` may change the start."""
        self._train(*args, **kwargs)

    def _train(self, start_epoch: int, max_epoch: int) -> None:
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.model_epoch = self.epoch + 1
            self.after_epoch()
            self.save_progress()
        self.after_train()

    def before_train(self) -> None: ...
    def after_train(self) -> None: ...
    def before_epoch(self) -> None: ...
    def after_epoch(self) -> None: ...

    def save_progress(self) -> None:
        """Save what an interrupted run needs to resume; a hook after ``after_epoch``."""

    def extra_state(self) -> dict[str, Any]:
        """Return what else a trainer needs to resume: tensors and plain values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what ``extra_state`` gave."""

    def run_epoch(self) -> None:
        raise NotImplementedError

    def forward_backward(self, batch: Any) -> Mapping[str, Any]:
        raise NotImplementedError


class SimpleTrainer(TrainerBase):
    """Data, evaluation, checkpoints, interruption and resumption, all from a config.

    A trainer overrides ``build_model`` and ``forward_backward``, and whatever else it needs. What
    is to be kept of the final evaluation is left to a ``Recorder``.

    Attributes:
        cfg: the config.
        device: where models and batches are.
        dm: the ``DataManager``; its loaders, num_classes and lab2cname are attributes here, too.
        output_dir: folder of the run.
        evaluator: what sums up predictions.
        recorders: classes of the recorders that see the final evaluation.
    """

    model: Any
    optim: Any
    sched: Any
    scaler: Any = None
    in_processes = shares_tests = False  # may processes share batches, and those of tests?

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self._time_begin, self._elapsed_before = time.time(), 0.0
        self._resume_writer = resume.ResumeWriter()
        self.cfg, self._config = cfg, to_dict(cfg)
        self.warnings: list[str] = []  # of the results, for results.json
        self.recorded: dict[str, Any] = {}  # its further entries
        self.recorders = chosen_recorders(cfg, type(self))
        self.check_cfg(cfg)
        self.device = device_of(cfg)
        self.max_epoch, self.output_dir = int(cfg.OPTIM.MAX_EPOCH), str(cfg.OUTPUT_DIR)
        self._model_dir = self.output_dir  # or the folder of a finished run that RESUME names
        self.build_data_loader()
        resume.share_random_state()  # only who makes a dataset's files draws for them
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for settings that the trainer cannot have; a hook."""

    @distributed.one_first()
    def build_data_loader(self) -> None:
        """Set dm, the loaders, num_classes and lab2cname."""
        self.dm = dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.lab2cname = dm.num_classes, dm.lab2cname
        self._class_names = list(dm.dataset.classnames)
        vars(self).update(data_attributes(dm))

    def build_model(self) -> None:
        """Set ``model`` and register what is trained. Every trainer has its own."""
        raise NotImplementedError(f"{type(self).__name__} must define build_model")

    def train(self) -> None:
        """Train to the end, resuming an earlier run of the same kind that was stopped, and test."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        check_training(self.cfg, self.dm.dataset)
        same_run.check_output(self.output_dir, self._config)
        folder = same_run.folder_to_resume(self.output_dir, self.cfg.RESUME, self.max_epoch)
        self.start_epoch = same_run.agreed(self.resume_model_if_exist(folder), folder)
        self.time_start = time.time()
        if self.start_epoch == self.max_epoch:
            return
        run_folder.begin(self.output_dir, self._config, self._models)
        # an interrupted epoch has left points that this run draws again
        done = self.start_epoch * len(self.train_loader_x)
        self.init_writer(os.path.join(self.output_dir, run_folder.TENSORBOARD_FOLDER), done or None)
        self._writer = trackers.tracked(self._writer, self._config, self.output_dir)

    def after_train(self) -> None:
        distributed.wait_for_all()  # until all checkpoints are written
        log.info("Finish training\nFinished training")  # public scripts wait for either
        if self.cfg.TEST.NO_TEST:
            self.write_results({}, None)
        else:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                log.info("Deploy the model with the best val performance")
                self.load_model(self._model_dir)
            else:
                log.info("Deploy the last-epoch model")
            self.test()
        log.info(f"Elapsed: {datetime.timedelta(seconds=round(self.elapsed_s()))}")
        self.close_writer()

    def after_epoch(self) -> None:
        number, frequency = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            is_tie = result == self.best_result and self.cfg.TEST.BEST_VAL_TIE == "last"
            if result > self.best_result or is_tie:
                self.best_result = float(result)
                name = run_folder.BEST_CHECKPOINT
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=name)
        if number == self.max_epoch or (frequency > 0 and number % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def elapsed_s(self) -> float:
        """Return the seconds that the run has taken, those before an interruption included."""
        return self._elapsed_before + time.time() - self._time_begin

    # Interruption and resumption ---------------------------------------------------------------
    def save_progress(self) -> None:
        """Write resume.pth.tar at the end of an epoch, and remove it at the end of the run."""
        is_last = self.epoch + 1 == self.max_epoch
        self._resume_writer.save(self.output_dir, None if is_last else self._resume_state)

    def _resume_state(self) -> dict[str, Any]:
        return resume.make_state(
            config=self._config,
            epoch=self.epoch + 1,
            models={name: self.learned_state_dict(name) for name in self._models},
            optimizers=self._optims,
            schedulers=self._scheds,
            scaler=self.scaler,
            best_result=self.best_result,
            elapsed_s=self.elapsed_s(),
            class_names=self._class_names,
            extra=self.extra_state(),
        )

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume the run in ``directory``, if there is one, and return the number of epochs done.

        An unfinished run leaves models, optimizers, schedules and random states as they were at
        the end of its last saved epoch. Of a finished one the final models are loaded.

        Raises:
            UserError: the run had another config or other classes, or a file does not fit.
        """
        names, classes = list(self._models), self._class_names
        state = resume.find_state(directory, self._config, names, self.max_epoch, classes)
        if state is not None:
            with resume.restoring(path := os.path.join(directory, run_folder.RESUME_FILE)):
                for name in names:
                    self.load_learned_state_dict(name, state["models"][name], path)
                resume.restore_optimization(state, self._optims, self._scheds, self.scaler)
                self.best_result, self._elapsed_before = state["best_result"], state["elapsed_s"]
                self.load_extra_state(state["extra"])
                # last: building and loading may have drawn random numbers
                resume.set_random_state(state["random"])
            checkpoints.copy_best(directory, self.output_dir, names)
            log.info(f"Resuming the run in {directory}: {state['epoch']} epochs are done")
            return int(state["epoch"])
        if run_folder.is_finished(directory, names, self.max_epoch):
            log.info(same_run.finished_message(directory, self.max_epoch))
            self._model_dir = directory
            self.load_model(directory, epoch=self.max_epoch)
            return self.max_epoch
        if self.cfg.RESUME:
            raise UserError(f"RESUME: expected a run that has saved an epoch, got '{directory}'")
        log.info("No checkpoint found, train from scratch")
        return 0

    # Evaluation --------------------------------------------------------------------------------
    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on "val" (or test, where there is no val) or "test".

        Without ``split`` it is the final evaluation, on TEST.SPLIT: the recorders see it, and
        results.json is written. Returns the evaluator's first figure: accuracy in percent. A
        logit that is not finite is a ``LogitsError``, before anything is written.
        """
        self.set_model_mode("eval")
        is_final, split = split is None, split or self.cfg.TEST.SPLIT
        data_loader = self.val_loader if split == "val" else None
        if data_loader is None:
            split, data_loader = "test", self.test_loader
        recorders = [recorder(self) for recorder in self.recorders] if is_final else []
        how = (self.parse_batch_test, self.model_inference, self.evaluator)
        results = evaluate(data_loader, split, *how, recorders, self.shares_tests)
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        if is_final:
            finish(recorders, self.cfg)
            self.write_results(results, split)
        return float(next(iter(results.values())))

    def write_results(self, results: Mapping[str, float], split: str | None) -> None:
        """Write results.json; ``results`` is empty where TEST.NO_TEST left the test out."""
        summary = self.recorded | (getattr(self.evaluator, "summary", {}) if results else {})
        whose = (self._config, split, self.model_epoch, self.elapsed_s(), self.warnings)
        run_folder.write_results(self.output_dir, results, summary, *whose)

    def model_inference(self, input: Any) -> Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: Any) -> tuple[Any, Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)


class TrainerX(SimpleTrainer):
    """A trainer on labeled images."""

    def run_epoch(self) -> None:
        """Call ``forward_backward`` for each batch; a number that is not finite is a ``LossError``.

        It returns named numbers, such as loss: plain ones or, so that no step waits for the
        device, tensors of one number.
        """
        self.set_model_mode("train")
        loader, frequency = self.train_loader_x, self.cfg.TRAIN.PRINT_FREQ
        numbers = (self.epoch, self.max_epoch, len(loader), self.max_iter)
        self._progress = progress = EpochProgress(*numbers, frequency, self.write_scalar)
        self.num_batches = progress.num_batches
        try:
            for self.batch_idx, batch in enumerate(progress.batches(loader)):
                progress.step(self.forward_backward(batch), self.get_current_lr())
        finally:  # after an error, too: a loss that is not finite may be its cause
            self._progress = None
            progress.flush()

    def parse_batch_train(self, batch: Any) -> Any:
        """Return image, label and domain of a batch, on the device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))
