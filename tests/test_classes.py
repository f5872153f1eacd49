"""Figures over classes against plain numpy, and the corners."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.classes import accuracies, collapse_of_texts, confusion, count, shot_groups
from npt.geometry import language_collapse_degree
from npt.results import confusion_matrix
from npt.terms import ACCURACIES


def figures(labels, predictions, classes, train_counts=None):
    counts = count(torch.tensor(labels), torch.tensor(predictions), classes)
    return accuracies(counts, train_counts)


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_means_over_the_classes_seen(seed, classes, images):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    right = rng.random(images) < 0.8
    predictions = np.where(right, labels, rng.integers(0, classes, images))
    found = figures(labels.tolist(), predictions.tolist(), classes)
    each = np.array([(predictions[labels == k] == k).mean() for k in np.unique(labels)])
    assert found["worst_class"] == pytest.approx(100 * each.min())
    geometric = np.prod(each) ** (1 / len(each))
    assert found["geometric_mean"] == pytest.approx(100 * geometric, abs=1e-9)
    harmonic = len(each) / (1 / each).sum() if each.all() else 0
    assert found["harmonic_mean"] == pytest.approx(100 * harmonic, abs=1e-9)
    rounding = 1e-9
    assert found["worst_class"] <= found["harmonic_mean"] + rounding or not each.all()
    assert found["harmonic_mean"] <= found["geometric_mean"] + rounding
    assert found["geometric_mean"] <= found["class_mean_accuracy"] + rounding


def test_corners_of_the_means():
    assert {k: figures([0, 1], [0, 1], 3)[k] for k in ("geometric_mean", "harmonic_mean")} == {
        "geometric_mean": 100.0,
        "harmonic_mean": 100.0,
    }
    found = figures([0, 0, 1], [0, 0, 0], 2)
    assert found["worst_class"] == found["geometric_mean"] == found["harmonic_mean"] == 0
    # 1000 classes, one image of 100 is right: a product would underflow
    labels = [k for k in range(1000) for _ in range(100)]
    predictions = [k if i % 100 == 0 else (k + 1) % 1000 for i, k in enumerate(labels)]
    found = figures(labels, predictions, 1000)
    assert found["geometric_mean"] == pytest.approx(1) and found["harmonic_mean"] == pytest.approx(
        1
    )


def test_every_figure_has_a_known_name():
    assert set(figures([0, 1], [0, 0], 2, [3, 1])) <= set(ACCURACIES)


@pytest.mark.parametrize(
    ("counts", "many", "medium", "few"),
    [
        ([16, 7, 6, 3, 2, 1], [0, 1], [2, 3], [4, 5]),
        ([16] * 3, [0, 1, 2], [], []),
        ([64, 17, 16, 5, 4, 1], [0, 1], [2, 3], [4, 5]),  # 4 and 16 are the cuts themselves
        ([1, 1], [], [], [0, 1]),
    ],
)
def test_shot_groups_are_geometric_thirds(counts, many, medium, few):
    assert shot_groups(counts) == {"many": many, "medium": medium, "few": few}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_the_confusion_is_every_pair(pairs):
    cells = confusion(*torch.tensor(pairs).T)
    assert {(a, b): n for a, b, n in cells} == {x: pairs.count(x) for x in pairs}
    assert cells == sorted(cells)
    record = {"confusion": {"test": cells}, "classnames": ["a", "b", "c"]}
    dense = confusion_matrix(record)
    assert len(dense) == max(3, 1 + max(max(x) for x in pairs))  # a host's labels may go further
    assert all(dense[x] == pairs.count(x) for x in pairs) and dense.sum() == len(pairs)


@given(st.integers(0, 10**6), st.integers(2, 8))
@settings(max_examples=20, deadline=None)
def test_the_collapse_of_texts_averages_to_the_measure(seed, classes):
    text = torch.randn(classes, 5, generator=torch.Generator().manual_seed(seed))
    each = collapse_of_texts(text)
    assert each.shape == (classes,)
    expected = float(language_collapse_degree(text).absolute)
    assert float(each.mean()) == pytest.approx(expected, abs=1e-6)


def test_one_class_has_no_collapse():
    assert bool(collapse_of_texts(torch.ones(1, 5)).isnan())
