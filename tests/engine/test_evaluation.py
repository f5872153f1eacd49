"""The classification evaluator."""

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import EvaluatorBase, build_evaluator


def evaluator(tmp_path=None, **values):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    for key, value in values.items():
        cfg.TEST[key] = value
    return build_evaluator(cfg, lab2cname={0: "cat", 1: "dog", 2: "cow", 3: "never"})


TRUE = [0, 0, 0, 1, 1, 2]
PRED = [0, 0, 1, 1, 1, 3]


def feed(subject):
    scores = torch.eye(4)[PRED]
    subject.process(scores[:4], torch.tensor(TRUE[:4]))
    subject.process(scores[4:], torch.tensor(TRUE[4:]))
    return subject.evaluate()


def test_figures(capsys):
    subject = evaluator()
    assert isinstance(subject, EvaluatorBase)
    results = feed(subject)
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    f1 = (2 * 2 / 5 + 2 * 2 / 5 + 0) / 3  # over the classes among the labels
    assert list(results.values()) == pytest.approx([400 / 6, 200 / 6, 100 * f1])
    assert (subject._y_true, subject._y_pred) == (TRUE, PRED)
    assert capsys.readouterr().out.splitlines() == [
        "Loading evaluator: Classification",
        "=> result",
        "* total: 6",
        "* correct: 4",
        "* accuracy: 66.7%",
        "* error: 33.3%",
        "* macro_f1: 53.3%",
    ]
    subject.reset()
    assert subject._y_true == []
    with pytest.raises(ValueError, match="nothing to evaluate"):
        subject.evaluate()


def test_macro_f1_agrees_with_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    torch.manual_seed(0)
    subject = evaluator()
    scores, labels = torch.randn(200, 4), torch.randint(0, 3, (200,))
    subject.process(scores, labels)
    expected = metrics.f1_score(labels, scores.argmax(1), average="macro", labels=[0, 1, 2])
    assert subject.evaluate()["macro_f1"] == pytest.approx(100 * expected)


def test_thousands(capsys):
    subject = evaluator()
    subject.process(torch.eye(2).repeat(1000, 1), torch.tensor([0, 1] * 1000))
    subject.evaluate()
    assert "* total: 2,000\n* correct: 2,000\n* accuracy: 100.0%" in capsys.readouterr().out


def test_per_class(capsys):
    results = feed(evaluator(PER_CLASS_RESULT=True))
    assert results["perclass_accuracy"] == pytest.approx((200 / 3 + 100 + 0) / 3)
    assert capsys.readouterr().out.splitlines()[-5:] == [
        "=> per-class result",
        "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.7%",
        "* class: 1 (dog)\ttotal: 2\tcorrect: 2\tacc: 100.0%",
        "* class: 2 (cow)\ttotal: 1\tcorrect: 0\tacc: 0.0%",
        "* average: 55.6%",
    ]


def test_confusion_matrix(tmp_path):
    feed(evaluator(tmp_path, COMPUTE_CMAT=True))
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    assert matrix.shape == (4, 4)
    assert matrix[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert matrix[3].tolist() == [0, 0, 0, 0]


def test_errors():
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "Detection"
    with pytest.raises(ValueError, match=r"Detection.*Classification"):
        build_evaluator(cfg)
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = True
    with pytest.raises(ValueError, match="PER_CLASS_RESULT"):
        build_evaluator(cfg)
