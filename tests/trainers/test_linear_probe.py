"""The linear probe is scikit-learn's logistic regression on frozen features, C chosen on val."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dassl.data.datasets import DATASET_REGISTRY, Datum
from tests.trainers import toy
from trainers.linear_probe import STRENGTHS, LinearProbe


@DATASET_REGISTRY.register()
class ColorPatchesWithVal(toy.ColorPatches):
    """A dataset whose validation images are copies of its test images."""

    @property
    def val(self):
        copies = []
        for item in self.test:
            path = item.impath.replace("/test/", "/val/")
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(item.impath, path)
            copies.append(Datum(path, item.label, item.domain, item.classname))
        return copies


@DATASET_REGISTRY.register()
class ColorPatchesWithTestAsVal(toy.ColorPatches):
    @property
    def val(self):
        return self.test


@pytest.mark.parametrize("subset", ["all", "base"])
def test_it_predicts_what_scikit_learn_predicts(run, tmp_path, monkeypatch, subset):
    seen = []
    features = LinearProbe.frozen_features

    def remember(self, loader):
        found = features(self, loader)
        seen.append([part.numpy() for part in found])
        return found

    monkeypatch.setattr(LinearProbe, "frozen_features", remember)
    code, out = run(
        "LinearProbe", "run", "DATASET.NAME", "ColorPatchesWithVal",
        "DATASET.SUBSAMPLE_CLASSES", subset, "TEST.SAVE_LOGITS", "True",
    )  # fmt: skip
    assert code == 0, out
    (x, y), (val_x, val_y) = seen
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    models = [LogisticRegression(C=c, max_iter=2000).fit(x, y) for c in STRENGTHS]
    scores = [m.score(val_x, val_y) for m in models]
    chosen = models[int(np.argmax(scores))]
    assert f"C {chosen.C:g}: validation accuracy {100 * max(scores):.1f}%" in out
    saved = np.load(tmp_path / "run/logits.npz")  # the test images are the validation images here
    probabilities = torch.tensor(saved["logits"]).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, chosen.predict_proba(val_x), atol=1e-4)


def test_it_reloads_and_knows_no_other_classes(run, tmp_path):
    base = ["DATASET.SUBSAMPLE_CLASSES", "base"]
    code, out = run("LinearProbe", "base", *base)
    assert code == 0, out
    load = ["--eval-only", "--model-dir", f"{tmp_path}/base"]
    code, out = run("LinearProbe", "again", *base, flags=load)
    assert code == 0, out
    accuracy = [
        json.loads((tmp_path / d / "results.json").read_text())["accuracy"]
        for d in ("base", "again")
    ]
    assert accuracy[0] == accuracy[1]
    code, out = run("LinearProbe", "all", flags=load)
    assert code == 2 and "was trained on other classes: expected 2 classes, got 4" in out


def test_c_is_not_chosen_by_test_images(run):
    code, out = run("LinearProbe", "run", "DATASET.NAME", "ColorPatchesWithTestAsVal")
    assert code == 0, out
    assert "The validation images are also test images: nothing is selected by them" in out
    assert out.count("validation accuracy") == 1 and "C 1: validation accuracy" in out
