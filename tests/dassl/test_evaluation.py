import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from dassl.metrics import compute_accuracy
from dassl.utils import UserError


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
