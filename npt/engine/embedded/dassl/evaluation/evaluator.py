"""Accuracy, error rate and macro F1 over a test set."""

from __future__ import annotations

import os.path as osp
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from dassl.utils.errors import InvalidValue
from dassl.utils.tools import atomic_write

from .build import EVALUATOR_REGISTRY


class EvaluatorBase:
    """The base class of evaluators: call `reset`, `process` for each batch, then `evaluate`."""

    def __init__(self, cfg):
        self.cfg = cfg

    def reset(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not define reset()")

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not define process()")

    def evaluate(self) -> OrderedDict:
        raise NotImplementedError(f"{type(self).__name__} does not define evaluate()")


def confusion_matrix(y_true: np.ndarray, y_pred: np.ndarray, size: int) -> np.ndarray:
    """Counts (size, size): rows are true labels, columns are predictions."""
    flat = np.bincount(y_true * size + y_pred, minlength=size * size)
    return flat.reshape(size, size)


def macro_f1(counts: np.ndarray) -> float:
    """The F1 score in percent, averaged over the classes that occur among the true labels."""
    hits = np.diag(counts)
    true, predicted = counts.sum(1), counts.sum(0)
    f1 = 2.0 * hits / np.maximum(true + predicted, 1)
    present = true > 0
    return 100.0 * float(f1[present].mean()) if present.any() else 0.0


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Single-label classification. `_y_true` and `_y_pred` are lists of all labels so far."""

    def __init__(self, cfg, lab2cname: dict[int, str] | None = None, **kwargs: Any):
        super().__init__(cfg)
        self._lab2cname = lab2cname
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise InvalidValue(
                "TEST.PER_CLASS_RESULT needs class names, but the evaluator was built without "
                "lab2cname: set TEST.PER_CLASS_RESULT to False"
            )
        self.reset()

    def reset(self) -> None:
        self._correct = 0
        self._total = 0
        self._y_true: list[int] = []
        self._y_pred: list[int] = []

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add a batch: scores (B, K) and labels (B,)."""
        pred = mo.max(1)[1]
        self._correct += int(pred.eq(gt).sum().item())
        self._total += gt.shape[0]
        self._y_true.extend(gt.cpu().tolist())
        self._y_pred.extend(pred.cpu().tolist())

    def evaluate(self) -> OrderedDict:
        """Print the results and return them in percent, the accuracy first."""
        if not self._total:
            raise InvalidValue(
                "There is nothing to evaluate, this split has no images: check TEST.SPLIT and the "
                "dataset's files"
            )
        y_true, y_pred = np.asarray(self._y_true), np.asarray(self._y_pred)
        counts = confusion_matrix(y_true, y_pred, int(max(y_true.max(), y_pred.max())) + 1)

        accuracy = 100.0 * self._correct / self._total
        results = OrderedDict(
            accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=macro_f1(counts)
        )
        print(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {results['accuracy']:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n"
            f"* macro_f1: {results['macro_f1']:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._per_class(counts)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_matrix(counts)
        return results

    def _per_class(self, counts: np.ndarray) -> float:
        """Print a line for each class of the test set; returns the mean of the class accuracies."""
        print("=> per-class result")
        names = self._lab2cname or {}
        accuracies = []
        for label in np.flatnonzero(counts.sum(1)):
            total, correct = int(counts[label].sum()), int(counts[label, label])
            accuracies.append(100.0 * correct / total)
            name = names.get(int(label), "?")
            print(
                f"* class: {label} ({name})\ttotal: {total:,}\tcorrect: {correct:,}\t"
                f"acc: {accuracies[-1]:.1f}%"
            )
        mean = float(np.mean(accuracies))
        print(f"* average: {mean:.1f}%")
        return mean

    def _save_matrix(self, counts: np.ndarray) -> None:
        """Save OUTPUT_DIR/cmat.pt: the confusion matrix in float64, each row divided by its sum."""
        rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        fpath = osp.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        with atomic_write(fpath) as f:
            torch.save(torch.from_numpy(rates), f)
        print(f"Confusion matrix is saved to {fpath}")
