"""Checkpoints, resume files and configs of runs that are damaged, or were edited."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train
from dassl.engine import TrainerBase, resume
from dassl.engine.resume import DIGEST
from dassl.errors import UserError
from dassl.utils import load_checkpoint
from dassl.utils.convert_checkpoint import read_without_objects
from tests.dassl import toys

NAN = float("nan")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return toys.draw(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stopped(root, tmp_path_factory):
    """Make the folder of a run that was stopped in its second epoch."""
    output = tmp_path_factory.mktemp("runs") / "stopped"
    toys.ToyTrainer.stop_at = (2, 1)
    try:
        assert train.main(toys.cli(root, output)) == 130
    finally:
        toys.ToyTrainer.stop_at = None
    return output


@pytest.fixture
def run(stopped, tmp_path):
    """Copy the stopped run into a folder that a test may change."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture
def trainer():
    trainer = TrainerBase()
    trainer.register_model("net", torch.nn.BatchNorm1d(3))
    return trainer


def error_of(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def whole() -> dict:
    """Return a checkpoint that fits the trainer's model."""
    state = torch.nn.BatchNorm1d(3).state_dict()
    return {"state_dict": state, "epoch": 2, "val_result": 50.0, "class_names": ["a", "b"]}


# Checkpoints -------------------------------------------------------------------------------------

ONES = torch.ones(3)
TENSORS = {
    "text": "three",
    "nothing": None,
    "a number": 1.0,
    "a list": [1.0, 1.0, 1.0],
    "integers": torch.ones(3, dtype=torch.int64),
    "truth values": torch.ones(3, dtype=torch.bool),
    "complex": ONES.to(torch.complex64),
    "sparse": ONES.to_sparse(),
    "quantized": None,  # made in the test, as torch warns
    "meta": torch.ones(3, device="meta"),
    "not a number": torch.tensor([1.0, NAN, 1.0]),
    "infinite": torch.tensor([1.0, float("inf"), 1.0]),
    "one too many": torch.ones(4),
    "a scalar": torch.tensor(1.0),
}


@pytest.mark.filterwarnings("ignore")  # of torch about quantized and sparse tensors
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_cannot_be_the_models_is_named(trainer, tmp_path, kind):
    checkpoint = whole()
    value = TENSORS[kind]
    if kind == "quantized":
        value = torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8)
    checkpoint["state_dict"]["weight"] = value
    path = tmp_path / "net" / "model.pth.tar-2"
    path.parent.mkdir()
    torch.save(checkpoint, path)
    before = {name: t.clone() for name, t in trainer.learned_state_dict("net").items()}
    with pytest.raises(UserError) as info:
        trainer.load_model(str(tmp_path), epoch=2)
    assert str(path) in str(info.value)
    if kind != "meta":  # torch itself refuses some of them
        assert "weight" in str(info.value) or "corrupt" in str(info.value)
    assert all(torch.equal(t, before[n]) for n, t in trainer.learned_state_dict("net").items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("state_dict", value) for value in (None, [], 3, "text", ONES, {})),
        ("state_dict", {None: ONES, 3: ONES}),
        *(("epoch", value) for value in ("two", NAN, None, -1, 2.5, True, [2], ONES)),
        *(("val_result", value) for value in ("good", NAN, float("inf"), [50.0])),
        *(("class_names", value) for value in ("ab", [1, 2], {"a": 0}, None)),
    ],
)
def test_a_field_of_another_type_is_refused(trainer, tmp_path, field, value):
    path = tmp_path / "net" / "model.pth.tar-2"
    path.parent.mkdir()
    torch.save({**whole(), field: value}, path)
    with pytest.raises(UserError, match=str(path)):
        trainer.load_model(str(tmp_path), epoch=2)


def test_a_checkpoint_without_our_own_fields_is_read(trainer, tmp_path):
    path = tmp_path / "net" / "model.pth.tar-2"
    path.parent.mkdir()
    state = {k: v.half() if v.is_floating_point() else v for k, v in whole()["state_dict"].items()}
    torch.save({"state_dict": state}, path)
    trainer.load_model(str(tmp_path), epoch=2)
    assert trainer.model_epoch == 0


def as_torchscript(path):
    torch.save(whole(), path)
    with zipfile.ZipFile(path, "a") as file:  # what makes torch hand a file to torch.jit.load
        file.writestr(f"{file.namelist()[0].split('/')[0]}/constants.pkl", b"")


def with_protocol_4(path):
    torch.save(whole(), path, pickle_protocol=4)


def in_the_oldest_format(path):
    with tarfile.open(path, "w") as file:
        for name in ("storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(name))


def with_a_number_of_another_type(path):
    torch.save({**whole(), "val_result": np.void(b"x")}, path)


def that_fills_memory(path):
    torch.save({**whole(), "more": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members:
            new.writestr(name, content)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (as_torchscript, "is a TorchScript program, which is not run; expected what torch.save"),
        (with_protocol_4, "it is not what torch.save writes with its usual pickle protocol, 2"),
        (in_the_oldest_format, "it is not what torch.save writes with its usual pickle protoc"),
        (with_a_number_of_another_type, "it is not what torch.save writes with its usual pickle"),
        (that_fills_memory, "is damaged: it would have 4,"),
    ],
)
def test_what_torch_warns_of_or_advises_is_one_line(tmp_path, capsys, recwarn, write, reason):
    path = tmp_path / "model.pth.tar-2"
    write(path)
    for read in (load_checkpoint, read_without_objects):
        with pytest.raises(UserError) as raised:
            read(str(path))
        line = str(raised.value)
        assert reason in line and str(path) in line and "\n" not in line
        assert not any(word in line for word in ("weights_only", "safe_globals", "jit.load"))
    assert not recwarn.list


def test_every_flipped_bit_is_found_or_harmless(trainer, tmp_path):
    path = tmp_path / "net" / "model.pth.tar-2"
    path.parent.mkdir()
    torch.save(whole(), path)
    data = path.read_bytes()
    expected = load_checkpoint(str(path))["state_dict"]
    found = 0
    for place in range(0, len(data), 23):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            state = load_checkpoint(str(path))["state_dict"]
        except UserError as error:
            assert str(path) in str(error)
            found += 1
        else:  # in the padding between the archive's members
            assert list(state) == list(expected)
            assert all(torch.equal(state[name], expected[name]) for name in expected)
    values = data.index(expected["weight"].numpy().tobytes())
    path.write_bytes(data[:values] + b"\1" + data[values + 1 :])
    with pytest.raises(UserError, match=f"'{path}' is damaged: the checksum of"):
        load_checkpoint(str(path))
    assert found > 20


def test_tensors_that_are_not_finite_are_not_saved(trainer, tmp_path):
    with torch.no_grad():
        trainer._models["net"].weight[1] = NAN
    with pytest.raises(
        UserError, match="tensor 'weight' is infinite or not a number after epoch 3"
    ):
        trainer.save_model(2, str(tmp_path))
    assert list(tmp_path.rglob("*")) == []


def test_what_a_last_step_broke_is_not_saved(root, tmp_path, capsys, monkeypatch):
    step = toys.ToyTrainer.forward_backward

    def breaking(self, batch):
        summary = step(self, batch)
        if (self.epoch, self.batch_idx) == (1, 2):
            with torch.no_grad():
                self.model.layers[1].weight[0, 0] = NAN
        return summary

    monkeypatch.setattr(toys.ToyTrainer, "forward_backward", breaking)
    monkeypatch.setattr("dassl.engine.resume.SAVE_INTERVAL", 0.0)
    output = tmp_path / "run"
    assert train.main(toys.cli(root, output, "TRAIN.CHECKPOINT_FREQ", "1")) == 2
    assert "tensor 'layers.1.weight' is infinite or not a number after epoch 2" in error_of(capsys)
    assert load_checkpoint(str(output / "resume.pth.tar"))["epoch"] == 1
    assert not (output / "toy_net" / "model.pth.tar-2").exists()
    monkeypatch.undo()
    assert train.main(toys.cli(root, output)) == 0


# Resume files ------------------------------------------------------------------------------------

FIELDS = ["config", "epoch", "models", "optimizers", "schedulers", "scaler", "random"]
FIELDS += ["best_result", "elapsed_s", "class_names", "extra"]


def find_state(folder: Path) -> dict | None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return resume.find_state(str(folder), config, ["toy_net"], 3, toys.CLASSES)


def test_these_are_the_fields_of_a_resume_file(stopped):
    assert sorted(load_checkpoint(str(stopped / "resume.pth.tar"))) == sorted([*FIELDS, DIGEST])
    assert sorted(find_state(stopped)) == sorted(FIELDS)


@pytest.mark.parametrize("value", ["missing", None, 99, -3, 1.5, "text", [], {}, NAN, ONES])
@pytest.mark.parametrize("field", [*FIELDS, DIGEST])
def test_an_edited_resume_file_is_refused(run, field, value):
    path = run / "resume.pth.tar"
    state = load_checkpoint(str(path))
    if isinstance(value, str) and value == "missing":
        del state[field]
    elif field == "scaler" and value is None:
        state[field] = False  # None is what the file says: the toys have no scaler
    else:
        state[field] = value
    torch.save(state, path)
    if field == DIGEST and (value is None or isinstance(value, str) and value == "missing"):
        assert find_state(run)["epoch"] == 1  # as of a version that wrote none
        return
    with pytest.raises(UserError) as info:
        find_state(run)
    assert str(info.value) == f"resume file '{path}' is damaged; delete it to train from scratch"


@pytest.mark.parametrize("field", [field for field in FIELDS if field != "scaler"])
def test_a_resume_file_without_a_digest_must_have_every_field(root, run, capsys, field):
    path = run / "resume.pth.tar"
    state = load_checkpoint(str(path))
    del state[DIGEST]
    if field != "class_names":  # which older versions did not write either
        del state[field]
    torch.save(state, path)
    code = train.main(toys.cli(root, run))
    if field == "class_names":
        assert code == 0
    else:
        assert code == 2
        line = f"error: resume file '{path}' is damaged; delete it to train from scratch"
        assert error_of(capsys) == line


@pytest.mark.parametrize("epoch", [0, 3, 99, -3])
def test_the_epoch_of_a_resume_file_without_a_digest_is_within_the_run(run, epoch):
    path = run / "resume.pth.tar"
    state = load_checkpoint(str(path))
    del state[DIGEST]
    torch.save({**state, "epoch": epoch}, path)
    with pytest.raises(UserError, match=f"expected 1 to 2 epochs, got {epoch}"):
        find_state(run)


@pytest.mark.parametrize("content", [ONES, [1, 2], None, "text"])
def test_a_resume_file_that_holds_something_else_is_refused(run, content):
    torch.save(content, run / "resume.pth.tar")
    with pytest.raises(UserError, match="is damaged; delete it"):
        find_state(run)


# Configs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- 1\n- 2\n",
        b"text",
        b"\x00\xff\xfe binary",
        b"OPTIM:\n\tLR: 1\n",
        b"OPTIM: !!python/object/apply:os.system ['true']\n",
        b"OPTIM: [1, 2]\n",
        b"OPTIM: {LR: fast}\n",
        b"DATASET: 3\n",
        b"OPTIM: {LR: 0.02}\n",  # the whole file but for what came later
        b"BASE: [other.yaml]\n",
        b"DATASET:\n  NAME: Toys\n",  # cut off
        b"{",
        b"SOMETHING: else\n",
    ],
)
def test_a_damaged_config_of_a_run_is_named(root, run, capsys, content):
    (run / "config.yaml").write_bytes(content)
    assert train.main(toys.cli(root, run)) == 2
    assert str(run) in error_of(capsys)


def test_a_config_of_a_run_that_is_cut_off_is_named(root, run, capsys):
    path = run / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert train.main(toys.cli(root, run)) == 2
    assert f"config file '{path}': expected the whole config of a run" in error_of(capsys)
