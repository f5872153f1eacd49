"""Imbalanced training sets: how many images each class keeps, and which.

`TYPES` are the rules for n_k, the images of the class of rank k = 0, ..., K - 1. The default,
"exp", is the paper's: n_k = max(1, floor(n_max * ratio^(k / (K - 1)))), with its tau as `ratio`.

The draw of a class depends only on the seed and its label and is a prefix of a fixed permutation.
The draw for a smaller ratio is therefore a subset of the draw for a larger one of the same type,
and both are subsets of the given data (the balanced few-shot draw).
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

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
    _check(n_max, ratio, num_classes)
    steps = max(1, num_classes - 1)
    return [max(1, _floor(n_max * ratio ** (k / steps))) for k in range(num_classes)]


def step_counts(n_max: int, ratio: float, num_classes: int) -> list[int]:
    """Images per class rank: `n_max` in the first half (rounded up), `n_max * ratio` in the rest.

    The latter is rounded down, but at least one. This is the step imbalance of Cao et al. (LDAM,
    NeurIPS 2019). ValueError as in `imbalanced_counts`.
    """
    _check(n_max, ratio, num_classes)
    rare = num_classes // 2
    return [n_max] * (num_classes - rare) + [max(1, _floor(n_max * ratio))] * rare


def natural_counts(n_max: int, frequency: Sequence[int]) -> list[int]:
    """Images of each class in proportion to its `frequency`, `n_max` of the largest, at least one.

    ValueError for n_max < 1, no classes, or a frequency below 1.
    """
    _check(n_max, 1.0, len(frequency))
    if min(frequency) < 1:
        raise InvalidArgument(f"A class frequency must be at least 1, but it is {min(frequency)}.")
    largest = max(frequency)
    return [max(1, n_max * images // largest) for images in frequency]


def equal_counts(total: int, sizes: Sequence[int], lots: Sequence[int]) -> list[int]:
    """Images of each class if `total` images are divided equally.

    A class keeps at most its `sizes`: what a small class lacks, the others get (water-filling).
    What does not divide goes, one each, to the first classes of `lots`, a permutation of 0, ...,
    K - 1, that still have images. ValueError unless 0 <= total <= sum(sizes).
    """
    if not 0 <= total <= sum(sizes):
        raise InvalidArgument(
            f"The total must be between 0 and the {sum(sizes)} images that there are, but it is "
            f"{total}."
        )

    def filled(level: int) -> int:
        return sum(min(size, level) for size in sizes)

    # the highest level, the same for all classes, that needs no more than `total` images
    level = bisect.bisect_right(range(max(sizes, default=0) + 1), total, key=filled) - 1
    rest = total - filled(level)
    lucky = set([k for k in lots if sizes[k] > level][:rest])
    return [min(size, level) + (k in lucky) for k, size in enumerate(sizes)]


class Ranked(NamedTuple):
    """What the rules of `TYPES` know of the classes of a training set, in the order of ranks."""

    sizes: list[int]  # images that there are
    frequency: list[int]  # images that there were before a few-shot draw
    lots: list[int]  # the ranks in a random order


def _balanced_budget(classes: Ranked, n_max: int, ratio: float) -> list[int]:
    """The control of imbalance: as many images as "exp" really keeps, divided equally."""
    wanted = imbalanced_counts(n_max, ratio, len(classes.sizes))
    return equal_counts(sum(map(min, wanted, classes.sizes)), classes.sizes, classes.lots)


# The images of each rank. A class that has fewer keeps all of them.
TYPES: dict[str, Callable[[Ranked, int, float], list[int]]] = {
    "exp": lambda classes, n_max, ratio: imbalanced_counts(n_max, ratio, len(classes.sizes)),
    "step": lambda classes, n_max, ratio: step_counts(n_max, ratio, len(classes.sizes)),
    "natural": lambda classes, n_max, _: natural_counts(n_max, classes.frequency),
    "balanced_budget": _balanced_budget,
}


def _check(n_max: int, ratio: float, num_classes: int) -> None:
    if n_max < 1 or num_classes < 1:
        raise InvalidArgument(
            f"n_max and num_classes must be at least 1, but they are {n_max} and {num_classes}."
        )
    if not 0 < ratio <= 1:
        raise InvalidArgument(
            f"The imbalance ratio must be above 0 and at most 1, but it is {ratio}."
        )


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
    kind: str = "exp",
) -> list[Item]:
    """The items of `data` that remain at the imbalance `ratio`, in their order in `data`.

    The class of rank k keeps the first n_k items of its own permutation (all, if it has fewer),
    where `kind`, a name in `TYPES`, is the rule for n_k. Classes are ranked by `order`: "label"
    (ascending), "random" (a permutation drawn with `seed`), or "frequency" (by descending count in
    `frequency`, or in `data` where that has none; ties by label). "natural" follows the same counts
    and uses neither order nor ratio; "balanced_budget" gives what does not divide equally to
    classes drawn with `seed`. The global random state is neither used nor changed. ValueError for
    an unknown order or kind, and as in the rules.
    """
    if kind not in TYPES:
        raise InvalidArgument(f'The type must be one of {", ".join(TYPES)}, but it is "{kind}".')
    positions: dict[int, list[int]] = {}
    for position, item in enumerate(data):
        positions.setdefault(item.label, []).append(position)
    if not positions:
        return []
    given = frequency or {}
    before = {label: given.get(label, len(there)) for label, there in positions.items()}
    labels = _ranked(before, seed, order)
    rank = {label: k for k, label in enumerate(labels)}
    classes = Ranked(
        sizes=[len(positions[label]) for label in labels],
        frequency=[before[label] for label in labels],
        lots=[rank[label] for label in _permuted(sorted(labels), f"{seed}:remainder")],
    )
    kept: list[int] = []
    for label, count in zip(labels, TYPES[kind](classes, n_max, ratio), strict=True):
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


def _ranked(frequency: Mapping[int, int], seed: int, order: str) -> list[int]:
    """The labels, from the class that keeps the most images to the one that keeps the fewest."""
    labels = sorted(frequency)
    if order == "label":
        return labels
    if order == "random":
        return _permuted(labels, f"{seed}:order of classes")
    if order == "frequency":
        return sorted(labels, key=lambda label: (-frequency[label], label))
    raise InvalidArgument(f'The order must be one of {", ".join(ORDERS)}, but it is "{order}".')
