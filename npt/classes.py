"""What a test says of the single classes, and the figures that depend on each of them alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npt.losses import cosine_gaps, without_autocast


class Counts(NamedTuple):
    """Images of each class in a test, (K,) of float64."""

    total: Tensor
    guessed: Tensor  # images of any class that were taken for this one
    hits: Tensor  # images of this class that were recognised

    @property
    def accuracy(self) -> Tensor:
        """Of each class in percent; NaN for a class without images."""
        return 100 * self.hits / self.total


def count(labels: Tensor, predictions: Tensor, num_classes: int) -> Counts:
    """The counts of a test: labels and predictions (N,), at least `num_classes` classes."""
    size = max([num_classes, *(int(x.max()) + 1 for x in (labels, predictions) if len(x))])
    of = (labels, predictions, labels[labels == predictions])
    return Counts(*(torch.bincount(x, minlength=size).double() for x in of))


def accuracies(counts: Counts, train_counts: Sequence[int] | None) -> dict[str, float | None]:
    """The figures of a test that follow from the counts, in percent, over the classes with images.

    train_counts: the training images of each class, for the figures of its thirds (`shot_groups`)
    """
    total, guessed, hits = counts
    seen = total > 0
    of_class = counts.accuracy[seen]
    accuracy = 100 * float(hits.sum() / total.sum())
    found: dict[str, float | None] = {
        "accuracy": accuracy,
        "error_rate": 100 - accuracy,
        "macro_f1": 100 * float((2 * hits / (total + guessed))[seen].mean()),
        "class_mean_accuracy": float(of_class.mean()),
        # The next three are hard on classes that are never recognised: then all of them are 0.
        "worst_class": float(of_class.min()),
        "geometric_mean": 100 * float((of_class / 100).log().mean().exp()),
        "harmonic_mean": 100 / float((100 / of_class).mean()),
    }
    if train_counts is not None:
        for name, classes in shot_groups(train_counts).items():
            inside = [k for k in classes if k < len(seen) and seen[k]]
            found[name] = float(counts.accuracy[inside].mean()) if inside else None
    return found


def shot_groups(train_counts: Sequence[int]) -> dict[str, list[int]]:
    """Labels of the classes with many, medium and few training images.

    With n the largest count, a class of n_k images is "few" for n_k <= n^(1/3), "medium" for
    n_k <= n^(2/3), else "many"; compared in exact integers.
    """
    n = max(train_counts)
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for label, images in enumerate(train_counts):
        name = "few" if images**3 <= n else "medium" if images**3 <= n**2 else "many"
        groups[name].append(label)
    return groups


def confusion(labels: Tensor, predictions: Tensor) -> list[list[int]]:
    """[label, predicted label, images] of each pair that occurs, in order.

    `npt.results.confusion_matrix` makes an array of it.
    """
    pairs, images = torch.stack([labels, predictions], 1).unique(dim=0, return_counts=True)
    return torch.cat([pairs, images[:, None]], 1).tolist()


@torch.no_grad()
def collapse_of_texts(text: Tensor) -> Tensor:
    """LCD of each class, (K, D) -> (K,): the mean over the other classes of |cos(g_k, g_j) - mu|.

    mu = -1 / (K - 1). The mean over classes is `language_collapse_degree(text).absolute`. NaN for
    one class.
    """
    others = len(text) - 1
    if not others:
        return text.new_full((1,), math.nan)
    with without_autocast(text.device):
        return cosine_gaps(text).abs().sum(-1) / others


def per_class(
    names: Sequence[str],
    counts: Counts,
    train_counts: Sequence[int] | None,
    lcd: Tensor | None,
    mid: Tensor | None,
) -> list[dict[str, Any]]:
    """An entry for each class, as in result.json; None where there is no figure.

    lcd, mid: (K,) if features could be read, NaN for a class without a figure
    """
    columns = {
        "train_count": train_counts,
        "images": counts.total.long(),
        "accuracy": counts.accuracy,
        "lcd": lcd,
        "mid": mid,
    }
    found = {
        column: x.tolist() if isinstance(x, Tensor) else list(x or ())
        for column, x in columns.items()
    }
    return [
        {"class": name, **{column: _at(label, values) for column, values in found.items()}}
        for label, name in enumerate(names)
    ]


def _at(label: int, values: Sequence[float]) -> float | None:
    """The value of a class; None if there is none, or it is not a finite number."""
    return values[label] if label < len(values) and math.isfinite(values[label]) else None
