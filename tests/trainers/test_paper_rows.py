"""Every row of the papers' tables and figures takes a step, and one of its own."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from configs.choice import config_of
from configs.protocols import BASE2NEW, Protocol
from dassl.config import get_cfg_default, merge_from_file, merge_from_list
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.optimize import Update
from experiments.paper_rows import HEADING, PAGE, PAPER_COLUMNS, TABLES, Row, section
from tests.trainers.tiny import check, tiny_clip

ROOT = Path(__file__).parents[2]
NAMES = [f"{color} {kind}" for color in ("red", "green", "blue") for kind in ("car", "cat", "cup")]
TEMPLATES = ["this is a {}.", "one {}."]
# Rows that take the step of another row of their table, and why.
EQUAL = {("hisf4", "MaPLe setting", "MaPLe, HISF's steps"): "the same steps, more of them"}


def is_here(row: Row) -> bool:
    return row.method in TRAINER_REGISTRY.registered_names()


@cache
def of_file(method: str, file: str):
    cfg = get_cfg_default(method)
    merge_from_file(cfg, str(ROOT / "configs" / "trainers" / method / f"{file}.yaml"))
    return cfg


def merged(row: Row, protocol: Protocol, dataset: str):
    """Return the config of a row that is trained on a dataset with 16 shots."""
    cfg = of_file(row.method, config_of(row.method, protocol, dataset, 16)).clone()
    merge_from_list(cfg, list(row.options))
    return cfg


class Steps:
    """First steps of methods on a random CLIP as deep as ViT-B/16, each computed once.

    Tensors that a method has in several rows start from the same values, so that rows do not differ
    by their random draws alone.
    """

    def __init__(self, folder: Path):
        self.clip = tiny_clip(12)
        self.descriptions = folder / "descriptions.json"
        texts = {name: [f"A {name}.", f"Some {name} here.", f"It is a {name}."] for name in NAMES}
        self.descriptions.write_text(json.dumps(texts))
        torch.manual_seed(5)
        self.views = [torch.randn(2, 3, 16, 16) for _ in range(2)]
        self.start: dict[str, torch.Tensor] = {}
        self.found: dict[str, dict[str, torch.Tensor]] = {}

    def step(self, row: Row, protocol: Protocol) -> dict[str, torch.Tensor]:
        """Return the loss, and the gradient of each learned tensor by its name."""
        cfg = merged(row, protocol, "caltech101")
        key = f"{row.method} {cfg!r}"
        if key not in self.found:
            self.found[key] = self.compute(row.method, cfg)
        return self.found[key]

    def compute(self, name: str, cfg) -> dict[str, torch.Tensor]:
        kind = TRAINER_REGISTRY.get(name).method
        node = cfg.TRAINER[kind.config_node]
        node.PREC = "fp32"
        check(kind, self.clip, **node)
        if "DESCRIPTIONS" in node:
            node.DESCRIPTIONS = str(self.descriptions)
        torch.manual_seed(1)
        method = kind(cfg, self.clip, NAMES, TEMPLATES).train()
        for tensor_name, tensor in method.learned().items():
            start = self.start.setdefault(f"{name} {tensor_name} {tensor.shape}", tensor.detach())
            tensor.data = start.clone()
        batch = self.views if kind.n_views > 1 else self.views[0]
        labels = torch.tensor([4, 7])
        torch.manual_seed(2)
        if not method.learned():  # the loss that there would be
            return {"loss": F.cross_entropy(method(batch), labels)}
        losses: list[torch.Tensor] = []

        class Backward(Update):
            def __call__(self, loss: torch.Tensor) -> None:
                losses.append(loss.detach())
                loss.backward()

        optimizer = torch.optim.SGD(method.learned().values(), lr=0.1)
        method.step(batch, labels, Backward(optimizer))
        gradients = {
            tensor_name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            for tensor_name, tensor in method.learned().items()
        }
        return {"loss": losses[0], **gradients}


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    return Steps(tmp_path_factory.mktemp("rows"))


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Tell whether the losses differ, or the gradients of a tensor that both have."""
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        if a.shape == b.shape and (a - b).abs().max() > 1e-4 * torch.maximum(a, -a).max():
            return True
    return False


@pytest.mark.parametrize("name", TABLES)
def test_every_row_takes_a_step_of_its_own(name, steps):
    _, rows, protocol = TABLES[name]
    found = {row.label: steps.step(row, protocol) for row in rows if is_here(row)}
    for label, step in found.items():
        assert all(tensor.isfinite().all() for tensor in step.values()), label
        assert len(step) == 1 or any(t.abs().max() > 0 for n, t in step.items() if n != "loss")
    for one, other in itertools.combinations(found, 2):
        expected = (name, one, other) not in EQUAL
        assert differ(found[one], found[other]) == expected, (one, other)


def test_steps_that_are_equal_in_theory_are_equal(steps):
    """cos(sum, prompted) = cos(sum, frozen): the sum of two unit vectors bisects their angle."""
    for criterion, equal in (("cosine", True), ("mse", True), ("l1", False)):
        options = ("TRAINER.HICROPL.CRITERION", criterion, "TRAINER.HICROPL.CONS_ANCHOR")
        prompted, frozen = (
            steps.step(Row(anchor, "HiCroPL", (*options, anchor)), BASE2NEW)
            for anchor in ("prompted", "frozen")
        )
        assert differ(prompted, frozen) != equal, criterion


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dataset", ["caltech101", "shapes"])
def test_every_row_has_a_config_of_its_own(name, dataset):
    _, rows, protocol = TABLES[name]
    rows = [row for row in rows if is_here(row)]
    configs = {(row.method, repr(merged(row, protocol, dataset))) for row in rows}
    assert len(configs) == len(rows)
    methods = {row.method for row in rows if row.options}
    for method in methods - {"MaPLe"}:
        unchanged = merged(Row("", method), protocol, "caltech101")
        assert (method, repr(unchanged)) in {
            (row.method, repr(merged(row, protocol, "caltech101"))) for row in rows
        }
    assert all(len(row.paper) in (0, len(PAPER_COLUMNS[protocol])) for row in rows)


@pytest.mark.parametrize("dataset", ["caltech101", "shapes"])
def test_maple_and_hisf_are_compared_at_equal_steps(dataset):
    rows = {row.label: row for row in TABLES["hisf4"].rows}
    longer, ours = (
        merged(rows[label], BASE2NEW, dataset) for label in ("MaPLe, HISF's steps", "PI + SF")
    )
    assert longer.OPTIM.MAX_EPOCH == ours.OPTIM.MAX_EPOCH
    assert longer.DATALOADER.TRAIN_X.BATCH_SIZE == ours.DATALOADER.TRAIN_X.BATCH_SIZE


def test_the_page_lists_every_row():
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert HEADING + page.partition(HEADING)[2] == section()
