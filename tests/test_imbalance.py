"""The sizes of long-tailed classes, and which of their images are kept."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.host.thinning import thin
from npt.imbalance import imbalanced_counts, subsample

RATIOS = st.floats(0.001, 1.0)
ORDERS = st.sampled_from(["label", "random", "frequency"])


class Item(NamedTuple):
    label: int
    number: int


def dataset(sizes, seed=0):
    """Items of classes 0, 1, ... of the given sizes, shuffled."""
    items = [Item(label, i) for label, size in enumerate(sizes) for i in range(size)]
    random.Random(seed).shuffle(items)
    return items


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


@given(SIZES, RATIOS, RATIOS, st.integers(0, 99), ORDERS)
@settings(max_examples=60)
def test_the_draw_of_a_ratio_is_a_subset_of_that_of_a_larger_one(sizes, one, other, seed, order):
    data = dataset(sizes)
    less, more = sorted([one, other])
    few, many = (set(subsample(data, ratio, 12, seed, order)) for ratio in (less, more))
    assert few <= many <= set(data)


@given(SIZES, st.integers(0, 99), ORDERS)
def test_a_ratio_of_one_keeps_all_items(sizes, seed, order):
    data = dataset(sizes)
    assert subsample(data, 1.0, 12, seed, order) == data


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


def test_an_unknown_order_is_an_error_and_no_items_give_no_items():
    with pytest.raises(ValueError, match="label, random, frequency"):
        subsample(dataset([2, 2]), 0.5, 2, 0, "size")
    assert subsample([], 0.5, 16, 0) == []


def config(ratio=0.01, shots=16, seed=1, order="label"):
    nodes = {"IMBALANCE_RATIO": ratio, "IMBALANCE_ORDER": order, "NUM_SHOTS": shots}

    class Node(dict):
        __getattr__ = dict.__getitem__

    return SimpleNamespace(DATASET=Node(nodes), SEED=seed)


class Host:
    """Like a host's data set: train_x is a read-only property."""

    def __init__(self, train_x, test=None):
        self._train_x, self.test = train_x, test

    @property
    def train_x(self):
        return self._train_x


def test_thin_prints_the_numbers(capsys):
    host = Host(dataset([16] * 20))
    thin(host, config())
    total = sum(imbalanced_counts(16, 0.01, 20))
    assert len(host.train_x) == total
    line = f"Imbalance ratio 0.01 (label order): 320 -> {total} training images, 16 to 1 a class\n"
    assert capsys.readouterr().out == line


def test_thin_does_not_change_a_data_set_for_testing_only(capsys):
    items = dataset([16] * 20)
    host = Host(items, test=items)
    thin(host, config())
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
