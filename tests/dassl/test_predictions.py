"""predictions.npz: what it contains, and that results.json follows from it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl import metrics
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from dassl.evaluation import read_predictions
from dassl.evaluation.predictions import pack_logits, relative_paths, write_predictions
from dassl.metrics import BUILT_IN, METRIC_REGISTRY
from dassl.utils import UserError
from tests.dassl import toys

ARRAYS = {"format", "paths", "labels", "class_names"}
LOGITS = {"logits"}
TOP = {"top_indices", "top_logits", "log_sum_exp", "label_logits"}


def write(path, logits, labels, changes=None):
    """Write a file for these logits; ``changes`` replace arrays of it, None takes one out."""
    n, classes = logits.shape
    with open(path, "wb") as file:
        write_predictions(
            file,
            [f"/data/set/{i}.png" for i in range(n)],
            "/data",
            labels.numpy(),
            [f"class {k}" for k in range(classes)],
            pack_logits(logits, labels),
        )
    if changes:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files} | changes
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def hard_case(classes, n=300):
    """Draw logits of which many differ by less than half precision can tell, some not at all."""
    logits = 25 + 0.003 * torch.randn(n, classes)
    logits[: n // 4] = 25 + 1e-5 * torch.randint(-3, 3, (n // 4, classes))
    logits[n // 4 : n // 2] *= torch.randint(-1, 2, (n // 4, 1))  # zeros and negative ones, too
    return logits, torch.randint(classes, (n,))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 4, 30, 200, 201, 400])
def test_first_places_are_exactly_those_of_the_logits(tmp_path, classes, kind):
    logits, labels = hard_case(classes)
    logits = logits.to(kind)
    found = read_predictions(write(tmp_path / "p.npz", logits, labels))
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :20].numpy()
    exact = 5 if classes <= 200 else 20
    np.testing.assert_array_equal(found.top_indices[:, :exact], order[:, :exact])
    assert (np.diff(found.top_logits) <= 0).all()
    assert (found.logits is None) == (classes > 200)
    if found.logits is not None:
        np.testing.assert_array_equal(found.logits.argmax(axis=1), logits.argmax(dim=1))
        assert np.abs(found.logits - logits.double().numpy()).max() < 6 * 2**-6  # six steps


@pytest.mark.parametrize("classes", [3, 200, 201])
def test_values_are_those_of_half_precision(tmp_path, classes):
    logits, labels = 10 * torch.randn(50, classes), torch.randint(classes, (50,))
    found = read_predictions(write(tmp_path / "p.npz", logits, labels))
    top = logits.sort(dim=1, descending=True, stable=True).values[:, :20]
    # a step is 2**-6 above 16
    np.testing.assert_allclose(found.top_logits, top, atol=0.05, rtol=2**-9)
    np.testing.assert_allclose(found.log_sum_exp, logits.logsumexp(dim=1), atol=0.02)
    own = logits.gather(1, labels.view(-1, 1)).squeeze(1)
    np.testing.assert_allclose(found.label_logits, own, atol=0.05, rtol=2**-9)
    nll = float(np.mean(found.log_sum_exp - found.label_logits))
    assert nll == pytest.approx(metrics.nll(logits, labels), rel=0.002)
    if found.logits is not None:
        np.testing.assert_allclose(found.logits, logits, atol=0.05, rtol=2**-9)


def test_values_that_half_precision_has_stay_as_they_are(tmp_path):
    logits = torch.tensor([[0.0, -0.0, 1.0], [2.0, 2.0, -65504.0], [-1.5, 0.25, 2.0**-24]])
    found = read_predictions(write(tmp_path / "p.npz", logits, torch.tensor([0, 1, 2])))
    np.testing.assert_array_equal(found.logits, logits)


def test_values_beyond_half_precision_are_cut(tmp_path):
    logits = torch.tensor([[1e6, 9e5, 1.0], [-1e30, 0.0, 1e30]])
    found = read_predictions(write(tmp_path / "p.npz", logits, torch.tensor([0, 2])))
    np.testing.assert_array_equal(found.logits, [[65504, 65472, 1], [-65504, 0, 65504]])


@pytest.mark.parametrize(("classes", "names"), [(5, LOGITS), (200, LOGITS), (201, TOP)])
def test_arrays_and_types_of_the_file(tmp_path, classes, names):
    path = write(tmp_path / "p.npz", *hard_case(classes))
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == ARRAYS | names
        assert file["format"] == 1
        assert file["paths"][1] == "set/1.png" and file["class_names"][-1] == f"class {classes - 1}"
        halves = [file[name].dtype == np.float16 for name in names if "logits" in name]
    assert all(halves)


def test_paths_are_relative_where_they_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside, outside = str(tmp_path / "data" / "a" / "ä 1.png"), str(tmp_path / "data2" / "1.png")
    for root in ("data", "./data/", f"../{tmp_path.name}/data", str(tmp_path / "data")):
        paths = [inside, "data/b.png", outside, "../elsewhere/1.png"]
        expected = ["a/ä 1.png", "b.png", outside, "../elsewhere/1.png"]
        assert relative_paths(paths, root) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert relative_paths([inside], "~/data") == ["a/ä 1.png"]
    assert relative_paths(["/x/1.png"], "/") == ["x/1.png"]


# Files that cannot be read ----------------------------------------------------------------------


def refused(path):
    with pytest.raises(UserError) as caught:
        read_predictions(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_missing_and_newer_files_are_refused(tmp_path):
    assert "do not exist" in refused(tmp_path / "p.npz")
    assert "do not exist" in refused(tmp_path)
    path = write(tmp_path / "p.npz", *hard_case(3), {"format": np.array(2), "logits": None})
    assert "have format 2; expected 1 or less" in refused(path)


@pytest.mark.parametrize(
    ("classes", "changes", "reason"),
    [
        (3, {"format": None}, "format"),
        (3, {"format": np.array("one")}, "one"),
        (3, {"labels": None}, "labels"),
        (3, {"labels": np.zeros(7, dtype=np.int32)}, "labels has type int32 and shape"),
        (3, {"labels": np.full(300, 3)}, "labels are not all in 0..2"),
        (3, {"labels": np.full(300, -1)}, "labels are not all in 0..2"),
        (3, {"labels": np.zeros(300)}, "labels has type float64"),
        (3, {"logits": np.zeros((300, 4))}, "logits has type float64 and shape"),
        (3, {"logits": np.full((300, 3), np.nan)}, "logits holds numbers that are not finite"),
        (3, {"class_names": np.array([1, 2, 3])}, "class_names has type int64"),
        (3, {"paths": np.array([{}] * 300, dtype=object)}, "it holds pickled objects, which are"),
        (3, {"paths": np.array([])}, "paths"),
        (300, {"top_indices": np.full((300, 20), 300)}, "top_indices are not all in 0..299"),
        (300, {"top_logits": np.zeros((300, 19))}, "top_logits has type"),
        (300, {"log_sum_exp": None}, "log_sum_exp"),
    ],
)
def test_damaged_contents_are_refused(tmp_path, classes, changes, reason):
    line = refused(write(tmp_path / "p.npz", *hard_case(classes), changes))
    assert "are damaged" in line and reason in line and "evaluate the run again" in line


def test_damaged_bytes_are_refused(tmp_path):
    data = Path(write(tmp_path / "whole.npz", *hard_case(3, 12))).read_bytes()
    path = tmp_path / "p.npz"
    np.save(tmp_path / "array.npy", np.zeros(3))
    contents = [b"", b"nothing", b"{}", (tmp_path / "array.npy").read_bytes()]
    contents += [data[:length] for length in range(0, len(data), 97)]
    middle = data.index(b"logits.npy") + 30  # within the compressed logits
    contents.append(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    for content in contents:
        path.write_bytes(content)
        assert "are damaged" in refused(path)


# Runs -------------------------------------------------------------------------------------------


def classes_of(count):
    """Make a dataset of this many classes: one training image and two test images of each."""

    class Many(DatasetBase):
        def __init__(self, cfg):
            root, generator = Path(cfg.DATASET.ROOT) / "many", np.random.default_rng(0)
            splits = {"train": [], "test": []}
            for label in range(count):
                for split, number in (("train", 0), ("test", 1), ("test", 2)):
                    path = root / split / f"{label}-{number}.png"
                    if not path.exists():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
                        Image.fromarray(pixels).save(path)
                    splits[split].append(Datum(str(path), label, classname=f"class {label}"))
            super().__init__(train_x=splits["train"], test=splits["test"])

    return Many


class CoarseNet(toys.ToyNet):
    """Logits that are multiples of 1/1000 around 20: many are equal, more so when rounded."""

    def forward(self, image):
        return 20 + (super().forward(image) / 4).round(decimals=3)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Many", str(tmp_path / "data")
    cfg.TRAINER.NAME, cfg.OUTPUT_DIR = "ToyTrainer", str(tmp_path / "run")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TEST.BATCH_SIZE = 50
    cfg.INPUT.SIZE = (8, 8)
    cfg.USE_CUDA = False
    (tmp_path / "data").mkdir()
    return cfg


@pytest.mark.parametrize("classes", [4, 40, 240])
def test_results_follow_from_the_predictions_of_a_run(cfg, tmp_path, monkeypatch, classes):
    monkeypatch.setitem(DATASET_REGISTRY._objects, "Many", classes_of(classes))
    monkeypatch.setattr(toys, "ToyNet", CoarseNet)
    trainer = build_trainer(cfg)
    for is_close in (False, True):
        if is_close:
            relabel(trainer)
        trainer.test()
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        found = read_predictions(str(tmp_path / "run" / "predictions.npz"))
        n = 2 * classes
        assert len(found.labels) == results["total"] == n
        right = found.top_indices[:, 0] == found.labels
        assert 100.0 * int(right.sum()) / n == results["accuracy"]
        of_top5 = (found.top_indices[:, :5] == found.labels[:, None]).any(axis=1)
        assert 100.0 * int(of_top5.sum()) / n == results["top5_accuracy"]
        per_class = {
            str(found.class_names[label]): 100.0 * right[found.labels == label].mean()
            for label in np.unique(found.labels)
        }
        assert per_class == pytest.approx(results["per_class_accuracy"], rel=1e-12)
        nll = np.mean(found.log_sum_exp.astype(float) - found.label_logits)
        assert nll == pytest.approx(results["nll"], abs=0.03)
    assert 0 < results["accuracy"] < 100
    assert [name for name in os.listdir(tmp_path / "run") if name.startswith(".")] == []


def relabel(trainer):
    """Give each test image one of the first classes of its prediction as its label."""
    source = trainer.test_loader.dataset.data_source
    with torch.no_grad():
        outputs = [trainer.model_inference(batch["img"]) for batch in trainer.test_loader]
    for index, row in enumerate(torch.cat(outputs).sort(descending=True, stable=True).indices):
        label = int(row[min(index % 8, len(row) - 1)])
        source[index] = Datum(source[index].impath, label, classname=f"class {label}")


def test_paths_and_names_of_a_run(cfg, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASET_REGISTRY._objects, "Many", classes_of(3))
    cfg.TEST.RECORD = ("predictions",)  # it may be named, and is written once
    build_trainer(cfg).test()
    found = read_predictions(str(tmp_path / "run" / "predictions.npz"))
    assert found.paths.tolist() == [f"many/test/{k}-{i}.png" for k in range(3) for i in (1, 2)]
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.class_names.tolist() == ["class 0", "class 1", "class 2"]


def test_the_code_of_the_page_on_metrics_runs(cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(METRIC_REGISTRY, "_objects", dict(METRIC_REGISTRY._objects))
    monkeypatch.setitem(DATASET_REGISTRY._objects, "Many", classes_of(3))
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| (`.*`) \|", page, re.MULTILINE)) == {
        "`accuracy`, `error`",
        *(f"`{name}`" for name in BUILT_IN if name not in ("accuracy", "error")),
    }
    metric, reader = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(metric, {})
    cfg.TEST.METRICS, cfg.OUTPUT_DIR = ("mean_rank",), str(tmp_path / "output" / "run")
    build_trainer(cfg).test()
    results = json.loads((tmp_path / "output" / "run" / "results.json").read_text())
    assert 1 <= results["mean_rank"] <= 3
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names = {}
    exec(reader, names)
    assert capsys.readouterr().out.count("many/test/") == 6 - results["correct"]
    assert names["confidence"].shape == names["nll"].shape == (6,)


def test_outputs_of_another_kind_leave_no_predictions(cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(DATASET_REGISTRY._objects, "Many", classes_of(3))
    trainer = build_trainer(cfg)
    trainer.test()
    path = tmp_path / "run" / "predictions.npz"
    assert path.exists()
    loader = trainer.test_loader
    trainer.test_loader = [
        {key: batch[key] for key in ("img", "label")}  # as a dataset wrapper of one's own may give
        for batch in loader
    ]
    trainer.test()
    assert not path.exists()  # it would be that of another evaluation
    assert "predictions.npz is not written" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.json").exists()
