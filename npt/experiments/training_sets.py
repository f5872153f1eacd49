"""What runs were trained on: the type of imbalance, as labels say it, and the images of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from npt.imbalance import TYPES, summary_of_counts

if TYPE_CHECKING:
    import pandas as pd  # which runs do not need

TYPE = "DATASET.IMBALANCE_TYPE"
PAPERS, NATURAL, BALANCED = "exp", "natural", "balanced_budget"  # values of TYPE
WORDS = {BALANCED: "same budget"}  # of other types than PAPERS; a type without has its own name
CONTROL = f" ({WORDS[BALANCED]})"  # the end of the label of a method's control
LEGEND = (
    f"{CONTROL.strip()}, a control: trained on as many images in all as at this tau, divided "
    "equally among the classes. What a method loses to its control is the price of imbalance; what "
    "the control loses to tau 1, that of fewer images. The paper has no such rows."
)
RANGE = "–"  # noqa: RUF001
# column -> entry of `summary_of_counts`
COLUMNS = {
    "largest_class": "largest",
    "smallest_class": "smallest",
    "classes_with_one_image": "singles",
    "trained_classes": "classes",
    "images": "images",
    "ratio_obtained": "ratio",
}


# --------------------------------------------------------------------------- the type of imbalance
def changes_nothing(kind: Any, ratio: float, train: bool) -> bool:
    """Whether a run is the same with any type: it is not trained, or on the balanced images."""
    return not train or (ratio == 1 and kind != NATURAL)


def type_of(config: Mapping[str, Any], ratio: float, train: bool) -> str:
    """The type of imbalance of a run with this flat config; PAPERS where it changes nothing."""
    kind = config.get(TYPE) or PAPERS  # earlier versions had no such key
    return PAPERS if changes_nothing(kind, ratio, train) else str(kind)


def labelled(label: str, kind: str) -> str:
    """The label, with the type of imbalance if it is not that of the paper."""
    word = WORDS.get(kind, kind)
    return label if kind == PAPERS or word in label else f"{label} ({word})"


def split_label(label: str) -> tuple[str, str]:
    """A label without the type of imbalance at its end, and that end ("" if there is none)."""
    ends = (f" ({WORDS.get(kind, kind)})" for kind in TYPES if kind != PAPERS)
    end = next((end for end in ends if label.endswith(end)), "")
    return label.removesuffix(end), end


# --------------------------------------------------------------------------- the images there were
def columns_of(counts: Sequence[int] | None) -> dict[str, float]:
    """The real size of a training set as columns; none if its counts are not known."""
    if not counts:
        return {}
    found = summary_of_counts(counts)
    return {column: found[key] for column, key in COLUMNS.items()}


def span(values: pd.Series) -> str:
    """The smallest and the largest value as text, one number if they are equal."""
    ends = (f"{x:.4g}" if x % 1 else f"{x:.0f}" for x in (values.min(), values.max()))
    return RANGE.join(dict.fromkeys(ends))


def in_words(rows: pd.DataFrame) -> str:
    """The real size of the training sets of some runs, for each type of imbalance among them.

    rows: with the columns COLUMNS and imbalance_type; "" if none of them has counts
    """
    if not set(COLUMNS) <= set(rows):
        return ""
    known = rows.dropna(subset=list(COLUMNS))
    texts = []
    for kind, group in known.groupby("imbalance_type", sort=False):
        x = {column: span(group[column]) for column in COLUMNS}
        texts.append(
            ("" if kind == PAPERS else f"{WORDS.get(kind, kind)}: ")
            + f"{x['largest_class']} to {x['smallest_class']} images a class, "
            f"{x['classes_with_one_image']} of {x['trained_classes']} classes with one, ratio "
            f"obtained {x['ratio_obtained']}"
        )
    return "; ".join(texts)
