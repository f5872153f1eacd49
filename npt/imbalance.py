"""Long-tailed training sets: n_k = max(1, floor(n_max * ratio^(k / (K - 1)))) images for rank k.

`ratio` is the paper's tau = min n_k / max n_k. The draw of a class depends only on the seed and its
label and is a prefix of a fixed permutation. The draw for a smaller ratio is therefore a subset of
the draw for a larger one, and both are subsets of the given data (the balanced few-shot draw).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from npt.errors import InvalidArgument

ORDERS = ("label", "random", "frequency")


class Labelled(Protocol):
    """An object with a label, such as Dassl's Datum."""

    @property
    def label(self) -> int: ...


Item = TypeVar("Item", bound=Labelled)


def imbalanced_counts(n_max: int, ratio: float, num_classes: int) -> list[int]:
    """Images per class rank, from `n_max` down to about `n_max * ratio`, at least one.

    ValueError for n_max < 1, num_classes < 1, or a ratio outside (0, 1].
    """
    if n_max < 1 or num_classes < 1:
        raise InvalidArgument(
            f"n_max and num_classes must be at least 1, but they are {n_max} and {num_classes}."
        )
    if not 0 < ratio <= 1:
        raise InvalidArgument(
            f"The imbalance ratio must be above 0 and at most 1, but it is {ratio}."
        )
    steps = max(1, num_classes - 1)
    return [max(1, _floor(n_max * ratio ** (k / steps))) for k in range(num_classes)]


def _floor(value: float) -> int:
    """Floor, but 7.999999999999999 gives 8: the exact value was rounded down."""
    nearest = round(value)
    return nearest if math.isclose(value, nearest, rel_tol=1e-9) else math.floor(value)


def subsample(
    data: Sequence[Item],
    ratio: float,
    n_max: int,
    seed: int,
    order: str = "label",
    frequency: Mapping[int, int] | None = None,
) -> list[Item]:
    """The items of `data` that remain at the imbalance `ratio`, in their order in `data`.

    The class of rank k keeps the first n_k items of its own permutation (all, if it has fewer).
    Classes are ranked by `order`: "label" (ascending), "random" (a permutation drawn with `seed`),
    or "frequency" (by descending count in `frequency`, or in `data` if that is not given; ties by
    label). The global random state is neither used nor changed. ValueError for an unknown order,
    and as in `imbalanced_counts`.
    """
    positions: dict[int, list[int]] = {}
    for position, item in enumerate(data):
        positions.setdefault(item.label, []).append(position)
    if not positions:
        return []
    ranked = _ranked(positions, seed, order, frequency)
    counts = imbalanced_counts(n_max, ratio, len(ranked))
    kept: list[int] = []
    for label, count in zip(ranked, counts, strict=True):
        kept += _permuted(positions[label], f"{seed}:{label}")[:count]
    return [data[position] for position in sorted(kept)]


def summary_of_counts(counts: Sequence[int]) -> dict[str, float]:
    """What there really is to train on: `counts` are the images of each class.

    images and classes; largest and smallest count; singles: the classes with one image; ratio:
    smallest over largest, the tau that was obtained (0 if a class has no images).
    """
    largest, smallest = max(counts, default=0), min(counts, default=0)
    return {
        "images": sum(counts),
        "classes": len(counts),
        "largest": largest,
        "smallest": smallest,
        "singles": sum(count == 1 for count in counts),
        "ratio": smallest / largest if largest else 0.0,
    }


def _permuted(items: Sequence[int], seed: str) -> list[int]:
    """A random permutation that depends only on `seed`, the same on every machine."""
    rng = random.Random(seed)
    # Sorted by random() rather than shuffled: Python guarantees only that random() never changes.
    return sorted(items, key=lambda _: rng.random())


def _ranked(
    positions: Mapping[int, Sequence[int]],
    seed: int,
    order: str,
    frequency: Mapping[int, int] | None,
) -> list[int]:
    """The labels, from the class that keeps the most images to the one that keeps the fewest."""
    labels = sorted(positions)
    if order == "label":
        return labels
    if order == "random":
        return _permuted(labels, f"{seed}:order of classes")
    if order == "frequency":
        given = frequency or {}
        return sorted(labels, key=lambda label: (-given.get(label, len(positions[label])), label))
    raise InvalidArgument(f'The order must be one of {", ".join(ORDERS)}, but it is "{order}".')
