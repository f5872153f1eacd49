"""Statistics over seeds, and over data sets.

A figure (an accuracy, a harmonic mean, an average) is computed from the accuracies of one seed or
from their means over seeds. What is shown is the figure of the means, as in the papers of the CoOp
family: the harmonic mean of the mean base and the mean new accuracy. Its spread is that of the
figures of each seed: the population standard deviation, as in parse_test_res.py, and the 95 % t
interval around their mean. Only seeds count that have every accuracy of a figure, so that an
average over data sets is one of complete rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from npt.errors import NPTError
from npt.experiments.tables import harmonic_mean

CONFIDENCE = 0.95
PLACES = 9  # decimals of a difference that count; further ones are of the arithmetic
Input = tuple[str, str]  # an evaluation: its name (part) and data set
# From accuracies (n, parts, data sets) to n values; n are seeds, or one for the mean over seeds.
Figure = Callable[[np.ndarray], np.ndarray]


# --------------------------------------------------------------------------- figures
def mean(x: np.ndarray) -> np.ndarray:
    """The mean of all accuracies."""
    return x.mean(axis=(1, 2))


def mean_of_harmonic_means(x: np.ndarray) -> np.ndarray:
    """The mean over data sets of the harmonic means of two parts."""
    return _harmonic(x[:, 0], x[:, 1]).mean(axis=1)


def harmonic_mean_of_averages(x: np.ndarray) -> np.ndarray:
    """The harmonic mean of the averages of two parts over data sets."""
    return _harmonic(x[:, 0].mean(axis=1), x[:, 1].mean(axis=1))


def _harmonic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """0 where both are."""
    return harmonic_mean(a, np.where(a + b == 0, 1.0, b))


# --------------------------------------------------------------------------- over seeds
@dataclass(frozen=True)
class Summary:
    """A figure over seeds, in its own unit; NaN where there is none.

    std is the population standard deviation, low and high are the ends of the 95 % t interval; all
    are NaN for fewer than two runs. runs: seeds that have the figure, of `expected`. datasets:
    those with at least one seed, of `all_datasets`.
    """

    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    runs: int = 0
    expected: int = 0
    datasets: int = 0
    all_datasets: int = 0

    @property
    def incomplete(self) -> bool:
        """Whether it is a figure of fewer seeds than expected."""
        return 0 < self.runs < self.expected


def by_seed(frame: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """The values of one method and ratio: rows seeds, columns (part, dataset), NaN where missing.

    NPTError if a seed has two rows for an evaluation.
    """
    index = ["seed", "part", "dataset"]
    twice = frame[frame.duplicated(index)]
    if len(twice):
        row = twice.iloc[0]
        raise NPTError(
            f"{row['method']} has two runs with tau {row['ratio']:g}, seed {row['seed']} and the "
            f"evaluation {row['part']} on {row['dataset']}: give one of them another name"
        )
    column = frame[value] if value in frame else pd.Series(np.nan, frame.index)
    values = column.astype(float).to_numpy()
    series = pd.Series(values, pd.MultiIndex.from_frame(frame[index]))
    return series.unstack(["part", "dataset"])


def accuracies(runs: pd.DataFrame, inputs: Sequence[Sequence[Input]]) -> np.ndarray:
    """Of `by_seed`, these parts and data sets: (seeds, parts, data sets), NaN where missing."""
    missing = np.full(len(runs), np.nan)
    values = np.array([[runs.get(x, missing) for x in part] for part in inputs], dtype=float)
    return np.moveaxis(values.reshape(len(inputs), len(inputs[0]), len(runs)), -1, 0)


def summarise(x: np.ndarray, figure: Figure = mean) -> Summary:
    """A figure of accuracies (seeds, parts, data sets) over the seeds that have all of them."""
    there = ~np.isnan(x)
    full = x[there.all(axis=(1, 2))]
    size = {
        "runs": len(full),
        "expected": len(x),
        "datasets": int(there.all(axis=1).any(axis=0).sum()),
        "all_datasets": x.shape[2],
    }
    if not full.size:
        return Summary(**{**size, "runs": 0})
    centre = figure(full.mean(axis=0, keepdims=True))[0]
    return spread(figure(full), float(centre), **size)


def spread(values: np.ndarray, centre: float, **size: int) -> Summary:
    """The summary of the figures (n) of n seeds around the value that is shown."""
    if len(values) < 2:
        return Summary(mean=centre, **size)
    half, middle = _half_width(values), float(values.mean())
    return Summary(centre, float(values.std()), middle - half, middle + half, **size)


def each_seed(x: np.ndarray, figure: Figure = mean) -> np.ndarray:
    """A figure of accuracies (seeds, parts, data sets) for each seed, NaN where one is missing."""
    values = np.full(len(x), np.nan)
    full = ~np.isnan(x).any(axis=(1, 2))
    values[full] = figure(x[full])
    return values


def _half_width(values: np.ndarray) -> float:
    """Half of the 95 % t interval of the mean of n >= 2 values."""
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * values.std(ddof=1) / math.sqrt(len(values)))


# --------------------------------------------------------------------------- pairs
@dataclass(frozen=True)
class Comparison:
    """The difference of two methods over data sets, in the unit of the figures.

    low, high: 95 % t interval over data sets. t_p, wilcoxon_p: two-sided p values of the paired t
    test and of Wilcoxon's signed-rank test, NaN where there is none: fewer than two data sets, or
    differences that are all equal (t) or all zero (Wilcoxon). better, worse: data sets with a
    difference above and below 0. pairs: runs of the same seed behind it, of `expected`. left_out:
    data sets without a pair.
    """

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    datasets: int = 0
    better: int = 0
    worse: int = 0
    t_p: float = math.nan
    wilcoxon_p: float = math.nan
    pairs: int = 0
    expected: int = 0
    left_out: int = 0


def compare(first: pd.DataFrame, second: pd.DataFrame) -> Comparison:
    """`second` minus `first`, both with rows seeds and columns data sets, NaN where missing.

    The difference of a data set is the mean over the seeds that both have of the differences of a
    seed. The data sets are the sample that is tested.
    """
    seeds = first.index.intersection(second.index)
    pairs = (second.loc[seeds] - first.loc[seeds])[first.columns]
    differences = pairs.mean().dropna().round(PLACES).to_numpy()
    size = {
        "datasets": len(differences),
        "better": int((differences > 0).sum()),
        "worse": int((differences < 0).sum()),
        "pairs": int(pairs.count().sum()),
        "expected": pairs.size,
        "left_out": len(first.columns) - len(differences),
    }
    if not len(differences):
        return Comparison(**size)
    centre = float(differences.mean())
    if len(differences) < 2:
        return Comparison(centre, **size)
    half = _half_width(differences)
    return Comparison(
        *(centre, centre - half, centre + half),
        t_p=_t_test(differences),
        wilcoxon_p=_wilcoxon(differences),
        **size,
    )


def _t_test(differences: np.ndarray) -> float:
    if np.ptp(differences) == 0:
        return math.nan
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _wilcoxon(differences: np.ndarray) -> float:
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # earlier versions of scipy warn of ties in small samples
        return float(stats.wilcoxon(nonzero).pvalue)
