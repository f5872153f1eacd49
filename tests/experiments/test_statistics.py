"""Statistics over seeds and data sets, against plain computations."""

import itertools
import math
import warnings

import pytest

pytest.importorskip("pandas")
pytest.importorskip("scipy")

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats

from npt.errors import NPTError
from npt.experiments.report import statistics
from npt.experiments.report.statistics import (
    Summary,
    accuracies,
    by_seed,
    compare,
    each_seed,
    harmonic_mean_of_averages,
    mean_of_harmonic_means,
    summarise,
)

ACCURACY = st.floats(0.0, 100.0, width=32)
BOTH = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5).map(lambda s: (s[0], 2, s[2]))


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def holes(draw, shape, share=0.2):
    return draw(arrays(bool, shape, elements=st.sampled_from([True] + [False] * int(1 / share))))


@st.composite
def results(draw):
    """Accuracies (seeds, 2, data sets), some of them missing."""
    shape = draw(BOTH)
    x = draw(arrays(float, shape, elements=ACCURACY))
    x[holes(draw, shape)] = np.nan
    return x


def harmonic(base: float, new: float) -> float:
    return 0.0 if base == new == 0 else 2 * base * new / (base + new)


# --------------------------------------------------------------------------- over seeds
@given(results())
def test_a_summary_is_of_the_complete_seeds(x):
    full = [seed for seed in x if not np.isnan(seed).any()]
    found = summarise(x)
    assert (found.runs, found.expected) == (len(full), len(x))
    there = [d for d in range(x.shape[2]) if any(not np.isnan(s[:, d]).any() for s in x)]
    assert (found.datasets, found.all_datasets) == (len(there), x.shape[2])
    assert found.incomplete == (0 < len(full) < len(x))
    if not full:
        assert math.isnan(found.mean)
        return
    values = np.array([seed.mean() for seed in full])
    assert found.mean == pytest.approx(values.mean(), abs=1e-9)
    if len(full) == 1:
        assert math.isnan(found.std) and math.isnan(found.low) and math.isnan(found.high)
        return
    assert found.std == pytest.approx(math.sqrt(((values - values.mean()) ** 2).mean()), abs=1e-9)
    error = values.std(ddof=1) / math.sqrt(len(values))
    if error > 1e-6:
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
        assert (found.low, found.high) == pytest.approx((low, high))


@given(results())
def test_harmonic_means_are_of_the_means_with_the_spread_of_the_seeds(x):
    full = [seed for seed in x if not np.isnan(seed).any()]
    if not full:
        return
    base, new = np.mean(full, axis=0)
    columns = range(x.shape[2])
    mean_of = [np.mean([harmonic(s[0][d], s[1][d]) for d in columns]) for s in full]
    mean_all = np.mean([harmonic(base[d], new[d]) for d in columns])
    of_averages = [harmonic(s[0].mean(), s[1].mean()) for s in full]
    for figure, centre, seeds in (
        (mean_of_harmonic_means, mean_all, mean_of),
        (harmonic_mean_of_averages, harmonic(base.mean(), new.mean()), of_averages),
    ):
        found = summarise(x, figure)
        assert found.mean == pytest.approx(centre, abs=1e-9)
        if len(full) > 1:
            assert found.std == pytest.approx(np.std(seeds), abs=1e-9)
            # scipy's interval of the mean over seeds, which is not quite the figure of the means
            assert (found.low + found.high) / 2 == pytest.approx(np.mean(seeds), abs=1e-6)


@given(results())
def test_over_one_data_set_both_averages_are_the_harmonic_mean(x):
    x = x[:, :, :1]
    one, other = summarise(x, mean_of_harmonic_means), summarise(x, harmonic_mean_of_averages)
    np.testing.assert_allclose([one.mean, one.std], [other.mean, other.std], atol=1e-9)


@given(results())
def test_each_seed_is_a_figure_or_missing(x):
    for seed, value in zip(x, each_seed(x, mean_of_harmonic_means), strict=True):
        assert math.isnan(value) == bool(np.isnan(seed).any())
        if not math.isnan(value):
            assert value == pytest.approx(np.mean([harmonic(*pair) for pair in seed.T]), abs=1e-9)


def test_nothing_at_all():
    assert summarise(np.empty((0, 1, 1))) == Summary(all_datasets=1)
    assert summarise(np.empty((3, 1, 0))).runs == 0


# --------------------------------------------------------------------------- the frame
def rows(*values: tuple) -> pd.DataFrame:
    columns = ["seed", "part", "dataset", "accuracy"]
    return pd.DataFrame(values, columns=columns).assign(method="M", ratio=0.05)


def test_by_seed_has_gaps_where_results_are_missing():
    frame = rows((1, "base", "a", 50.0), (1, "new", "a", None), (2, "base", "a", 60.0))
    table = by_seed(frame)
    assert list(table.index) == [1, 2]
    x = accuracies(table, [[("base", "a"), ("base", "b")], [("new", "a"), ("new", "b")]])
    nan = math.nan
    np.testing.assert_equal(x, [[[50, nan], [nan, nan]], [[60, nan], [nan, nan]]])
    assert np.isnan(accuracies(by_seed(frame, "many"), [[("base", "a")]])).all()


def test_two_runs_of_one_evaluation_are_an_error():
    frame = rows((1, "base", "a", 50.0), (1, "base", "a", 51.0))
    with pytest.raises(NPTError, match=r"M has two runs with tau 0\.05, seed 1 .* base on a"):
        by_seed(frame)


# --------------------------------------------------------------------------- pairs
@st.composite
def two_methods(draw):
    """Two frames (seeds, data sets) whose seeds overlap, with gaps."""
    columns = [f"d{n}" for n in range(draw(st.integers(1, 8)))]
    found = []
    for _ in range(2):
        seeds = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5, unique=True))
        shape = (len(seeds), len(columns))
        x = draw(arrays(float, shape, elements=st.integers(0, 10_000).map(lambda n: n / 100)))
        x[holes(draw, shape)] = np.nan
        found.append(pd.DataFrame(x, index=seeds, columns=columns))
    return found


@given(two_methods())
def test_comparison_by_hand(both):
    first, second = both
    differences, pairs, left_out = [], 0, 0
    shared = [seed for seed in first.index if seed in second.index]
    for dataset in first.columns:
        found = [second[dataset][s] - first[dataset][s] for s in shared]
        found = [x for x in found if not math.isnan(x)]
        pairs += len(found)
        left_out += not found
        if found:
            differences.append(round(sum(found) / len(found), 9))
    result = compare(first, second)
    assert (result.datasets, result.left_out) == (len(differences), left_out)
    assert (result.pairs, result.expected) == (pairs, len(shared) * len(first.columns))
    assert result.better == sum(x > 0 for x in differences)
    assert result.worse == sum(x < 0 for x in differences)
    if not differences:
        assert math.isnan(result.mean)
        return
    x = np.array(differences)
    assert result.mean == pytest.approx(x.mean(), abs=1e-9)
    if len(x) < 2:
        assert all(map(math.isnan, (result.low, result.high, result.t_p, result.wilcoxon_p)))
        return
    error = x.std(ddof=1) / math.sqrt(len(x))
    half = stats.t.ppf(0.975, len(x) - 1) * error
    ends = (x.mean() - half, x.mean() + half)
    assert (result.low, result.high) == pytest.approx(ends, abs=1e-6)
    if np.ptp(x) == 0:
        assert math.isnan(result.t_p)
    elif error > 1e-6:
        expected = 2 * stats.t.sf(abs(x.mean()) / error, len(x) - 1)
        assert result.t_p == pytest.approx(expected, abs=1e-9)
    assert math.isnan(result.wilcoxon_p) == (not x.any())


@given(st.lists(st.integers(1, 400), min_size=2, max_size=9, unique=True), st.randoms())
def test_wilcoxon_is_the_share_of_signs_that_are_as_extreme(sizes, random):
    x = np.array([size * random.choice([-1, 1]) / 4 for size in sizes])
    ranks = np.argsort(np.argsort(np.abs(x))) + 1
    observed = ranks[x > 0].sum()
    sums = [np.dot(ranks, signs) for signs in itertools.product([0, 1], repeat=len(x))]
    tails = (np.mean(np.array(sums) <= observed), np.mean(np.array(sums) >= observed))
    frame = pd.DataFrame([x])
    result = compare(0 * frame, frame)
    assert result.wilcoxon_p == pytest.approx(min(1.0, 2 * min(tails)))


@given(two_methods())
def test_the_other_way_round_has_the_other_sign(both):
    one, other = compare(*both), compare(*reversed(both))
    assert one.mean == pytest.approx(-other.mean, abs=1e-9, nan_ok=True)
    assert (one.better, one.worse) == (other.worse, other.better)
    assert one.t_p == pytest.approx(other.t_p, nan_ok=True)
    assert one.wilcoxon_p == pytest.approx(other.wilcoxon_p, nan_ok=True)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_differences_that_are_all_equal(value):
    first = pd.DataFrame(np.full((3, 4), 70.0))
    result = compare(first, first + value)
    assert result.mean == pytest.approx(value)
    assert (result.low, result.high) == pytest.approx((value, value))
    assert math.isnan(result.t_p)
    assert math.isnan(result.wilcoxon_p) == (value == 0)


def test_what_differs_by_rounding_only_is_equal():
    first = pd.DataFrame([[0.3, 0.3]])
    result = compare(first, pd.DataFrame([[0.1 + 0.2, 0.3]]))
    assert (result.mean, result.better, result.worse) == (0.0, 0, 0)


def test_ties_and_zeros_give_a_p_value():
    first = pd.DataFrame(np.zeros((1, 6)))
    result = compare(first, pd.DataFrame([[0.0, 1.0, 1.0, -1.0, 2.0, 2.0]]))
    assert 0 < result.wilcoxon_p <= 1 and 0 < result.t_p < 1


def test_the_confidence_is_95_percent():
    assert statistics.CONFIDENCE == 0.95
    found = summarise(np.array([70.0, 71.0, 72.0]).reshape(3, 1, 1))
    assert found.high - 71 == pytest.approx(4.302652729749464 / math.sqrt(3))
    assert found.std == pytest.approx(math.sqrt(2 / 3))
