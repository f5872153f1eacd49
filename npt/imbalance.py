"""Long-tailed training sets: n_k = max(1, floor(n_max * ratio^(k / (K - 1)))) images for rank k.

`ratio` is the paper's tau = min n_k / max n_k. The draw of a class depends on the seed and its
label alone, and is a prefix of one permutation, so the draw for a smaller ratio lies within the
draw for a larger one, and both within the data given (the balanced few-shot draw).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from npt.errors import InvalidArgument

ORDERS = ("label", "random", "frequency")


class Labelled(Protocol):
    """Anything with a label, such as Dassl's Datum."""

    @property
    def label(self) -> int: ...


Item = TypeVar("Item", bound=Labelled)


def imbalanced_counts(n_max: int, ratio: float, num_classes: int) -> list[int]:
    """Images per class rank, from `n_max` down to about `n_max * ratio`, never below one.

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
    """Floor that takes 7.999999999999999 for the 8 that exact arithmetic gives."""
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
    """The items of `data` that an imbalance of `ratio` leaves, in their order in `data`.

    The class of rank k keeps the first n_k items of its own permutation (all, where it has fewer).
    Ranks go by `order`: "label" (ascending), "random" (a permutation drawn with `seed`), or
    "frequency" (by descending count in `frequency`, else in `data`; ties by label). The global
    random state is neither read nor changed. ValueError for an unknown order, and as
    `imbalanced_counts`.
    """
    places: dict[int, list[int]] = {}
    for place, item in enumerate(data):
        places.setdefault(item.label, []).append(place)
    if not places:
        return []
    ranked = _ranked(places, seed, order, frequency)
    counts = imbalanced_counts(n_max, ratio, len(ranked))
    kept: list[int] = []
    for label, count in zip(ranked, counts, strict=True):
        rng = random.Random(f"{seed}:{label}")  # by string: hashed alike on every machine
        # Sorting by random() and not shuffle(): only the former is promised to stay as it is.
        kept += sorted(places[label], key=lambda _, rng=rng: rng.random())[:count]
    return [data[place] for place in sorted(kept)]


def _ranked(
    places: Mapping[int, Sequence[int]],
    seed: int,
    order: str,
    frequency: Mapping[int, int] | None,
) -> list[int]:
    """Labels from the largest class of the result to the smallest."""
    labels = sorted(places)
    if order == "label":
        return labels
    if order == "random":
        rng = random.Random(f"{seed}:order of classes")
        return sorted(labels, key=lambda _: rng.random())
    if order == "frequency":
        given = frequency or {}
        return sorted(labels, key=lambda label: (-given.get(label, len(places[label])), label))
    raise InvalidArgument(f'The order must be one of {", ".join(ORDERS)}, but it is "{order}".')
