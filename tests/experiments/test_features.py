"""Kept features in a list, and fixed views in tables."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from configs.protocols import BASE2NEW
from dassl.data.feature_store import FeatureStore
from experiments import features, table, views
from experiments.runs import runs_of
from tests.experiments.finished import leave


def fill(folder: Path) -> FeatureStore:
    store = FeatureStore(str(folder), 10_000_000)
    for number, name in enumerate(("120 of Shapes, test", "64 of Digits, training, view 3")):
        about = {"images": name, "backbone": "ViT-Mini-2", "type": "float32"}
        store.read_or_make({"number": number}, about, lambda: torch.zeros(300_000, 1, 1))
        os.utime(store.path({"number": number}), (number, number))
    return store


def test_the_list_says_what_is_kept_and_how_to_remove_it(tmp_path, capsys):
    store = fill(tmp_path / ".features")
    capsys.readouterr()
    assert features.main(["--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Images", "Backbone", "Type", "Size", "Last", "used"]
    assert lines[2].startswith("64 of Digits, training, view 3  ViT-Mini-2  float32  1.1 MB  1970-")
    assert lines[3].startswith("120 of Shapes, test ")
    assert lines[-1] == f"2 files, 2.3 MB, in {store.folder}"
    assert features.main(["--dir", store.folder, "--empty"]) == 0
    assert capsys.readouterr().out == f"Removed 2 files, 2.3 MB, from {store.folder}\n"
    assert not Path(store.folder).exists()
    assert features.main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"0 files, 0.0 MB, in {store.folder}\n"
    assert features.main(["--root", str(tmp_path / "missing")]) == 2
    error = f"error: --root: expected an existing folder, got '{tmp_path / 'missing'}'\n"
    assert capsys.readouterr().err == error


def record_views(run, number: int) -> None:
    path = run.folder / "results.json"
    config = {"DATALOADER": {"VIEWS": number}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))


def test_a_table_marks_methods_that_were_trained_on_fixed_views(tmp_path, capsys):
    for dataset in ("shapes", "digits"):
        for method, number in (("CoOp", 0), ("KgCoOp", 4), ("ZeroshotCLIP", 4)):
            for run in runs_of(BASE2NEW, method, dataset, output_dir=tmp_path):
                leave(run, [True, False])
                record_views(run, number)
    command = ["--no-run", "--datasets", "shapes", "digits", "--seeds", "1"]
    command += ["--methods", "CoOp", "KgCoOp", "ZeroshotCLIP", "--output-dir", str(tmp_path)]
    assert table.main([*command, "--root", str(tmp_path)]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line]
    methods = [row[2].strip() for row in rows[2:]]
    assert methods == 3 * ["CoOp", "KgCoOp (VIEWS 4)", "ZeroshotCLIP"]


def test_views_are_compared_with_the_published_recipe(tmp_path, capsys):
    command = ["--methods", "CoOp", "--seeds", "1", "2", "--output-dir", str(tmp_path)]
    arguments = views.read_arguments([*command, "--root", str(tmp_path), "--views", "0", "4"])
    for number in (0, 4):
        for job in views.jobs_of("shapes", "CoOp", number, arguments):
            train, validate, novel = job.runs
            assert train.is_trained and validate.arguments[-2:] == ["TEST.SPLIT", "val"]
            assert f"{train.folder}" in validate.arguments and "--eval-only" in validate.arguments
            for run, right in ((train, 1 + number // 2), (validate, 2), (novel, 1)):
                leave(run, [place < right for place in range(4)])
    assert views.main([*command, "--root", str(tmp_path), "--views", "0", "4"]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line]
    rows = [[part.strip() for part in line[1:-1]] for line in (lines[0], *lines[2:])]
    assert rows == [
        ["Dataset", "Method", "VIEWS", "Base", "Validation", "Novel", "Harmonic mean"],
        ["shapes", "CoOp", "0", "25.0 ± 0.0", "50.0 ± 0.0", "25.0 ± 0.0", "25.0 ± 0.0"],
        ["shapes", "CoOp", "4", "75.0 ± 0.0", "50.0 ± 0.0", "25.0 ± 0.0", "37.5 ± 0.0"],
    ]
