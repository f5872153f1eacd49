"""`Recorder` computes what a test measures, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npt import classes
from npt.calibration import Confidences, Scaling
from npt.errors import NPTError
from npt.host.features import FeatureTap
from npt.host.steps import INTEGERS
from npt.losses import check_pairing, paired_cosines, unit_rows
from npt.results import Results
from npt.terms import ACCURACIES, MEASURES, Batch, Measure, Run, Split, measures_of


class Recorder:
    """Collects the logits and features of a split, batch by batch, and computes its measures.

    train_counts: the training images of each class, if they are known
    scaling: the temperature that its confidences are also scaled with
    """

    def __init__(
        self,
        tap: FeatureTap | None,
        run: Run,
        train_counts: Sequence[int] | None = None,
        scaling: Scaling | None = None,
    ):
        self.run, self.train_counts = run, train_counts
        self.why_not = ""  # why features cannot be read, once a batch has shown it
        self.batches = 0  # that were added
        self.no_scores = ""  # why there are no predictions, once a batch has shown it
        self.failed: dict[str, str] = {}  # why single measures cannot be computed
        self.scores: list[Tensor] | None = None  # (B, K), kept if this is a list
        self._labels: list[Tensor] = []
        self._predictions: list[Tensor] = []
        self._confidences = Confidences(scaling)
        self._images: list[Tensor] = []
        self._cosines: list[Tensor] = []  # (B,) of the images with their own texts
        self._sums: dict[str, Tensor] = {}  # sums over images, of measures of texts and batches
        self._text_sum: Tensor | float = 0.0  # (K, D) sum over images of unit text features
        self._of_last_text: tuple[Tensor, dict[str, Tensor]] | None = None  # texts, measures
        self._num_classes = 0
        self._tap = tap

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the model's features inside a `with` block, for the next `add`."""
        if self._tap is None:
            yield
        else:
            with self._tap.in_test():
                yield

    @torch.no_grad()
    def add(self, output: Any, labels: Any, batch: Any = None) -> None:
        """Add a batch: logits (B, K), labels (B,), and the features of its forward pass.

        Logits or labels of another kind are no error: the figures that need them are missing.
        """
        self.batches += 1
        labels = _vector(labels)
        if labels is None:
            self.why_not = self.no_scores = "The test has no labels (B,) for its evaluator."
            if self._tap is not None:
                self._tap.clear()
            return
        classes = None if self._tap is None else self._tap.products.classes
        scores = _scores(output, len(labels), classes)
        if scores is None:
            self.no_scores = (
                "The test has no scores (B, K) for its evaluator, so there are no predictions."
            )
        else:
            self._num_classes = max(self._num_classes, scores.shape[1])
        if self._tap is None:
            self._add_scores(scores, labels)
            return
        with self._tap.paused():
            self._add_scores(scores, labels)
            if self.why_not:
                self._tap.clear()
                return
            try:
                image, text = self._tap.take(batch, self._num_classes or None, scores, labels)
                self._add_features(Batch(image, text, labels, self.run))
            except NPTError as error:
                self.why_not = str(error)

    def _add_scores(self, scores: Tensor | None, labels: Tensor) -> None:
        self._labels.append(labels)
        if scores is None or self.no_scores:
            return
        self._predictions.append(scores.max(1)[1])
        self._confidences.add(scores)
        if self.scores is not None:
            self.scores.append(scores)

    def _add_features(self, batch: Batch) -> None:
        unit_text = unit_rows(batch.text).double()  # (K, D) or (B, K, D)
        images = len(batch.image)
        if batch.text.dim() == 3:
            of_texts = self._computed("text", lambda m: _summed_over_images(m, batch.text))
            self._text_sum = self._text_sum + unit_text.sum(0)
        else:
            of_texts = {k: x * images for k, x in self._shared_text(batch.text).items()}
            self._text_sum = self._text_sum + unit_text * images
        of_batch = self._computed("batch", lambda m: m.value(batch).double() * images)
        for name, value in {**of_texts, **of_batch}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._images.append(unit_rows(batch.image))
        self._cosines.append(_cosines(batch))

    def _computed(self, kind: str, value: Callable[[Measure], Tensor]) -> dict[str, Tensor]:
        """The measures of a kind by name, without those that have failed."""
        found = {}
        for measure in measures_of(kind):
            if measure.name not in self.failed:
                try:
                    found[measure.name] = value(measure)
                except NPTError as error:
                    self.failed[measure.name] = str(error)
                    self._sums.pop(measure.name, None)
        return found

    def _shared_text(self, text: Tensor) -> dict[str, Tensor]:
        """The measures of texts (K, D) that all images share, computed again when they change.

        On a device they are always computed again: that is quick, and a comparison waits for it.
        """
        last = self._of_last_text
        if last is None or text.device.type != "cpu" or not torch.equal(last[0], text):
            last = (text, self._computed("text", lambda m: m.value(text).double()))
            self._of_last_text = last
        return last[1]

    # ---- what was recorded

    def split(self) -> Split:
        """The features of all images added so far. NPTError if they could not be read."""
        if self.why_not or not isinstance(self._text_sum, Tensor):
            raise NPTError(self.why_not or "No batch was run, so there are no features.")
        device = self._text_sum.device
        images, labels = _joined(self._images), _joined(self._labels)
        classifier = self._text_sum / len(images)
        text = unit_rows(classifier).float()
        return Split(images.to(device), text, labels.to(device), classifier)

    def results(self) -> Results:
        """Every accuracy and measure by name; None if it could not be computed."""
        out: Results = dict.fromkeys([*ACCURACIES, *MEASURES])
        if not self._labels:
            return out
        if not self.no_scores:
            labels, predictions = self._tested()
            counts = classes.count(labels, predictions, self._num_classes)
            out.update(classes.accuracies(counts, self.train_counts))
            out.update(self._confidences.figures(labels == predictions))
        if self._images and not self.why_not:
            images = sum(map(len, self._images))
            out.update({name: float(x) / images for name, x in self._sums.items()})
            try:
                split = self.split()
                of_split = self._computed("split", lambda m: m.value(split))
                out.update({name: float(x) for name, x in of_split.items()})
            except NPTError as error:
                self.why_not = str(error)
        return {k: v if v is not None and math.isfinite(v) else None for k, v in out.items()}

    def per_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """An entry for each class, in the order of the labels (`classes.per_class`)."""
        if self.no_scores:
            return []
        labels, predictions = self._tested()
        counts = classes.count(labels, predictions, max(self._num_classes, len(names)))
        lcd = mid = None
        if self._images and not self.why_not:
            lcd = classes.collapse_of_texts(self.split().text)
            gaps = (1 - _joined(self._cosines)).double()
            mid = torch.bincount(labels, gaps, minlength=len(counts.total)) / counts.total
        return classes.per_class(names, counts, self.train_counts, lcd, mid)

    def confusion(self) -> list[list[int]]:
        """[label, predicted label, images] of each pair that occurs."""
        return [] if self.no_scores else classes.confusion(*self._tested())

    def scaling(self) -> Scaling:
        """The temperature fitted on the scores, which are then forgotten. NPTError if it fails."""
        scores, self.scores = self.scores or [], None
        return Scaling.fitted(_joined(scores or [torch.empty(0, 0)]), self._tested()[0])

    def _tested(self) -> tuple[Tensor, Tensor]:
        """Labels and predictions (N,) of all images added so far."""
        none = torch.empty(0, dtype=torch.long)
        labels, predictions = self._labels or [none], self._predictions or [none]
        return _joined(labels), _joined(predictions)


def _joined(batches: Sequence[Tensor]) -> Tensor:
    """Values of all images on the CPU, brought there at once: each copy waits for the device."""
    device = batches[0].device
    return torch.cat([x.to(device) for x in batches]).cpu()


def _vector(labels: Any) -> Tensor | None:
    """Labels (B,), which may come as an array; None if they are no vector of integers."""
    labels = torch.from_numpy(labels) if isinstance(labels, np.ndarray) else labels
    fits = isinstance(labels, Tensor) and labels.dim() == 1 and labels.dtype in INTEGERS
    return labels if fits else None


def _scores(output: Any, images: int, classes: int | None) -> Tensor | None:
    """The scores (B, K) that a test hands over; of several values, the first that has K columns."""
    if isinstance(output, (tuple, list)):
        found = [x for x in (_scores(x, images, classes) for x in output) if x is not None]
        return next((x for x in found if classes in (None, x.shape[1])), None)
    output = torch.from_numpy(output) if isinstance(output, np.ndarray) else output
    if isinstance(output, Tensor) and output.dim() == 2 and len(output) == images:
        return output if output.is_floating_point() else None
    return None


def _summed_over_images(measure: Measure, text: Tensor) -> Tensor:
    """A measure of (B, K, D) texts, image by image: the K x K cosines of a batch are large."""
    return torch.stack([measure.value(x) for x in text]).double().sum()


def _cosines(batch: Batch) -> Tensor:
    """cos(z_i, g_y(i)) of each image, (B,); NaN if the batch is none of several classes."""
    try:
        check_pairing(batch.image, batch.text, batch.labels)
    except NPTError:  # the measures say why
        return torch.full((len(batch.labels),), math.nan)
    return paired_cosines(batch.image, batch.text, batch.labels)
