"""The sizes of long-tailed classes, and which of their images are kept."""

import itertools
import random
from collections import Counter
from fractions import Fraction
from math import floor
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.errors import NPTError
from npt.host.thinning import thin
from npt.imbalance import (
    TYPES,
    equal_counts,
    imbalanced_counts,
    natural_counts,
    step_counts,
    subsample,
)

RATIOS = st.floats(0.001, 1.0)
ORDERS = st.sampled_from(["label", "random", "frequency"])
KINDS = st.sampled_from(list(TYPES))


class Item(NamedTuple):
    label: int
    number: int


def dataset(sizes, seed=0):
    """Items of classes 0, 1, ... of the given sizes, shuffled."""
    items = [Item(label, i) for label, size in enumerate(sizes) for i in range(size)]
    random.Random(seed).shuffle(items)
    return items


def counted(items, classes):
    """The number of items of each class."""
    found = Counter(item.label for item in items)
    return [found[label] for label in range(classes)]


SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("n_max", "ratio", "num_classes", "expected"),
    [
        (16, 0.25, 3, [16, 8, 4]),
        (16, 1.0, 4, [16, 16, 16, 16]),
        (16, 0.01, 1, [16]),
        (16, 0.01, 2, [16, 1]),
        (1000, 0.001, 4, [1000, 100, 10, 1]),  # 1000 * 0.001 ** (1 / 3) is 99.99... in floats
        (16, 0.01, 5, [16, 5, 1, 1, 1]),
        (7, 1 / 7, 3, [7, 2, 1]),
    ],
)
def test_counts(n_max, ratio, num_classes, expected):
    assert imbalanced_counts(n_max, ratio, num_classes) == expected


@given(st.integers(1, 60), st.integers(2, 30))
def test_counts_of_exact_powers_are_not_rounded_down(base, num_classes):
    n_max = base ** (num_classes - 1) if num_classes < 6 else 2 ** (num_classes - 1)
    step = base if num_classes < 6 else 2
    exact = [step ** (num_classes - 1 - k) for k in range(num_classes)]
    assert imbalanced_counts(n_max, 1 / n_max, num_classes) == exact


@given(st.integers(1, 500), RATIOS, RATIOS, st.integers(1, 60))
def test_counts_decrease_with_the_rank_and_with_the_ratio(n_max, one, other, num_classes):
    less, more = sorted([one, other])
    few, many = (imbalanced_counts(n_max, ratio, num_classes) for ratio in (less, more))
    assert len(few) == num_classes and few[0] == n_max and few[-1] >= 1
    assert few == sorted(few, reverse=True)
    assert all(a <= b for a, b in zip(few, many, strict=True))


@pytest.mark.parametrize("bad", [(0, 0.5, 3), (16, 0.0, 3), (16, 1.5, 3), (16, 0.5, 0)])
def test_invalid_arguments_of_counts(bad):
    with pytest.raises(ValueError, match="must be"):
        imbalanced_counts(*bad)


# --------------------------------------------------------------------------- other types
@pytest.mark.parametrize(
    ("n_max", "ratio", "num_classes", "expected"),
    [
        (16, 0.25, 4, [16, 16, 4, 4]),
        (16, 0.25, 5, [16, 16, 16, 4, 4]),
        (16, 0.01, 3, [16, 16, 1]),
        (16, 0.01, 1, [16]),
        (5, 0.5, 2, [5, 2]),
        (50, 0.58, 2, [50, 29]),  # 50 * 0.58 is 28.99... in floats
    ],
)
def test_counts_of_a_step(n_max, ratio, num_classes, expected):
    assert step_counts(n_max, ratio, num_classes) == expected


@given(st.integers(1, 40), st.lists(st.integers(1, 2000), min_size=1, max_size=12))
def test_natural_counts_are_the_frequencies_scaled_down(n_max, frequency):
    counts = natural_counts(n_max, frequency)
    share = [Fraction(images, max(frequency)) for images in frequency]
    assert counts == [max(1, floor(n_max * x)) for x in share]
    ranks = sorted(range(len(share)), key=lambda k: frequency[k])
    assert [counts[k] for k in ranks] == sorted(counts) and max(counts) == n_max


def dealt(total, sizes, lots):
    """Images given out one at a time, in turn, to the classes that still have some."""
    counts = [0] * len(sizes)
    while total:
        for k in lots:
            if total and counts[k] < sizes[k]:
                counts[k] += 1
                total -= 1
    return counts


@given(st.data(), st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_equal_counts_are_those_of_dealing_in_turn(data, sizes):
    total = data.draw(st.integers(0, sum(sizes)))
    lots = data.draw(st.permutations(range(len(sizes))))
    counts = equal_counts(total, sizes, lots)
    assert counts == dealt(total, sizes, lots) and sum(counts) == total


@pytest.mark.parametrize(
    "call",
    [
        lambda: step_counts(0, 0.5, 3),
        lambda: step_counts(16, 0.0, 3),
        lambda: natural_counts(0, [3, 2]),
        lambda: natural_counts(16, []),
        lambda: natural_counts(16, [5, 0]),
        lambda: equal_counts(6, [3, 2], [0, 1]),
        lambda: equal_counts(-1, [3, 2], [0, 1]),
    ],
)
def test_invalid_arguments_of_other_types(call):
    with pytest.raises(ValueError, match="must be"):
        call()


@given(SIZES, RATIOS, st.integers(1, 12), st.integers(0, 99), ORDERS)
@settings(max_examples=60)
def test_a_balanced_budget_has_the_images_of_exp_in_equal_parts(sizes, ratio, n_max, seed, order):
    data = dataset(sizes)
    exp = subsample(data, ratio, n_max, seed, order)
    equal = subsample(data, ratio, n_max, seed, order, kind="balanced_budget")
    assert len(equal) == len(exp)
    counts = counted(equal, len(sizes))
    # only a class that is used up has fewer than others
    assert all(n == size or n >= max(counts) - 1 for n, size in zip(counts, sizes, strict=True))
    assert max(counts) <= n_max


def test_what_does_not_divide_goes_to_classes_drawn_by_the_seed():
    data = dataset([16] * 5)
    total = sum(imbalanced_counts(16, 0.23, 5))
    assert total % 5 == 2
    draws = []
    for seed in range(8):
        counts = counted(subsample(data, 0.23, 16, seed, kind="balanced_budget"), 5)
        assert sorted(counts) == [total // 5] * 3 + [total // 5 + 1] * 2
        draws.append(tuple(counts))
    assert len(set(draws)) > 3


@given(SIZES, st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.data())
@settings(max_examples=60)
def test_the_natural_type_follows_the_frequency_whatever_order_and_ratio(
    sizes, one, other, seed, data
):
    items = dataset(sizes)
    more = data.draw(st.lists(st.integers(0, 90), min_size=len(sizes), max_size=len(sizes)))
    frequency = {k: size + extra for k, (size, extra) in enumerate(zip(sizes, more, strict=True))}
    draws = [
        subsample(items, ratio, max(one, other), seed, order, frequency, "natural")
        for ratio, order in ((1.0, "label"), (0.1, "random"), (0.5, "frequency"))
    ]
    assert draws[0] == draws[1] == draws[2]
    wanted = natural_counts(max(one, other), list(frequency.values()))
    assert counted(draws[0], len(sizes)) == list(map(min, sizes, wanted))
    fewer = subsample(items, 1.0, min(one, other), seed, "label", frequency, "natural")
    assert set(fewer) <= set(draws[0])


def test_the_draws_of_a_class_are_the_first_of_one_permutation():
    """Written down from version 0.1: older runs must draw the same images."""
    data = dataset([8, 8, 8, 3])
    drawn = {
        kind: [
            "".join(
                str(item.number)
                for item in subsample(data, 0.1, 8, 3, kind=kind)
                if item.label == k
            )
            for k in range(4)
        ]
        for kind in TYPES
    }
    assert drawn["exp"] == ["35074261", "214", "0", "0"]
    for k in range(4):
        ordered = sorted((set(draws[k]) for draws in drawn.values()), key=len)
        assert all(a <= b for a, b in itertools.pairwise(ordered))


@given(SIZES, RATIOS, st.integers(0, 99), ORDERS)
@settings(max_examples=60)
def test_subsample_keeps_order_and_sizes_by_rank(sizes, ratio, seed, order):
    data = dataset(sizes)
    kept = subsample(data, ratio, 12, seed, order)
    places = [data.index(item) for item in kept]
    assert places == sorted(set(places))
    counts = Counter(item.label for item in kept)
    allowed = imbalanced_counts(12, ratio, len(sizes))
    if order == "label":
        assert [counts[k] for k in range(len(sizes))] == [
            min(size, n) for size, n in zip(sizes, allowed, strict=True)
        ]
    assert set(counts) == set(range(len(sizes)))
    assert sum(counts.values()) <= sum(allowed)


@given(SIZES, RATIOS, RATIOS, st.integers(0, 99), ORDERS, KINDS)
@settings(max_examples=100)
def test_the_draw_of_a_ratio_is_a_subset_of_that_of_a_larger_one(
    sizes, one, other, seed, order, kind
):
    data = dataset(sizes)
    less, more = sorted([one, other])
    few, many = (set(subsample(data, ratio, 12, seed, order, kind=kind)) for ratio in (less, more))
    assert few <= many <= set(data)
    assert {item.label for item in few} == set(range(len(sizes)))


@given(SIZES, st.integers(0, 99), ORDERS, KINDS)
def test_a_ratio_of_one_keeps_all_items(sizes, seed, order, kind):
    """And the type natural does, if the classes are as large as they were."""
    data = dataset(sizes)
    assert subsample(data, 1.0, max(sizes), seed, order, kind=kind) == data


def test_the_draw_of_a_class_does_not_depend_on_other_classes():
    small, large = dataset([8, 8, 8]), dataset([8, 8, 8, 5, 2])
    large.sort(key=lambda item: (item.label != 1, small.index(item) if item in small else 99))
    chosen = [
        {item for item in subsample(data, 0.9999, 4, 3) if item.label == 1}
        for data in (small, large)
    ]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 3


def test_seeds_differ_and_the_global_state_does_not_change():
    data = dataset([16] * 5)
    random.seed(1)
    state = random.getstate()
    draws = {tuple(subsample(data, 0.1, 16, seed)) for seed in range(5)}
    assert len(draws) == 5 and random.getstate() == state
    assert subsample(data, 0.1, 16, 2) == subsample(data, 0.1, 16, 2)


def test_the_random_order_is_a_permutation_by_the_seed():
    data = dataset([16] * 6)
    ranks = set()
    for seed in range(6):
        counts = Counter(item.label for item in subsample(data, 0.05, 16, seed, "random"))
        ranks.add(tuple(sorted(counts, key=lambda label: -counts[label])[:2]))
        assert sorted(counts.values(), reverse=True) == imbalanced_counts(16, 0.05, 6)
    assert len(ranks) > 2


def test_the_frequency_order_uses_the_given_counts_or_the_data():
    data = dataset([4, 9, 9, 6])
    counts = Counter(item.label for item in subsample(data, 0.2, 4, 0, "frequency"))
    assert [counts[k] for k in (1, 2, 3, 0)] == imbalanced_counts(4, 0.2, 4)
    given_counts = {0: 50, 1: 2, 2: 3, 3: 70}
    counts = Counter(item.label for item in subsample(data, 0.2, 4, 0, "frequency", given_counts))
    assert [counts[k] for k in (3, 0, 2, 1)] == imbalanced_counts(4, 0.2, 4)


def test_an_unknown_order_or_type_is_an_error_and_no_items_give_no_items():
    with pytest.raises(ValueError, match="label, random, frequency"):
        subsample(dataset([2, 2]), 0.5, 2, 0, "size")
    with pytest.raises(ValueError, match="exp, step, natural, balanced_budget"):
        subsample(dataset([2, 2]), 0.5, 2, 0, kind="linear")
    assert subsample([], 0.5, 16, 0) == []


# --------------------------------------------------------------------------- thin
def config(ratio=0.01, shots=16, seed=1, order="label", **more):
    nodes = {"IMBALANCE_RATIO": ratio, "IMBALANCE_ORDER": order, "NUM_SHOTS": shots}

    class Node(dict):
        __getattr__ = dict.__getitem__

    return SimpleNamespace(DATASET=Node(nodes, NAME="Photos", **more), SEED=seed)


class Host:
    """Like a host's data set: train_x is a read-only property."""

    def __init__(self, train_x, test=None):
        self._train_x, self.test = train_x, test
        self.num_classes = 1 + max(item.label for item in train_x)

    @property
    def train_x(self):
        return self._train_x


def test_thin_prints_the_numbers(capsys):
    host = Host(dataset([16] * 20))
    thin(host, config())
    total = sum(imbalanced_counts(16, 0.01, 20))
    assert len(host.train_x) == total
    assert capsys.readouterr().out == (
        f"Imbalance ratio 0.01 (label order): 320 -> {total} training images, 16 to 1 a class\n"
        "Ratio obtained: 0.0625; classes with one image: 11\n"
    )


@pytest.mark.parametrize(
    ("kind", "ratio", "line", "counts"),
    [
        ("exp", 0.25, "Imbalance ratio 0.25 (label order): 48 -> 28", [16, 8, 4]),
        ("step", 0.25, "Imbalance step, ratio 0.25 (label order): 48 -> 36", [16, 16, 4]),
        ("natural", 1, "Imbalance natural: 48 -> 25", [1, 8, 16]),
        (
            "balanced_budget",
            0.25,
            "Imbalance balanced_budget, ratio 0.25 (label order): 48 -> 28",
            [9, 9, 10],
        ),
    ],
)
def test_thin_by_each_type(kind, ratio, line, counts, capsys):
    host = Host(dataset([16] * 3))
    host.class_frequency = {0: 50, 1: 450, 2: 900}
    thin(host, config(ratio, IMBALANCE_TYPE=kind))
    found = counted(host.train_x, 3)
    assert (sorted(found) if kind == "balanced_budget" else found) == counts
    assert capsys.readouterr().out.splitlines() == [
        f"{line} training images, {max(counts)} to {min(counts)} a class",
        f"Ratio obtained: {min(counts) / max(counts):.3g}; "
        f"classes with one image: {counts.count(1)}",
    ]


@pytest.mark.parametrize("kind", ["exp", "step", "balanced_budget"])
def test_thin_at_ratio_one_changes_nothing(kind, capsys):
    """Also where a data set ignores NUM_SHOTS."""
    items = dataset([5, 40, 40])
    host = Host(items)
    thin(host, config(ratio=1, IMBALANCE_TYPE=kind))
    assert host.train_x is items and capsys.readouterr().out == ""


def test_thin_does_not_guess_the_natural_profile():
    for frequency in (None, {}, {0: 900, 1: 30}, [900, 30, 4]):
        host = Host(dataset([16] * 3))
        host.class_frequency = frequency
        with pytest.raises(NPTError, match=r"Photos does not say .*NUM_SHOTS to -1"):
            thin(host, config(ratio=1, IMBALANCE_TYPE="natural"))


def test_thin_natural_keeps_all_images_if_none_were_drawn():
    for frequency in (None, {0: 1, 1: 900, 2: 30}):
        items = dataset([5, 40, 16])
        host = Host(items)
        host.class_frequency = frequency
        thin(host, config(ratio=1, shots=-1, IMBALANCE_TYPE="natural"))
        assert host.train_x == items


def test_thin_refuses_a_ratio_for_the_natural_type():
    host = Host(dataset([16] * 3))
    host.class_frequency = {0: 50, 1: 450, 2: 900}
    with pytest.raises(NPTError, match=r"IMBALANCE_RATIO is 0\.5, but the type natural"):
        thin(host, config(ratio=0.5, IMBALANCE_TYPE="natural"))


def test_thin_counts_from_the_largest_class_there_is():
    """Not from NUM_SHOTS, if all classes have fewer images."""
    for shots in (5, 16, -1):
        host = Host(dataset([4, 5, 3]))
        thin(host, config(ratio=0.04, shots=shots, order="frequency"))
        assert counted(host.train_x, 3) == [1, 5, 1]


def test_thin_shows_classes_without_images(capsys):
    host = Host([item for item in dataset([16, 16, 16]) if item.label != 1])
    thin(host, config(ratio=0.25))
    assert counted(host.train_x, 3) == [16, 0, 4]
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("16 to 0 a class") and second.startswith("Ratio obtained: 0;")


def test_thin_does_not_change_a_data_set_for_testing_only(capsys):
    items = dataset([16] * 20)
    host = Host(items, test=items)
    for kind in TYPES:
        thin(host, config(1 if kind == "natural" else 0.01, IMBALANCE_TYPE=kind))
    assert host.train_x is items and capsys.readouterr().out == ""


def test_thin_without_num_shots_uses_the_size_of_the_largest_class():
    host = Host(dataset([5, 40, 40]))
    thin(host, config(ratio=0.25, shots=-1))
    counts = Counter(item.label for item in host.train_x)
    assert [counts[k] for k in range(3)] == [5, 20, 10]


def test_thin_without_a_seed_uses_seed_0():
    draws = []
    for seed in (-1, 0):
        host = Host(dataset([16] * 4))
        thin(host, config(seed=seed))
        draws.append(host.train_x)
    assert draws[0] == draws[1]


def test_thin_uses_the_class_frequency_of_the_data_set():
    host = Host(dataset([16] * 3))
    host.class_frequency = {0: 1, 1: 900, 2: 30}
    thin(host, config(ratio=0.25, order="frequency"))
    counts = Counter(item.label for item in host.train_x)
    assert [counts[k] for k in (1, 2, 0)] == [16, 8, 4]
