"""How a training went: for each epoch, the means of its steps and the collapse of its features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from npt.errors import NPTError
from npt.losses import unit_rows
from npt.results import Results
from npt.terms import Batch, Split, measures_of

Entry = dict[str, Any]  # "epoch", from 1, and figures by name; None where one is not a number


class Course:
    """An entry for each epoch trained.

    Measures of a split (NC1 to NC3) are of the features that the epoch's steps classified with:
    augmented images, and a model that learns meanwhile. So an epoch needs no pass of its own.
    """

    def __init__(self) -> None:
        self._closed: list[Entry] = []
        self._open: _Epoch | None = None

    def add(self, epoch: int, figures: Mapping[str, float | Tensor], batch: Batch | None) -> None:
        """Add a step of an epoch (from 0): figures to average, and the features, if it has some."""
        if self._open is None or self._open.number != epoch:
            self.close()
            self._closed = [entry for entry in self._closed if entry["epoch"] <= epoch]
            self._open = _Epoch(epoch)
        self._open.add(figures, batch)

    def close(self) -> None:
        """Forget the features of an epoch that has ended."""
        self._closed, self._open = self.entries(), None

    def entries(self) -> list[Entry]:
        """The entries of all epochs, the last one as far as it has come."""
        return [*self._closed, *([self._open.entry()] if self._open else ())]

    def so_far(self) -> dict[str, float]:
        """The means over the steps of the epoch that is open."""
        return self._open.means() if self._open else {}

    def means(self) -> Results:
        """The means over the steps of the last epoch."""
        apart = {"epoch", *(measure.name for measure in measures_of("split"))}
        last = (self.entries() or [{}])[-1]
        return {name: value for name, value in last.items() if name not in apart}

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on, also in the middle of an epoch."""
        return {"closed": self._closed, "open": self._open and dict(vars(self._open))}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._closed = list(state.get("closed", ()))
        self._open = None
        if state.get("open"):
            self._open = _Epoch(0)
            vars(self._open).update(state["open"])


class _Epoch:
    """The steps of one epoch so far."""

    def __init__(self, number: int) -> None:
        self.number, self.steps = number, 0
        self.sums: dict[str, float | Tensor] = {}
        self.images: list[Tensor] = []  # (B, D) each, of length 1
        self.labels: list[Tensor] = []  # (B,) each
        self.text_sum: Tensor | None = None  # (K, D) sum over images of unit text features

    @torch.no_grad()
    def add(self, figures: Mapping[str, float | Tensor], batch: Batch | None) -> None:
        self.steps += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if batch is None:
            return
        text = unit_rows(batch.text.detach()).float()  # (K, D) or (B, K, D)
        of_images = text.sum(0) if text.dim() == 3 else text * len(batch.image)
        if self.text_sum is not None:
            if self.text_sum.shape != of_images.shape:  # other classes than before
                return
            of_images += self.text_sum.to(of_images.device)
        self.text_sum = of_images
        self.images.append(unit_rows(batch.image.detach()).float())
        self.labels.append(batch.labels)

    def entry(self) -> Entry:
        return {"epoch": self.number + 1, **_finite(self.means()), **_finite(self._collapse())}

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.steps for name, total in self.sums.items()}

    def _collapse(self) -> dict[str, float]:
        """The measures of a split; none if a step had no features, or those of other classes."""
        if len(self.images) < self.steps or self.text_sum is None:
            return {}
        device = self.text_sum.device
        images, labels = (torch.cat([x.to(device) for x in y]) for y in (self.images, self.labels))
        classifier = self.text_sum / len(images)
        split = Split(images, unit_rows(classifier), labels, classifier)
        found = {}
        for measure in measures_of("split"):
            try:
                found[measure.name] = float(measure.value(split))
            except (NPTError, torch.linalg.LinAlgError):  # one class only; infinite features
                found[measure.name] = math.nan
        return found


def _finite(figures: Mapping[str, float]) -> Results:
    return {name: x if math.isfinite(x) else None for name, x in figures.items()}
