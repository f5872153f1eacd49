"""The study of long tails: what remedies and terms do, alone and together (docs/long-tail.md).

A method is a base method with the words of a variant, as `MaPLe + balanced weights`; the base
method alone has none. Each base method has tables of its own: the figures of its variants, and the
differences of variants on the same seeds, with data sets as units. The variant to advise is chosen
by validation images of the trained classes alone; test figures are shown for all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from npt.errors import NPTError
from npt.experiments.figures import BESIDE, COLOURS, GREY, MARKERS, styled
from npt.experiments.frame import SPLIT
from npt.experiments.report import statistics
from npt.experiments.report.figures import Drawn
from npt.experiments.report.statistics import Comparison, Summary
from npt.experiments.report.table import (
    MISSING,
    STAR,
    Block,
    Cell,
    Column,
    Row,
    Table,
)
from npt.experiments.state import read_result
from npt.experiments.tables import harmonic_mean
from npt.experiments.training_sets import CONTROL as CONTROL_OF_TABLES
from npt.results import RESULT

JOIN = " + "
CONTROL = CONTROL_OF_TABLES.strip()  # the variant with as many images, divided equally
CLEAR = "†"  # marks a difference whose interval is without 0
ALONE = "alone"  # how the base method is called in tables
HM = "HM"  # the harmonic mean of base and new, of each data set and seed
# What is shown: name -> (evaluation, column of the frame).
FIGURES = {
    "validation": ("base", "validation"),
    "base": ("base", "accuracy"),
    "new": ("new", "accuracy"),
    HM: ("", ""),
    "few": ("base", "few"),
    "worst class": ("base", "worst_class"),
    "ECE base": ("base", "ece"),
    "ECE new": ("new", "ece"),
    "LCD": ("base", "lcd_abs"),
    "MID": ("base", "mid_abs"),
}
COMPARED = ("base", "new", HM, "few", "ECE base", "ECE new", "LCD", "MID")
DIGITS = {"LCD": 4, "MID": 4}


@dataclass(frozen=True)
class Variant:
    """A method of the study, in parts: `CoOp + NPT + balanced weights`."""

    base: str
    words: tuple[str, ...]  # what is added; () for the base method alone

    @property
    def label(self) -> str:
        return JOIN.join(self.words) or ALONE


def variants_of(frame: pd.DataFrame) -> dict[str, dict[str, Variant]]:
    """base method -> method of the frame -> its parts, in the frame's order."""
    methods = list(dict.fromkeys(frame["method"]))
    bases = [x for x in methods if JOIN not in x and not x.endswith(CONTROL)]
    found: dict[str, dict[str, Variant]] = {base: {} for base in bases}
    for method in methods:
        base = next((x for x in bases if method == x or method.startswith(f"{x} ")), None)
        if base is not None:
            words = method.removeprefix(base).strip().removeprefix("+").strip()
            found[base][method] = Variant(base, tuple(words.split(JOIN)) if words else ())
    return found


# --------------------------------------------------------------------------- tables
def tables_of(frame: pd.DataFrame) -> list[Table]:
    """The choice on validation images, and of each base method its figures and differences."""
    study = variants_of(frame)
    made = [choice(frame, study)]
    for base, variants in study.items():
        made += [levels(frame, base, variants), differences(frame, base, variants)]
    return made


def levels(frame: pd.DataFrame, base: str, variants: Mapping[str, Variant]) -> Table:
    """The figures of all variants of a base method, averaged over data sets."""
    blocks = []
    for ratio in _ratios(frame):
        rows = []
        for method, variant in variants.items():
            cells = [_average(frame, ratio, method, figure) for figure in FIGURES]
            rows.append(Row(variant.label, tuple(cells)))
        blocks.append(Block(ratio, tuple(rows)))
    note = (
        "Averages over data sets, with the standard deviation over seeds. validation: accuracy on "
        "the validation images of the trained classes; few: base classes with few images; HM: mean "
        "of the harmonic means of base and new."
    )
    title = f"{base}: accuracy, calibration and collapse (%; LCD and MID from 0 to 1)"
    return Table(
        f"long_tail_{base.lower()}", title, base, _columns(FIGURES), tuple(blocks), (note,)
    )


def differences(frame: pd.DataFrame, base: str, variants: Mapping[str, Variant]) -> Table:
    """Variants against the method alone, against its control, and terms on top of remedies."""
    pairs = list(_pairs(base, variants))
    blocks = []
    for ratio in _ratios(frame):
        rows = []
        for label, method, other in pairs:
            cells = [
                _difference(_compare(frame, ratio, method, other, x), DIGITS.get(x, 2))
                for x in COMPARED
            ]
            rows.append(Row(label, tuple(cells)))
        blocks.append(Block(ratio, tuple(rows)))
    note = (
        "Differences (percentage points; LCD and MID in their own unit), with half of the 95 % t "
        "interval over data sets; of a data set, the mean over seeds that both have. "
        f"{CLEAR}: the interval is without 0. Not "
        "corrected for the number of comparisons."
    )
    title = f"{base}: differences on the same seeds"
    name = f"long_tail_{base.lower()}_differences"
    return Table(name, title, base, _columns(COMPARED), tuple(blocks), (note,))


def _pairs(base: str, variants: Mapping[str, Variant]) -> Iterator[tuple[str, str, str]]:
    """(label, method, other method) of the comparisons."""
    by_words = {frozenset(x.words): method for method, x in variants.items()}
    alone, control = by_words.get(frozenset()), by_words.get(frozenset({CONTROL}))
    for method, variant in variants.items():
        if alone is not None and method != alone:
            yield f"{variant.label} against {ALONE}", method, alone
    for method, variant in variants.items():
        if len(variant.words) < 2:
            continue
        term, *rest = variant.words
        other = by_words.get(frozenset(rest))
        if other is not None:
            yield f"{term} on top of {JOIN.join(rest)}", method, other
    for method, variant in variants.items():
        if control is not None and method not in (alone, control):
            yield f"{variant.label} against {CONTROL}", method, control


def choice(frame: pd.DataFrame, study: Mapping[str, Mapping[str, Variant]]) -> Table:
    """Validation accuracy of each variant, averaged over ratios and data sets, best first.

    Only variants that have all runs, of all base methods, have a mean and a rank.
    """
    found: dict[tuple[str, ...], dict[str, Summary]] = {}
    for base, variants in study.items():
        for method, variant in variants.items():
            if CONTROL not in variant.words:
                found.setdefault(variant.words, {})[base] = _validation(frame, method)
    means = {
        words: float(np.mean([x.mean for x in of.values()]))
        for words, of in found.items()
        if of.keys() == study.keys() and all(x.runs == x.expected for x in of.values())
    }
    rows = [
        Row(
            JOIN.join(words) or ALONE,
            (*(_shown(found[words].get(base, Summary())) for base in study), _mean(means, words)),
        )
        for words in sorted(found, key=lambda words: -means.get(words, -math.inf))
    ]
    note = (
        "The mean over all ratios and data sets, on validation images of the trained classes, with "
        "the standard deviation over seeds. The control is not a choice: it has other images."
    )
    return Table(
        "long_tail_choice",
        "The choice on validation images: accuracy on the trained classes (%)",
        "variant",
        _columns([*study, "mean"]),
        (Block(None, tuple(rows)),),
        (note,),
    )


def _mean(means: Mapping[tuple[str, ...], float], words: tuple[str, ...]) -> Cell:
    if words not in means:
        return Cell(text=MISSING)
    return Cell(Summary(means[words], runs=1, expected=1), text=f"{means[words]:.2f}")


# --------------------------------------------------------------------------- figures of tables
def _ratios(frame: pd.DataFrame) -> list[float]:
    return list(dict.fromkeys(frame["ratio"]))


def _columns(names: Iterable[str]) -> tuple[Column, ...]:
    return tuple(Column(name, name, name) for name in names)


def _of_seeds(frame: pd.DataFrame, ratio: float, method: str, figure: str) -> pd.DataFrame:
    """A figure (a name in FIGURES) of one method: rows seeds, columns data sets."""
    if figure == HM:
        return harmonic_mean(*(_of_seeds(frame, ratio, method, x) for x in ("base", "new")))
    part, column = FIGURES[figure]
    chosen = (frame["method"] == method) & (frame["ratio"] == ratio) & (frame["part"] == part)
    runs = statistics.by_seed(frame[chosen], column)
    return runs.droplevel("part", axis=1)


def _average(frame: pd.DataFrame, ratio: float, method: str, figure: str) -> Cell:
    """The average over data sets, of the seeds that have all of them."""
    values = _of_seeds(frame, ratio, method, figure).dropna().mean(axis=1).to_numpy()
    expected = _expected(frame, ratio, method)
    if not len(values):
        return Cell(Summary(expected=expected), text=MISSING)
    size = {"runs": len(values), "expected": expected, "datasets": 1, "all_datasets": 1}
    summary = statistics.spread(values, float(values.mean()), **size)
    return _shown(summary, DIGITS.get(figure, 2))


def _expected(frame: pd.DataFrame, ratio: float, method: str) -> int:
    return frame[(frame["method"] == method) & (frame["ratio"] == ratio)]["seed"].nunique()


def _shown(summary: Summary, digits: int = 2) -> Cell:
    """A figure with its deviation over seeds, without a line for the interval."""
    if not summary.runs:
        return Cell(summary, text=MISSING)
    text = f"{summary.mean:.{digits}f}"
    if summary.runs > 1:
        text += f" ± {summary.std:.{digits}f}"
    return Cell(summary, text=text + STAR * summary.incomplete)


def _validation(frame: pd.DataFrame, method: str) -> Summary:
    values = [_of_seeds(frame, ratio, method, "validation") for ratio in _ratios(frame)]
    of_seeds = sum(x.mean(axis=1, skipna=False) for x in values).dropna().to_numpy() / len(values)
    expected = _expected(frame, _ratios(frame)[0], method)
    if not len(of_seeds):
        return Summary(expected=expected)
    return statistics.spread(
        of_seeds, float(of_seeds.mean()), runs=len(of_seeds), expected=expected
    )


def _compare(frame: pd.DataFrame, ratio: float, method: str, other: str, figure: str) -> Comparison:
    return statistics.compare(*(_of_seeds(frame, ratio, x, figure) for x in (other, method)))


def _difference(found: Comparison, digits: int = 2) -> Cell:
    half = (found.high - found.low) / 2
    summary = Summary(
        found.mean, low=found.low, high=found.high, runs=found.pairs, expected=found.expected
    )
    if math.isnan(found.mean):
        return Cell(summary, text=MISSING)
    text = f"{found.mean:+.{digits}f}" if round(found.mean, digits) else f"{0:.{digits}f}"
    if not math.isnan(half):
        beyond = abs(found.mean) > half and round(found.mean, digits) != 0
        text += f" ± {half:.{digits}f}" + CLEAR * beyond
    return Cell(summary, text=text + STAR * summary.incomplete)


# --------------------------------------------------------------------------- figures
@styled()
def draw_differences(frame: pd.DataFrame) -> Drawn:
    """The differences of base and new accuracy to the method alone, with 95 % intervals.

    A column of panels for each base method, a row for each ratio.
    """
    study, ratios = variants_of(frame), _ratios(frame)
    rows = []
    for ratio, (base, variants) in itertools.product(ratios, study.items()):
        alone = next((method for method, x in variants.items() if not x.words), None)
        if alone is None:
            continue
        for (method, variant), figure in itertools.product(variants.items(), ("base", "new")):
            if variant.words:
                found = _compare(frame, ratio, method, alone, figure)
                row = {"method": base, "ratio": ratio, "variant": variant.label, "figure": figure}
                rows.append({**row, "mean": found.mean, "low": found.low, "high": found.high})
    if not rows:
        raise NPTError("the figure shows variants of methods beside the methods alone")
    data = pd.DataFrame(rows)
    labels, bases = (list(dict.fromkeys(data[x])) for x in ("variant", "method"))
    most = max(25.0, 1.1 * data[["low", "high", "mean"]].abs().max(axis=None))
    size = (2.4 * len(bases) + 2.2, 0.19 * len(labels) * len(ratios) + 1.2)
    drawn = Figure(figsize=size)
    panels = drawn.subplots(len(ratios), len(bases), sharey=True, squeeze=False)
    for (ratio, of_ratio), line in zip(data.groupby("ratio", sort=False), panels, strict=True):
        for (base, of_base), ax in zip(of_ratio.groupby("method", sort=False), line, strict=True):
            for shift, (figure, x) in zip((-0.17, 0.17), of_base.groupby("figure"), strict=True):
                places = [labels.index(label) + shift for label in x["variant"]]
                error = [x["mean"] - x["low"], x["high"] - x["mean"]]
                look = {"fmt": "o", "ms": 3, "lw": 1, "color": COLOURS[figure == "new"]}
                ax.errorbar(x["mean"], places, xerr=error, label=figure, **look)
            ax.axvline(0, color=GREY, lw=0.8)
            ax.set_title(f"{base}, τ = {ratio:g}")
            ax.set_xscale("symlog", linthresh=5)
            ax.set_xticks([-20, -5, 0, 5, 20], ["-20", "-5", "0", "5", "20"])
            ax.set_xlim(-most, most)
        line[0].set_yticks(range(len(labels)), labels)
    panels[0][0].set_ylim(len(labels) - 0.5, -0.5)
    panels[-1][0].set_xlabel("difference to the method alone, percentage points")
    panels[0][-1].legend(**BESIDE)
    return drawn, data


SHOWN = ((), ("NPT",), ("logit adjustment",), ("balanced weights",), (CONTROL,))  # variants
OF_CLASSES = {  # columns of `classes` -> what they are
    "accuracy": "accuracy, %",
    "lcd": "LCD of the class",
    "mid": "MID of the class",
}


@styled()
def draw_classes(frame: pd.DataFrame) -> Drawn:
    """Accuracy, LCD and MID of single classes by their number of training images.

    Smallest ratio; means over classes, seeds and data sets. LCD and MID of a class are relative to
    those of the same class with equal counts (the control), because classes differ.
    """
    study, ratio = variants_of(frame), min(_ratios(frame))
    found = classes(frame[frame["ratio"] == ratio])
    if found.empty or found["lcd"].isna().all():
        raise NPTError("the results of single classes are not on record for these runs")
    key = ["dataset", "seed", "class"]
    tables = []
    for base, variants in study.items():
        of_words = {x.words: method for method, x in variants.items()}
        if (CONTROL,) not in of_words or () not in of_words:
            continue
        of = {words: found[found["method"] == m].set_index(key) for words, m in of_words.items()}
        # By the long-tailed draw, also for the control; in groups 1, 2-3, 4-7, ...
        counts = 2 ** np.floor(np.log2(of[()]["train_count"].astype(float)))
        for words in (x for x in SHOWN if x in of and x != (CONTROL,)):
            change = of[words][list(OF_CLASSES)] - of[(CONTROL,)][list(OF_CLASSES)]
            tables.append(
                change.assign(images=counts).groupby("images").agg(["mean", "sem"]).stack(0)
                .rename_axis(["images", "figure"]).reset_index()
                .assign(method=base, variant=JOIN.join(words) or ALONE)
            )  # fmt: skip
    if not tables:
        raise NPTError(f"the figure of single classes needs methods with {CONTROL}")
    data = pd.concat(tables, ignore_index=True)
    bases = list(dict.fromkeys(data["method"]))
    drawn = Figure(figsize=(2.6 * len(bases) + 1.6, 2.1 * len(OF_CLASSES)))
    panels = drawn.subplots(len(OF_CLASSES), len(bases), sharex=True, sharey="row", squeeze=False)
    for line, (figure, name) in zip(panels, OF_CLASSES.items(), strict=True):
        for ax, base in zip(line, bases, strict=True):
            chosen = data[(data["method"] == base) & (data["figure"] == figure)]
            for place, (variant, x) in enumerate(chosen.groupby("variant", sort=False)):
                look = {"marker": MARKERS[place], "ms": 3, "lw": 1, "color": COLOURS[place]}
                ax.errorbar(x["images"], x["mean"], yerr=x["sem"], label=variant, **look)
            ax.axhline(0, color=GREY, lw=0.8)
            ax.set_xscale("log", base=2)
            ax.set_xticks([1, 2, 4, 8, 16], ["1", "2-3", "4-7", "8-15", "16+"])
            ax.minorticks_off()
        line[0].set_ylabel(name)
    for ax, base in zip(panels[0], bases, strict=True):
        ax.set_title(f"{base}, τ = {ratio:g}")
    panels[-1][0].set_xlabel("training images of the class")
    panels[0][-1].legend(**BESIDE)
    drawn.suptitle("Classes against themselves in balanced training with as many images")
    return drawn, data


def classes(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each trained class of each run: the entries of `per_class` in result.json.

    Further columns: method, ratio, seed and dataset. Runs without such a record have no rows.
    """
    rows = []
    for _, run in frame[frame["part"] == "base"].drop_duplicates(["folder", "ratio"]).iterrows():
        record = read_result(Path(run["folder"]) / "base" / RESULT)
        head = {key: run[key] for key in ("method", "ratio", "seed", "dataset")}
        rows += [{**head, **x} for x in record.get("per_class", {}).get(SPLIT, [])]
    columns = ["method", "ratio", "seed", "dataset", "class", "train_count", *OF_CLASSES]
    return pd.DataFrame(rows, columns=columns)
