"""Class-balanced sampling: an epoch draws the images of rare classes more often.

A class of n images is drawn in proportion to n^(1 - power). This is Eq. 1 of Kang et al.,
"Decoupling Representation and Classifier for Long-Tailed Recognition" (ICLR 2020), with
q = 1 - power: power 0 is the data as they are, 0.5 square-root sampling, 1 equal chances for all
classes. An epoch has as many images as the training set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch.utils.data import Sampler

from npt.errors import InvalidArgument
from npt.imbalance import Labelled

ONE = 1 << 32  # the number 1 in the fixed-point arithmetic of `rounded`
MARGIN = 1 << 16  # far more than the rounding errors of all classes together


def expected_draws(counts: Sequence[int], power: float) -> list[float]:
    """How often an epoch draws each class, on average; the numbers add up to sum(counts).

    counts: images of each class; a class without images is not drawn
    power: from 0 (as often as it has images) to 1 (all classes equally often)

    A class with images is drawn at least once in each epoch. InvalidArgument for a negative count,
    or a power outside [0, 1].
    """
    if min(counts, default=0) < 0:
        raise InvalidArgument(f"A class cannot have {min(counts)} images.")
    if not 0 <= power <= 1:
        raise InvalidArgument(f"The power must be from 0 to 1, but it is {power}.")
    weights = [count ** (1 - power) if count else 0.0 for count in counts]
    images, total = sum(counts), sum(weights) or 1.0
    return [images * weight / total for weight in weights]


def rounded(values: Sequence[float], generator: torch.Generator) -> list[int]:
    """Each value rounded up or down at random, so that the sum and the averages are kept.

    This is systematic sampling: the values are laid end to end, and a value gets the marks of a
    ruler with unit spacing that fall onto it; where the ruler begins is random. The sum of the
    values must be a whole number. Whole values do not change.
    """
    # Whole numbers have no rounding errors. The ruler does not begin within MARGIN of a mark, so
    # that the end of the last value, which is not quite a whole number, is on the right side.
    begin = int(torch.randint(MARGIN, ONE - MARGIN, (), generator=generator))
    ends = accumulate((round(value * ONE) for value in values), initial=begin)
    return [end // ONE - start // ONE for start, end in pairwise(ends)]


class ClassBalancedSampler(Sampler):
    """Draws each class as often as `expected_draws` says, rounded up or down in each epoch.

    data_source: items with a label, such as Dassl's Datum

    The images of a class are drawn equally often, or some of them, at random, once more than the
    others. The random numbers follow from torch's generator. With power 0 the order is that of
    torch's RandomSampler.
    """

    def __init__(self, data_source: Sequence[Labelled], power: float = 1.0):
        groups: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            groups[item.label].append(index)
        self.groups = list(groups.values())  # the indices of each class
        self.expected = expected_draws([len(indices) for indices in self.groups], power)
        self._length = len(data_source)

    def __iter__(self) -> Iterator[int]:
        seed = int(torch.empty((), dtype=torch.int64).random_())  # as RandomSampler draws it
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator).tolist()
        drawn: list[int] = []
        for indices, draws in zip(self.groups, rounded(self.expected, generator), strict=True):
            times, rest = divmod(draws, len(indices))
            extra = torch.randperm(len(indices), generator=generator)[:rest].tolist()
            drawn += indices * times + [indices[i] for i in extra]
        drawn.sort()  # with power 0 these are all indices, and `order` is the order
        return iter([drawn[place] for place in order])

    def __len__(self) -> int:
        return self._length
