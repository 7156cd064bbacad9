import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine import (
    RECORDER_REGISTRY,
    Recorder,
    SimpleTrainer,
    TrainerBase,
    build_trainer,
    resume,
)
from dassl.engine.progress import EpochProgress, read_numbers
from dassl.utils import LossError, UserError, set_random_seed
from tests.dassl import toys
from tests.device_reads import count_reads


@pytest.fixture
def trainer():
    torch.manual_seed(2)  # the sum of its outputs is positive
    made = TrainerBase()
    model = nn.Linear(2, 2)
    optim = torch.optim.SGD(model.parameters(), lr=0.1)
    sched = torch.optim.lr_scheduler.StepLR(optim, 1, 0.5)
    made.register_model("one", model, optim, sched)
    made.register_model("frozen", nn.Dropout())
    return made


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Toys", str(toys.draw(tmp_path / "data"))
    cfg.TRAINER.NAME, cfg.OUTPUT_DIR = "ToyTrainer", str(tmp_path / "run")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.SIZE = (8, 8)
    cfg.USE_CUDA = False
    return cfg


def test_models_are_registered_by_name(trainer):
    assert trainer.get_model_names() == ["one", "frozen"]
    assert trainer.get_model_names("one") == ["one"]
    with pytest.raises(KeyError):
        trainer.get_model_names("two")
    with pytest.raises(ValueError, match="'one' is already registered"):
        trainer.register_model("one", nn.Linear(1, 1))
    with pytest.raises(AttributeError):
        TrainerBase.__new__(TrainerBase).register_model("one", nn.Linear(1, 1))


def test_modes_and_rates(trainer):
    trainer.set_model_mode("eval")
    assert not trainer._models["frozen"].training
    trainer.set_model_mode("train", "frozen")
    assert trainer._models["frozen"].training and not trainer._models["one"].training
    with pytest.raises(KeyError):
        trainer.set_model_mode("other")
    assert trainer.get_current_lr() == 0.1 and trainer.get_current_lr("frozen") == 0.0
    trainer._optims["one"].step()
    trainer.update_lr()
    assert trainer.get_current_lr() == 0.05


def test_backward_and_update_step_only_on_a_finite_loss(trainer):
    model = trainer._models["one"]
    before = model.weight.detach().clone()
    with pytest.raises(LossError, match="loss is inf at epoch 1, batch 1"):
        trainer.model_backward_and_update(model(torch.ones(1, 2)).sum() * float("inf"))
    assert torch.equal(model.weight, before)
    trainer.model_backward_and_update(model(torch.ones(1, 2)).sum())
    assert torch.allclose(model.weight, before - 0.1)


def test_a_loss_that_is_not_a_number_is_reported_at_once_outside_an_epoch(trainer):
    with pytest.raises(LossError, match=r"loss is nan at epoch 1, batch 1/0 \(first images: unkn"):
        trainer.detect_anomaly(torch.tensor([1.0, float("nan")]))
    trainer.detect_anomaly(torch.tensor([1.0]))


def test_dassls_three_parts_of_a_step_are_the_whole_one(trainer):
    model = trainer._models["one"]
    before = model.weight.detach().clone()
    for _ in range(2):
        trainer.model_zero_grad()
        trainer.model_backward(model(torch.ones(1, 2)).sum())
        trainer.model_update()
    assert torch.allclose(model.weight, before - 0.2)


def test_saved_models_load_again(trainer, tmp_path, capsys):
    model = trainer._models["one"]
    saved = model.weight.detach().clone()
    trainer.save_model(4, str(tmp_path), is_best=True, val_result=np.float64(71.23))
    with torch.no_grad():
        model.weight.zero_()
    trainer.load_model(str(tmp_path))
    assert torch.equal(model.weight, saved) and trainer.model_epoch == 5
    assert "model-best.pth.tar to one (epoch=5, val_result=71.2)" in capsys.readouterr().out
    trainer.load_model("")
    assert "skipped" in capsys.readouterr().out


def test_a_checkpoint_of_a_data_parallel_model_is_read(trainer, tmp_path):
    model = trainer._models["one"]
    state = {f"module.{name}": torch.full_like(t, 2.0) for name, t in model.state_dict().items()}
    trainer.save_model(2, str(tmp_path))
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "one" / "model.pth.tar-3")
    trainer.load_model(str(tmp_path), epoch=3)
    assert all((t == 2.0).all() for t in model.state_dict().values())


def test_checkpoints_that_do_not_fit_are_refused(trainer, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    path = folder / "model.pth.tar-2"
    weight, bias = torch.ones(2, 2), torch.ones(2)
    for state, message in [
        ({"weight": weight}, "it has no tensor 'bias'"),
        ({"weight": weight, "bias": torch.ones(3)}, r"'bias' has shape \(3,\).* has \(2,\)"),
        ({"weight": weight, "bias": bias, "ctx": bias}, "this model has no tensor 'ctx'"),
    ]:
        torch.save({"state_dict": state, "epoch": 2}, path)
        with pytest.raises(UserError, match=message) as info:
            trainer.load_model(str(tmp_path), epoch=2)
        assert str(path) in str(info.value)
    torch.save(weight, path)
    with pytest.raises(UserError, match="holds no state_dict"):
        trainer.load_model(str(tmp_path), epoch=2)
    with pytest.raises(UserError, match="epochs saved there: 2"):
        trainer.load_model(str(tmp_path), epoch=3)
    path.unlink()
    with pytest.raises(UserError, match="no checkpoint in"):
        trainer.load_model(str(tmp_path))
    with pytest.raises(UserError, match="nowhere.* does not exist"):
        trainer.load_model("/nowhere")


def test_a_trainer_may_leave_frozen_tensors_out(trainer, tmp_path):
    model = trainer._models["one"]
    trainer.learned_state_dict = lambda name: {"bias": model.bias} if name == "one" else {}
    trainer.save_model(0, str(tmp_path))
    kept = torch.load(tmp_path / "one" / "model.pth.tar-1", weights_only=True)["state_dict"]
    assert list(kept) == ["bias"]
    bias, weight = model.bias.detach().clone(), torch.full((2, 2), 3.0)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.zero_()
    trainer.load_model(str(tmp_path), epoch=1)
    assert torch.equal(model.bias, bias) and torch.equal(model.weight, weight)


def test_random_states_come_back():
    def draw():
        return random.gauss(0, 1), np.random.randn(), torch.randn(3).tolist()

    set_random_seed(5)
    draw()  # leaves half of a pair of normal numbers cached in Python and NumPy
    state = resume.random_state()
    first = draw()
    set_random_seed(6)
    resume.set_random_state(state)
    assert draw() == first


def test_resume_file_holds_nothing_but_tensors_and_plain_values(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(toys.ToyTrainer, "stop_at", (2, 1))
    trainer = build_trainer(cfg)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.close_writer()
    state = torch.load(tmp_path / "run" / "resume.pth.tar", weights_only=True)
    assert state["epoch"] == 1 and state["extra"] == {"steps": 1}
    assert sorted(state["models"]) == ["toy_net"]


def test_progress_is_saved_only_when_saving_is_cheap(cfg, tmp_path, monkeypatch):
    """An epoch that takes less than ten times as long as a save leaves the old file."""
    trainer = build_trainer(cfg)
    now = [0.0]
    saved = []

    def slow_save(state, path):
        saved.append(state["epoch"])
        now[0] += 2.0

    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(resume, "save_torch_file", slow_save)
    for epoch in range(9):
        trainer.epoch = epoch
        now[0] += 5.0
        trainer.save_progress()
    assert saved == [1, 5, 9]


def test_base_trainer_asks_for_a_model(cfg):
    with pytest.raises(NotImplementedError, match="must define build_model"):
        SimpleTrainer(cfg)


def test_no_test_still_leaves_a_record(cfg, tmp_path):
    cfg.TEST.NO_TEST = True
    cfg.OPTIM.MAX_EPOCH = 1
    build_trainer(cfg).train()
    text = (tmp_path / "run" / "results.json").read_text()
    assert '"accuracy": null' in text and '"epoch": 1' in text


def test_invalid_arguments_are_told_what_is_allowed(cfg):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 0
    with pytest.raises(UserError, match="TRAIN_X.BATCH_SIZE: expected a whole number >= 1, got 0"):
        build_trainer(cfg)


def test_a_trainer_with_steps_of_its_own_is_not_asked_to_split_batches(cfg):
    cfg.OPTIM.ACCUMULATE = 2
    message = f"^OPTIM.ACCUMULATE: expected 1 for {cfg.TRAINER.NAME}, which cannot split a batch"
    with pytest.raises(UserError, match=message):
        build_trainer(cfg)


def test_bar_replaces_the_lines_on_a_terminal_only(cfg, tmp_path, monkeypatch, capsys):
    cfg.OPTIM.MAX_EPOCH = 2
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    build_trainer(cfg).train()
    captured = capsys.readouterr()
    assert "epoch [2/2]: 100%" in captured.err and "eta=0:00:00" in captured.err
    assert "loss=" in captured.err and "acc=" in captured.err and "lr=" in captured.err
    # stdout is not a terminal here, so it gets the lines, too
    assert "epoch [2/2] batch [1/1] time" in captured.out


@pytest.mark.parametrize("trainer", ["TensorTrainer", "SecretiveTrainer"])
def test_the_device_is_read_at_the_interval_and_at_the_end_of_an_epoch(cfg, monkeypatch, trainer):
    cfg.TRAINER.NAME, cfg.OPTIM.NAME = trainer, "sgd"
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    cfg.TRAIN.PRINT_FREQ = 3
    trainer = build_trainer(cfg)
    batches = list(trainer.train_loader_x)[:8]
    trainer.train_loader_x = batches  # loading may read what it wants
    counts = [0]
    step = EpochProgress.step

    def counting_step(self, summary, lr):
        step(self, summary, lr)
        counts.append(0)

    monkeypatch.setattr(EpochProgress, "step", counting_step)
    count_reads(monkeypatch, counts)
    trainer.run_epoch()
    assert [bool(count) for count in counts] == [False, False, True] * 2 + [False, True, False]
    assert max(counts) == 2  # one transfer, and one list of what it brought


def test_values_and_points_are_those_of_each_step_however_seldom_they_are_read(cfg, capsys):
    cfg.TRAINER.NAME, cfg.OPTIM.NAME = "TensorTrainer", "sgd"
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 8
    found = []
    for frequency in (1, 2, 1000):
        cfg.TRAIN.PRINT_FREQ = frequency
        set_random_seed(1)
        trainer = build_trainer(cfg)
        points = []
        trainer.write_scalar = lambda *point, points=points: points.append(point)
        trainer.run_epoch()
        lines = [line for line in capsys.readouterr().out.splitlines() if "batch [" in line]
        found.append(
            (points, [re.sub(r"(time|data|eta) [\d.:]+( \([\d.]+\))?", "", x) for x in lines])
        )
    (points, lines), (some_points, some_lines), (late_points, late_lines) = found
    assert len(points) == 15 and points == some_points == late_points
    assert len(lines) == 5 and some_lines == lines[1::2] and late_lines == lines


def test_a_tensor_may_be_written_into_after_its_step(cfg, monkeypatch):
    total = torch.zeros(1)
    monkeypatch.setattr(toys.TensorTrainer, "summary", lambda self, *_: {"n": total.add_(1)})
    cfg.TRAINER.NAME = "TensorTrainer"
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 8
    trainer = build_trainer(cfg)
    points = []
    trainer.write_scalar = lambda tag, value, step: points.append((tag, value))
    trainer.run_epoch()
    assert [value for tag, value in points if tag == "train/n"] == [1, 1.5, 2, 2.5, 3]


def test_a_plain_number_is_checked_at_once_and_earlier_tensors_before_it(cfg, monkeypatch):
    cfg.TRAINER.NAME = "TensorTrainer"
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 8

    def mixed(self, loss, accuracy):
        is_bad = self.batch_idx == 3
        return {"acc": accuracy, "penalty": float("inf") if is_bad else 1.0}

    monkeypatch.setattr(toys.TensorTrainer, "summary", mixed)
    trainer = build_trainer(cfg)
    with pytest.raises(LossError, match="penalty is inf at epoch 1, batch 4/5"):
        trainer.run_epoch()
    assert trainer.batch_idx == 3
    monkeypatch.setattr(toys.TensorTrainer, "nan_at", (1, 2))
    with pytest.raises(LossError, match="loss is nan at epoch 1, batch 2/5"):
        trainer.run_epoch()


def test_a_failure_caused_by_a_bad_loss_is_reported_as_such(cfg, monkeypatch):
    def fragile(self, loss, accuracy):
        if self.batch_idx == 2:
            raise RuntimeError("input contains NaN")
        return {"loss": loss}

    monkeypatch.setattr(toys.TensorTrainer, "summary", fragile)
    cfg.TRAINER.NAME = "TensorTrainer"
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 8
    trainer = build_trainer(cfg)
    with pytest.raises(RuntimeError, match="contains NaN"):
        trainer.run_epoch()
    monkeypatch.setattr(toys.TensorTrainer, "nan_at", (1, 2))
    with pytest.raises(LossError, match="loss is nan at epoch 1, batch 2/5"):
        trainer.run_epoch()


def test_an_interrupted_epoch_shows_the_batches_that_are_done(cfg, monkeypatch, capsys):
    cfg.TRAINER.NAME, cfg.TRAIN.PRINT_FREQ = "TensorTrainer", 100
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 8
    monkeypatch.setattr(toys.TensorTrainer, "stop_at", (1, 4))
    with pytest.raises(KeyboardInterrupt):
        build_trainer(cfg).run_epoch()
    assert capsys.readouterr().out.count("epoch [1/10] batch [") == 3


def test_tensors_of_several_types_are_read_exactly():
    values = [torch.tensor(v) for v in (0.1, 2**40 + 1, True)]
    values += [torch.tensor(0.1, dtype=kind) for kind in (torch.float64, torch.bfloat16)]
    assert read_numbers(values) == [float(value) for value in values]
    assert read_numbers([]) == []


def enter(monkeypatch, name, recorder):
    monkeypatch.setitem(RECORDER_REGISTRY._objects, name, recorder)


def test_recorders_see_the_final_evaluation_and_no_other(cfg, tmp_path, monkeypatch):
    called = []

    class Spy(Recorder):
        def __init__(self, trainer):
            super().__init__(trainer)
            called.append("begin")

        def batch(self, batch, output):
            called.append((len(batch["impath"]), tuple(output.shape)))

        def finish(self):
            assert not (tmp_path / "run" / "results.json").exists()
            called.append("end")

    enter(monkeypatch, "spy", Spy)
    cfg.TEST.RECORD = ("spy",)
    cfg.DATALOADER.TEST.BATCH_SIZE = 20
    trainer = build_trainer(cfg)
    trainer.test("val")
    assert called == []
    trainer.test()
    assert called == ["begin", (20, (20, 5)), (10, (10, 5)), "end"]


def test_a_switch_that_the_trainer_does_not_heed_is_refused(cfg, monkeypatch):
    cfg.TEST.SAVE_FEATURES = True
    with pytest.raises(UserError, match="SAVE_FEATURES is True.* ToyTrainer; it is for no trainer"):
        build_trainer(cfg)

    class Features(Recorder):
        trainers = ("WideToyTrainer",)

    enter(monkeypatch, "features", Features)
    with pytest.raises(UserError, match="the trainer is ToyTrainer; it is for WideToyTrainer"):
        build_trainer(cfg)
    cfg.TRAINER.NAME = "WideToyTrainer"
    build_trainer(cfg)
    cfg.TRAINER.NAME, cfg.TEST.SAVE_FEATURES = "ToyTrainer", False
    build_trainer(cfg)


def test_a_recorder_that_cannot_be_is_refused_before_data_is_read(cfg, monkeypatch):
    class Picky(Recorder):
        @classmethod
        def check(cls, cfg):
            raise UserError("TEST.RECORD has 'picky', but it is raining")

    class Wide(Recorder):
        trainers = ("WideToyTrainer",)

    enter(monkeypatch, "picky", Picky)
    enter(monkeypatch, "wide", Wide)
    monkeypatch.setattr(toys.Toys, "__init__", lambda self, cfg: pytest.fail("data is read"))
    for names, message in [
        (("logit",), r"TEST.RECORD: expected .*, got .*'logit'.*; did you mean 'logits'"),
        (("logits", "wide"), "TEST.RECORD has 'wide', but the trainer is ToyTrainer; it is for W"),
        (("picky",), "but it is raining"),
    ]:
        cfg.TEST.RECORD = names
        with pytest.raises(UserError, match=message):
            build_trainer(cfg)
        with pytest.raises(UserError, match=message):  # built without the registry
            toys.ToyTrainer(cfg)


def test_a_recorder_works_for_subclasses_of_its_trainer_and_is_made_once(cfg, monkeypatch):
    made = []

    class OfToys(Recorder):
        trainers = ("ToyTrainer",)

        def __init__(self, trainer):
            made.append(trainer)

    enter(monkeypatch, "of_toys", OfToys)
    cfg.TEST.SAVE_OF_TOYS = True
    cfg.TEST.RECORD = ("of_toys", "of_toys")
    cfg.TRAINER.NAME = "WideToyTrainer"
    trainer = build_trainer(cfg)
    trainer.test()
    assert made == [trainer]


def test_what_is_recorded_may_change_when_a_run_is_resumed(cfg, capsys, tmp_path):
    cfg.OPTIM.MAX_EPOCH = 1
    cfg.TEST.SAVE_FEATURES = False
    build_trainer(cfg).train()
    cfg.TEST.SAVE_LOGITS = True
    cfg.TEST.SAVE_FEATURES = None
    build_trainer(cfg).train()
    assert "not training again" in capsys.readouterr().out
    (tmp_path / "run" / "logits.npz").unlink()
    cfg.TEST.SAVE_LOGITS, cfg.TEST.RECORD = False, ("logits",)
    build_trainer(cfg).train()
    assert "not training again" in capsys.readouterr().out
    assert (tmp_path / "run" / "logits.npz").exists()
