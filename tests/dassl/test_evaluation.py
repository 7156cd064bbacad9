import json
from collections import OrderedDict

import pytest
import torch

from dassl import metrics
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase, build_evaluator, check_metrics
from dassl.evaluation.evaluator import _OTHER_KEYS
from dassl.metrics import BUILT_IN, METRIC_REGISTRY, compute_accuracy
from dassl.utils import UserError
from tests.dassl import toys


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def evaluate(cfg, true, predicted, names=None):
    evaluator = build_evaluator(cfg, lab2cname=names or {0: "ant", 1: "bee", 2: "cat"})
    for label, guess in zip(true, predicted, strict=True):  # one by one: batches must add up
        evaluator.process(torch.eye(3)[[guess]], torch.tensor([label]))
    return evaluator, evaluator.evaluate()


def test_figures_and_printed_lines(cfg, capsys):
    evaluator, results = evaluate(cfg, [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0])
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(100 * 4 / 6)
    assert results["error_rate"] == pytest.approx(100 * 2 / 6)
    # F1 by class: 2*2/(3+3), 2*2/(3+2), 0
    assert results["macro_f1"] == pytest.approx(100 * (4 / 6 + 4 / 5 + 0) / 3)
    assert evaluator.summary["per_class_accuracy"] == {
        "ant": pytest.approx(200 / 3),
        "bee": 100.0,
        "cat": 0.0,
    }
    assert capsys.readouterr().out == (
        "=> result\n* total: 6\n* correct: 4\n* accuracy: 66.7%\n* error: 33.3%\n"
        "* macro_f1: 48.9%\n"
    )


def test_reset_forgets(cfg):
    evaluator, _ = evaluate(cfg, [0, 1], [0, 0])
    evaluator.reset()
    evaluator.process(torch.eye(3), torch.tensor([0, 1, 2]))
    assert evaluator.evaluate()["accuracy"] == 100.0


def test_classes_that_do_not_occur_do_not_count(cfg):
    _, results = evaluate(cfg, [0, 0], [0, 0])
    assert results["macro_f1"] == 100.0


def test_per_class_lines_and_matrix(cfg, tmp_path, capsys):
    cfg.TEST.PER_CLASS_RESULT = True
    cfg.TEST.COMPUTE_CMAT = True
    _, results = evaluate(cfg, [0, 0, 1, 2], [0, 1, 1, 2])
    assert results["perclass_accuracy"] == pytest.approx(250 / 3)
    printed = capsys.readouterr().out
    assert "* class: 0 (ant)\ttotal: 2\tcorrect: 1\tacc: 50.0%\n" in printed
    assert "* average: 83.3%\n" in printed
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    assert matrix.tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_a_class_name_cannot_break_or_color_a_line(cfg, capsys):
    cfg.TEST.PER_CLASS_RESULT = True
    cfg.TEST.METRICS = ("per_class_accuracy",)
    evaluate(cfg, [0, 1], [0, 1], {0: "a\nb", 1: "\x1b[31m"})
    printed = capsys.readouterr().out
    assert "* class: 0 (a\\nb)\t" in printed and "* class: 1 (\\x1b[31m)\t" in printed
    assert "* per_class_accuracy: a\\nb 100.0000, \\x1b[31m 100.0000\n" in printed


def test_what_is_no_file_where_the_matrix_goes_is_found_before_evaluation(cfg, tmp_path):
    cfg.TEST.COMPUTE_CMAT = True
    (tmp_path / "cmat.pt").mkdir()
    with pytest.raises(UserError, match="cannot write '.*cmat.pt': Is a directory"):
        build_evaluator(cfg)


def test_the_matrix_has_a_row_for_each_class_with_or_without_images(cfg, tmp_path):
    cfg.TEST.COMPUTE_CMAT = True
    evaluate(cfg, [0, 0, 2], [0, 2, 2])
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    assert matrix.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_classes_of_the_same_name_are_kept_apart(cfg):
    evaluator, _ = evaluate(cfg, [0, 1], [0, 0], {0: "crane", 1: "crane"})
    assert evaluator.summary["per_class_accuracy"] == {"crane": 100.0, "crane (1)": 0.0}


def test_unknown_evaluator(cfg):
    cfg.TEST.EVALUATOR = "Clasification"
    with pytest.raises(UserError, match="did you mean 'Classification'"):
        build_evaluator(cfg)


def test_compute_accuracy():
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 2.0, 1.0]])
    labels = torch.tensor([0, 1, 2, 2])
    top1, top2 = compute_accuracy(scores, labels, topk=(1, 2))
    assert top1.item() == 25.0 and top2.item() == 75.0
    assert compute_accuracy((scores, None), labels)[0].shape == (1,)


# Metrics by name --------------------------------------------------------------------------------


@pytest.fixture
def run_cfg(cfg, tmp_path):
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Toys", str(toys.draw(tmp_path / "data"))
    cfg.TRAINER.NAME, cfg.OUTPUT_DIR = "ToyTrainer", str(tmp_path / "run")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.SIZE = (8, 8)
    cfg.OPTIM.MAX_EPOCH = 1
    cfg.USE_CUDA = False
    return cfg


def results_of(run_cfg):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    with open(f"{run_cfg.OUTPUT_DIR}/results.json", encoding="utf-8") as file:
        return json.load(file, parse_constant=refuse)


def enter(monkeypatch, name, metric):
    monkeypatch.setitem(METRIC_REGISTRY._objects, name, metric)


def test_summary_has_the_built_in_metrics_of_all_batches(cfg):
    logits, labels = torch.randn(60, 7), torch.randint(7, (60,))
    evaluator = build_evaluator(cfg)
    for batch in range(0, 60, 25):
        part = logits[batch : batch + 25].clone()
        evaluator.process(part, labels[batch : batch + 25])
        part.zero_()  # a model may write into its output again
    results = evaluator.evaluate()
    assert results["accuracy"] == metrics.accuracy(logits, labels)
    for name in set(BUILT_IN) - {"accuracy", "error", "macro_f1", "per_class_accuracy"}:
        assert evaluator.summary[name] == getattr(metrics, name)(logits, labels), name
    by_label = {str(k): v for k, v in metrics.per_class_accuracy(logits, labels).items()}
    assert evaluator.summary["per_class_accuracy"] == by_label


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_any_type_are_judged_as_they_are(cfg, kind):
    logits, labels = torch.randn(40, 3).to(kind), torch.randint(3, (40,))
    if kind == torch.float64:  # single precision would make these equal
        logits[:, 0] = logits[:, 1] - 1e-12
    evaluator = build_evaluator(cfg)
    evaluator.process(logits, labels)
    right = logits.argmax(dim=1) == labels
    assert evaluator.evaluate()["accuracy"] == 100.0 * int(right.sum()) / 40


def test_a_metric_of_ones_own_is_recorded_and_printed(run_cfg, monkeypatch, capsys):
    enter(monkeypatch, "mean_rank", lambda x, y: metrics.label_ranks(x, y).double().mean())
    enter(monkeypatch, "undefined", lambda logits, labels: float("nan"))
    enter(
        monkeypatch,
        "images",
        lambda logits, labels: {k: int(n) for k, n in enumerate(labels.bincount())},
    )
    trainer = build_trainer(run_cfg)
    trainer.test()
    plain, plain_lines = results_of(run_cfg), capsys.readouterr().out.splitlines()
    assert not {"mean_rank", "undefined", "images"} & set(plain)

    run_cfg.TEST.METRICS = ("mean_rank", "ece", "undefined", "images")
    trainer.evaluator = build_evaluator(run_cfg, lab2cname=trainer.lab2cname)
    trainer.test()
    results, lines = results_of(run_cfg), capsys.readouterr().out.splitlines()
    assert results["undefined"] is None
    assert 0 < results["mean_rank"] < 4
    assert results["images"] == dict.fromkeys(toys.CLASSES, 6)
    others = set(plain) - {"config", "wall_time_s", "peak_memory_mb"}
    assert {key: results[key] for key in others} == {key: plain[key] for key in others}
    added = [line for line in lines if line not in plain_lines]
    assert added == [
        f"* mean_rank: {results['mean_rank']:.4f}",
        f"* ece: {results['ece']:.4f}",
        "* undefined: undefined",
        "* images: " + ", ".join(f"{name} 6.0000" for name in toys.CLASSES),
    ]
    assert [line for line in lines if line not in added] == plain_lines[-len(lines) + len(added) :]


def test_a_metric_that_gives_no_number_is_reported_in_one_line(cfg, monkeypatch):
    enter(monkeypatch, "word", lambda logits, labels: "good")
    cfg.TEST.METRICS = ("word",)
    with pytest.raises(UserError, match="metric 'word': expected a number, .* got 'good'"):
        evaluate(cfg, [0], [0])


def test_unknown_metrics_are_refused_before_data_is_read(run_cfg, monkeypatch):
    monkeypatch.setattr(toys.Toys, "__init__", lambda self, cfg: pytest.fail("data is read"))
    run_cfg.TEST.METRICS = ("ece", "brierr")
    line = r"TEST\.METRICS: expected .*, got \('ece', 'brierr'\); did you mean 'brier'"
    with pytest.raises(UserError, match=line):
        build_trainer(run_cfg)
    with pytest.raises(UserError, match="unknown metric 'brierr'; did you mean 'brier'"):
        build_evaluator(run_cfg)


def test_metrics_take_no_name_of_something_else_in_the_results(run_cfg, monkeypatch):
    build_trainer(run_cfg).test()
    others = set(results_of(run_cfg)) - set(BUILT_IN) | {"perclass_accuracy"}
    assert set(_OTHER_KEYS) == others
    for name in others:
        enter(monkeypatch, name, lambda logits, labels: 1.0)
        run_cfg.TEST.METRICS = (name,)
        with pytest.raises(UserError, match=f"TEST.METRICS: expected names .*, got '{name}'"):
            check_metrics(run_cfg)


def test_metrics_may_change_on_a_finished_run(run_cfg, monkeypatch, capsys):
    build_trainer(run_cfg).train()
    enter(monkeypatch, "one", lambda logits, labels: 1)
    run_cfg.TEST.METRICS = ("one",)
    build_trainer(run_cfg).train()
    assert "not training again" in capsys.readouterr().out
    assert results_of(run_cfg)["one"] == 1.0


def test_results_without_a_test_have_nulls(run_cfg):
    run_cfg.TEST.NO_TEST = True
    build_trainer(run_cfg).train()
    results = results_of(run_cfg)
    assert [results[name] for name in BUILT_IN] == [None] * len(BUILT_IN)


def test_an_evaluator_that_knows_no_metrics_still_works(run_cfg, monkeypatch):
    class Public(EvaluatorBase):
        def reset(self):
            self.correct = self.total = 0

        def process(self, mo, gt):
            self.correct += int(mo.max(1)[1].eq(gt).sum())
            self.total += len(gt)

        def evaluate(self):
            return OrderedDict(accuracy=100.0 * self.correct / self.total)

    def make(cfg, lab2cname=None, **kwargs):
        return Public(cfg)

    build_trainer(run_cfg).test()
    expected = results_of(run_cfg)
    for evaluator in (make, Public):
        Public.__init__ = lambda self, cfg, lab2cname=None: EvaluatorBase.__init__(self, cfg)
        monkeypatch.setitem(EVALUATOR_REGISTRY._objects, "Public", evaluator)
        run_cfg.TEST.EVALUATOR, run_cfg.TEST.METRICS = "Public", ()
        trainer = build_trainer(run_cfg)
        trainer.test()
        assert results_of(run_cfg)["ece"] is None
        run_cfg.TEST.METRICS = ("ece",)
        with pytest.raises(UserError, match="TEST.METRICS: expected .* Public, which computes no"):
            build_trainer(run_cfg)
    assert set(results_of(run_cfg)) == set(expected) - {"total", "correct"}


# Logits that are not numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_leave_no_results(run_cfg, tmp_path, monkeypatch, value):
    forward, seen = toys.ToyNet.forward, [0]

    def broken(self, image):
        logits = forward(self, image)
        if not self.training and seen[0] <= 14 < seen[0] + len(image):
            logits[14 - seen[0] :, 1] = value  # from the third image of the third class on
        seen[0] += len(image)
        return logits

    run_cfg.DATALOADER.TEST.BATCH_SIZE = 5
    trainer = build_trainer(run_cfg)
    monkeypatch.setattr(toys.ToyNet, "forward", broken)
    with pytest.raises(UserError) as caught:
        trainer.test()
    path = tmp_path / "data" / "toys" / "test" / "cat" / "2.png"
    assert str(caught.value) == (
        f"the logits of image '{path}' are infinite or not numbers; no results were written"
    )
    assert isinstance(caught.value, FloatingPointError)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_labels_that_the_model_does_not_know_are_reported_in_one_line(cfg):
    evaluator = build_evaluator(cfg)
    evaluator.process(torch.eye(3), torch.tensor([0, 1, 3]))
    with pytest.raises(UserError, match="labels of images: expected 0 to 2, .* got 0 to 3"):
        evaluator.evaluate()
