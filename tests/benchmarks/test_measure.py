"""What benchmarks/cost counts and keeps, at the size of its rehearsal; nothing is timed."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.cost import __main__ as cost
from benchmarks.cost import measure
from benchmarks.cost.cells import TOKEN_FLOPS, TOKENS, Cell, rough_flops
from benchmarks.cost.measure import Subject
from dassl.engine.optimize import PRECISIONS
from dassl.errors import UserError

KINDS = {"ZeroshotCLIP": "learns nothing", "LinearProbe": "fits itself"}


def small(method: str, classes: int = 3, **values) -> Cell:
    return Cell(method, classes, model="small", batch=2, test_batch=2, **values)


def test_attention_and_its_gradient_are_counted_on_a_cpu():
    q, k, v = (torch.randn(2, 4, 10, 16, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 4 * 10 * 10 * 16  # of queries and keys, or of weights and values
    with measure.counter() as forward:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert forward.get_total_flops() == 2 * product
    with measure.counter() as backward:
        attended.sum().backward()
    assert backward.get_total_flops() >= 4 * product


def test_the_reference_computes_77_tokens_for_each_class_and_all_tokens_of_each_image(tmp_path):
    subject = Subject(small("CoOp", path="plain", phases=("step",)), tmp_path)
    config = measure.CONFIGURATIONS["small"]
    patches = (config.image_resolution // config.vision_patch_size) ** 2
    widths = (config.text_width, config.vision_width)

    def tower(n, tokens, width):
        return 12 * n * (24 * tokens * width**2 + 4 * tokens**2 * width)

    text = tower(3, config.context_length, widths[0])  # its gradient costs as much, or more
    image = tower(2, patches + 1, widths[1])
    embedding = 2 * 2 * patches * widths[1] * 3 * config.vision_patch_size**2
    expected = 2 * text + image + embedding
    assert 1 <= subject.act("step")["flops"] / expected < 1.15


def test_known_image_features_leave_the_text_to_a_step(tmp_path):
    whole, known = (
        Subject(small("CoOp", views=views, phases=("step",)), tmp_path).act("step")["flops"]
        for views in (False, True)
    )
    config = measure.CONFIGURATIONS["small"]
    patches = (config.image_resolution // config.vision_patch_size) ** 2
    blocks = 11 * 2 * 24 * (patches + 1) * config.vision_width**2  # the last one is not whole
    assert whole - known > blocks


def test_an_evaluation_counts_its_batches_and_its_classes_once(tmp_path, monkeypatch):
    cell = small("MaPLe", phases=("evaluation",))
    subject = Subject(dataclasses.replace(cell, test_batches=10), tmp_path)
    times = iter([3.0, 0.5] * 2)
    monkeypatch.setattr(measure, "timed", lambda act, device: (next(times), 0.0))
    assert subject.act("evaluation")["seconds"] == 3.0 + 10 * 0.5


def test_a_method_whose_module_returns_parameters_is_counted(tmp_path):
    cell = small("ProVP", phases=("evaluation",))
    assert Subject(cell, tmp_path).act("evaluation")["flops"] > 0


@pytest.mark.parametrize("method", KINDS)
def test_methods_without_steps_say_why(method, tmp_path):
    about = Subject(small(method), tmp_path).it
    assert about.no_step.startswith(KINDS[method])
    assert (about.learned > 0) == (method == "LinearProbe")


def test_prompts_and_options_reach_the_config():
    cfg = measure.config(small("MaPLe", prompts=8, options=("OPTIM.LR", "0.5", "NO.KEY", "1")))
    assert (cfg.TRAINER.MAPLE.N_CTX, cfg.TRAINER.MAPLE.CTX_INIT, cfg.OPTIM.LR) == (8, "", 0.5)
    assert measure.left_out(small("MaPLe", options=("OPTIM.LR", "0.5", "NO.KEY", "1"))) == [
        "NO.KEY"
    ]
    assert measure.config(Cell("MaPLe", 3)).DATALOADER.TRAIN_X.BATCH_SIZE == 4


def test_more_classes_contain_those_of_fewer():
    assert measure.class_names(100)[:10] == measure.class_names(10)
    assert len(set(measure.class_names(900))) == 900


def test_memory_that_is_short_is_called_so():
    found = []
    text = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."

    def fail():
        raise RuntimeError(f"[enforce fail at alloc_cpu.cpp:124] err == 0. {text}")

    assert not measure.answer(found.append, fail)
    assert json.loads(found[0]) == {"failed": "out of memory"}
    assert measure.failure(ValueError("no\nmore")) == "ValueError: no"


def test_only_records_of_this_machine_and_code_count(tmp_path):
    whose = {"machine": {"cpu": "X"}, "code": "abc"}
    for name, owner, failed in (
        ("A-ours", whose, ""),
        ("B-ours", {**whose, "code": "old"}, ""),
        ("C-ours", whose, "ended with exit code 1"),  # as for a missing package
        ("D-ours", whose, "out of memory"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"whose": owner, "failed": failed}))
    found = cost.finished(tmp_path, whose)
    assert list(found) == ["A-ours", "D-ours"]
    assert found["A-ours"] == {"failed": "", "code": "abc"}


def test_what_the_repository_keeps_is_not_measured_again(tmp_path, monkeypatch):
    cells = [Cell("CoOp", k, model="small") for k in (10, 50, 100)]
    ten, fifty, hundred = cells
    other = dataclasses.replace(hundred, views=True)
    assert other.name == hundred.name
    about = {"machine": {"device": "cpu"}, "model": "small"}

    def record(cell, **values):
        return {"cell": json.loads(json.dumps(dataclasses.asdict(cell))), "failed": "", **values}

    def kept(*records):
        results = {**about, "records": list(records)}
        monkeypatch.setattr(cost.report, "stored", lambda root, place: results)

    measured = []

    def measure_group(group, options, log):
        measured.extend(group)
        return [record(cell, learned=7) for cell in group]

    monkeypatch.setattr(cost, "groups_of", lambda options: [[cell] for cell in cells])
    monkeypatch.setattr(cost, "measure", measure_group)
    monkeypatch.setattr(cost, "code_version", lambda: "new")
    monkeypatch.setattr(measure, "matrix_rate", lambda dtype, device: 1e11)
    options = SimpleNamespace(threads=0, repeats=1, time_limit=1.0)
    whose = {**about, "code": "new"}
    kept(record(ten, code="new"), record(fifty, code="old"), record(other, code="new"))
    cost.measure_all(options, tmp_path, whose)
    assert measured == [fifty, hundred]
    found = cost.collect(tmp_path, whose)["records"]
    seen = {(r["cell"]["classes"], r["code"], r.get("learned")) for r in found}
    assert seen == {(10, "new", None), (50, "new", 7), (100, "new", 7)}
    assert cost.stored({**whose, "machine": {"device": "cpu", "cpu": "other"}}) == {}


def test_what_failed_for_memory_is_not_tried_with_more_classes():
    failed = {small("CoOp", 50).name: {"failed": "out of memory"}}
    assert cost.failed_before(small("CoOp", 100), failed)
    assert not cost.failed_before(small("CoOp", 10), failed)
    assert not cost.failed_before(small("CoOp", 100, path="plain"), failed)


def test_measuring_stops_when_the_code_is_changed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "groups_of", lambda options: [[small("CoOp")]])
    monkeypatch.setattr(cost, "measure", lambda group, options, log: [{"failed": ""}])
    monkeypatch.setattr(measure, "matrix_rate", lambda dtype, device: 1e11)
    options = SimpleNamespace(threads=0, repeats=1, time_limit=1.0)
    whose = {"machine": {"device": "cpu"}, "model": "small", "code": "old"}
    with pytest.raises(UserError, match="^code: expected old all along, got "):
        cost.measure_all(options, tmp_path, whose)
    assert not list(tmp_path.glob("*.json"))


def test_a_rehearsal_has_files_of_its_own_and_is_not_reported(tmp_path, capsys):
    cell = Cell("CoOp", 3)
    assert cost.path_of(tmp_path, cell) != cost.path_of(tmp_path, cell.but(model="small"))
    with pytest.raises(SystemExit) as stop:
        cost.main(["--model", "small", "--report", "--output-dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "error: --report: expected --model ViT-B/16, got small;" in capsys.readouterr().err


def test_a_report_does_not_replace_more_measurements_of_another_machine(tmp_path, monkeypatch):
    stored = {
        "machine": {"device": "cpu", "cpu": "other"},
        "model": "ViT-B/16",
        "records": [{}, {}],
    }
    monkeypatch.setattr(cost.report, "stored", lambda root, place: stored)
    monkeypatch.setattr(cost.report, "store", lambda *_: pytest.fail("stored"))
    whose = {"machine": cost.machine(2), "code": cost.code_version(), "model": "ViT-B/16"}
    record = {"cell": dataclasses.asdict(Cell("CoOp", 3)), "failed": "", "whose": whose}
    cost.path_of(tmp_path, Cell("CoOp", 3)).write_text(json.dumps(record))
    with pytest.raises(UserError, match="^--report: expected as many .* stored, 2, got 1$"):
        cost.main(["--report", "--threads", "2", "--output-dir", str(tmp_path)])


@pytest.mark.parametrize("text", ["[]", "{}"])
def test_what_is_no_measurement_is_named(tmp_path, text):
    (tmp_path / "A-ours.json").write_text(text)
    with pytest.raises(UserError, match="A-ours.json: expected a measurement, got "):
        cost.finished(tmp_path, {})


@pytest.mark.parametrize(
    ("method", "steps", "images_alone", "per_image"),
    [
        ("TipAdapter", False, True, False),
        ("CoOp", True, True, False),
        ("CoCoOp", True, True, True),
        ("MaPLe", True, False, False),
        ("ProMPT", True, False, True),
    ],
)
def test_the_estimate_knows_what_a_method_computes(method, steps, images_alone, per_image):
    kind = cost.kind_of(method)
    assert kind[1:] == (steps, images_alone, per_image)
    assert rough_flops(small(method), "step", kind) == 0  # a rehearsal
    one, two = (Cell(method, k, batch=2, test_batch=2) for k in (1, 2))
    growth = [rough_flops(two, p, kind) - rough_flops(one, p, kind) for p in one.phases]
    text = TOKENS["ours"] * TOKEN_FLOPS * (one.batch if per_image else 1)
    assert growth == [2 * text * steps, text]


def test_every_registered_method_has_cells(monkeypatch):
    options = type("O", (), {"methods": None, "parts": ["table", "growth"], "classes": [10]})
    options.precision, options.model = ["fp32", "bf16"], "small"
    cells = [cell for group in cost.groups_of(options) for cell in group]
    assert {cell.method for cell in cells} == set(cost.methods_of(None)) > {"CoOp", "LinearProbe"}
    assert {cell.precision for cell in cells} <= set(PRECISIONS)


@pytest.mark.slow
def test_a_run_measures_once_and_reports(tmp_path, capsys):
    command = ["--output-dir", str(tmp_path), "--model", "small", "--methods", "ZeroshotCLIP"]
    command += ["--parts", "table", "--classes", "3", "--precision", "fp32", "--repeats", "1"]
    assert cost.main(command) == 0
    first = capsys.readouterr().out
    assert first.startswith("1 measurements to make, 0 made")
    assert "| ZeroshotCLIP | fp32 |" in first and (tmp_path / "cost.svg").is_file()
    assert cost.main(command) == 0
    assert capsys.readouterr().out.startswith("0 measurements to make, 1 made")
    assert len(list(Path(tmp_path).glob("*-*.json"))) == 1
