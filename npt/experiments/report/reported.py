"""What the paper and others report, and what does not agree in the paper's figures.

The figures are in configs/experiments/paper/numbers: tables.yaml has the paper's tables,
published.yaml the baselines' own figures at tau 1 and a secondary source. Tables are named as
there: table1 (base-to-new harmonic means), table2 (cross-dataset), table3 (ablation) and table4
(domain generalisation); `base` and `new` are the two accuracies behind table1. All figures are
accuracies in percent. In table2 and table4 the first column is the source of the training, which
averages leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from npt.config import find_config
from npt.experiments.tables import AVERAGE, harmonic_mean
from npt.yaml_file import read_yaml

FOLDER = "configs/experiments/paper/numbers"
MEAN_OF_HMS = "mean of the harmonic means"
HM_OF_AVERAGES = "harmonic mean of the averages"
ZERO_SHOT = "CLIP"
NAMES = {"CLIP (zero-shot)": ZERO_SHOT}  # labels of ours -> the paper's
BALANCED = 1.0
TOLERANCE = 0.015  # more than the rounding of the figures and of their average can add up to
TASKS = {"base_to_new": "table1", "cross_dataset": "table2", "domain_generalisation": "table4"}
TRANSFERS = ("table2", "table4")
# table -> section of published.yaml, and the table's figure from what is there
PUBLISHED: dict[str, tuple[str, Callable[[Any], float]]] = {
    "base": ("base_to_new", lambda pair: pair[0]),
    "new": ("base_to_new", lambda pair: pair[1]),
    "table1": ("base_to_new", lambda pair: harmonic_mean(*pair)),
    "table2": ("cross_dataset", float),
    "table4": ("domain_generalisation", float),
}
Cells = Mapping[str, float]  # column -> figure


@dataclass(frozen=True)
class Quoted:
    """A reported figure. `label` names its line in a table, `notes` are footnotes to it."""

    value: float
    label: str  # paper, published, secondary source
    source: str  # where it is reported, or what it is computed from
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Disagreement:
    """A figure that the paper prints, what other figures of the paper give for it, a sentence."""

    table: str
    ratio: float
    method: str
    column: str
    printed: float
    recomputed: float
    sentence: str

    @property
    def place(self) -> tuple[str, float, str, str]:
        return self.table, self.ratio, self.method, self.column


@dataclass(frozen=True)
class Reported:
    """The reported figures; `load_reported` reads them.

    tables: of the paper, table -> (ratio, method) -> its cells
    published: section of published.yaml -> method -> data set -> accuracy, or (base, new)
    secondary: (ratio, method) -> average harmonic mean and who says so
    """

    tables: Mapping[str, Mapping[tuple[float, str], Cells]]
    published: Mapping[str, Mapping[str, Mapping[str, Any]]]
    secondary: Mapping[tuple[float, str], tuple[float, str]]

    def cell(self, table: str, ratio: float, method: str, column: str) -> float | None:
        """The figure that the paper prints; None where it prints none."""
        return self._paper_row(table, ratio, _name(method)).get(column)

    def baseline(self, table: str, method: str, dataset: str) -> float | None:
        """A baseline's published figure at tau 1 for a table in PUBLISHED, or None."""
        return self._published_row(table, _name(method)).get(dataset)

    def columns(self, table: str) -> list[str]:
        """The columns of a table of the paper, without the average."""
        return [key for key in next(iter(self.tables[table].values())) if key != AVERAGE]

    def published_rows(self) -> dict[str, int]:
        """The methods whose row at tau 1 in Table 1 is published, and how many cells that are."""
        found = {}
        for method in self.published["base_to_new"]:
            row = self._paper_row("table1", BALANCED, method)
            pairs = [(row[x], y) for x, y in self._published_row("table1", method).items() if row]
            if pairs and all(abs(a - b) <= TOLERANCE for a, b in pairs):
                found[method] = len(pairs)
        return found

    def quotes(
        self, table: str, ratio: float, method: str, columns: Sequence[str]
    ) -> dict[str, Quoted]:
        """What is reported for a row of a table with these columns, averages included.

        An average is the printed one if the columns are those of the paper, or else the average of
        the reported figures in the columns, if all of them are reported. Zero-shot figures do not
        depend on tau, and are those at tau 1 for every ratio. In transfers, nothing is reported for
        another source than the paper's.
        """
        name = _name(method)
        row, label, source = self._row(table, ratio, name)
        if table in TRANSFERS and self.columns(table)[0] != columns[0]:
            return {}
        found = {
            column: Quoted(row[column], label, source, self._notes(table, ratio, name, column))
            for column in columns
            if column in row
        }
        key = MEAN_OF_HMS if table == "table1" else AVERAGE
        averaged = columns[table in TRANSFERS :]
        if AVERAGE in row and set(averaged) == set(self._averaged(table)):
            notes = self._notes(table, ratio, name, AVERAGE)
            found[key] = Quoted(row[AVERAGE], label, source, notes)
        elif averaged and table != "table3" and set(averaged) <= set(row):
            mean = fmean(row[column] for column in averaged)
            found[key] = Quoted(mean, label, f"{source}, averaged over the columns")
        if table == "table1":
            found |= self._other_averages(ratio, name, columns, MEAN_OF_HMS in found)
        return found

    def _other_averages(
        self, ratio: float, name: str, columns: Sequence[str], printed: bool
    ) -> dict[str, Quoted]:
        """Of Table 1: what the paper does not print."""
        found = {}
        base, new = (self._published_row(part, name) for part in ("base", "new"))
        if _at(ratio, name) == BALANCED and columns and set(columns) <= set(base):
            value = harmonic_mean(*(fmean(row[x] for x in columns) for row in (base, new)))
            words = "published base and new accuracies, averaged over the columns"
            note = f"From the {words}; the paper does not print this average."
            found[HM_OF_AVERAGES] = Quoted(value, "published", words, (note,))
        second = self.secondary.get((ratio, name))
        if not printed and second is not None and set(columns) == set(self.columns("table1")):
            value, source = second
            note = f"As reported by {source}: a secondary source, not the NPT paper."
            words = f"secondary source: {source}"
            found[MEAN_OF_HMS] = Quoted(value, "secondary source", words, (note,))
        return found

    def _row(self, table: str, ratio: float, name: str) -> tuple[Cells, str, str]:
        """The reported figures of a row (empty if there are none), their label and source."""
        at = _at(ratio, name)
        row = self._paper_row(table, at, name)
        if row:
            where = f"paper, {_title(table)}"
            return row, "paper", where if at == ratio else f"{where} at tau {at:g}"
        if at == BALANCED:
            return self._published_row(table, name), "published", "published baselines at tau 1"
        return {}, "", ""

    def _paper_row(self, table: str, ratio: float, name: str) -> Cells:
        return self.tables.get(table, {}).get((ratio, name), {})

    def _published_row(self, table: str, name: str) -> Cells:
        section, figure = PUBLISHED.get(table, ("", float))
        row = self.published.get(section, {}).get(name, {})
        return {dataset: figure(value) for dataset, value in row.items()}

    def _averaged(self, table: str) -> list[str]:
        """The columns that a table's average should be of."""
        return self.columns(table)[table in TRANSFERS :]

    def _notes(self, *place: Any) -> tuple[str, ...]:
        return tuple(x.sentence for x in self._disagreements if x.place == place)

    # ----------------------------------------------------------------- what does not agree
    def disagreements(self) -> tuple[Disagreement, ...]:
        """Every printed figure that is not what other figures of the paper give for it."""
        return self._disagreements

    @cached_property
    def _disagreements(self) -> tuple[Disagreement, ...]:
        found = (*self._averages(), *self._ablation(), *self._sources())
        return tuple(x for x in found if abs(x.printed - x.recomputed) > TOLERANCE)

    def _recomputed(self, table: str, row: Cells) -> float:
        return fmean(row[column] for column in self._averaged(table))

    def _averages(self) -> Iterator[Disagreement]:
        """Printed averages against the figures in their row."""
        for table in TASKS.values():
            columns, number = self.columns(table), len(self._averaged(table))
            for (ratio, method), row in self.tables[table].items():
                printed, recomputed = row[AVERAGE], self._recomputed(table, row)
                sentence = (
                    f"{_title(table)} prints the average {printed:.2f} for {method} at tau "
                    f"{ratio:g}, but its {number} {_kind(table)} average {recomputed:.2f}"
                )
                every = fmean(row[column] for column in columns)
                if abs(every - printed) < abs(recomputed - printed):
                    sentence += f"; all {len(columns)} columns, source included, {every:.2f}"
                place = (table, ratio, method, AVERAGE)
                yield Disagreement(*place, printed, recomputed, f"{sentence}.")

    def _ablation(self) -> Iterator[Disagreement]:
        """Table 3 against the tables of its three tasks."""
        for (ratio, method), cells in self.tables["table3"].items():
            for task, printed in cells.items():
                table = TASKS[task]
                row = self._paper_row(table, ratio, method)
                if not row:
                    continue
                recomputed = self._recomputed(table, row)
                sentence = (
                    f"Table 3 prints {printed:.2f} for {method} at tau {ratio:g}, but the "
                    f"{len(self._averaged(table))} {_kind(table)} in {_title(table)} average "
                    f"{recomputed:.2f}."
                )
                yield Disagreement("table3", ratio, method, task, printed, recomputed, sentence)

    def _sources(self) -> Iterator[Disagreement]:
        """The accuracy on the source of one training, in the two tables that have it."""
        one, other = TRANSFERS
        source = self.columns(one)[0]
        for (ratio, method), row in self.tables[one].items():
            second = self.cell(other, ratio, method, source)
            if second is None:
                continue
            sentence = (
                f"For {method} at tau {ratio:g}, {_title(one)} prints {row[source]:.2f} on "
                f"{source} and {_title(other)} {second:.2f}, although both test one training."
            )
            for table, printed, recomputed in (
                (one, row[source], second),
                (other, second, row[source]),
            ):
                yield Disagreement(table, ratio, method, source, printed, recomputed, sentence)


def load_reported() -> Reported:
    """Read the figures from configs/experiments/paper/numbers."""
    printed, other = (
        read_yaml(find_config(f"{FOLDER}/{name}.yaml"), "reported figures")
        for name in ("tables", "published")
    )
    tables = {
        table: {(row["tau"], row["method"]): _without(row, ("tau", "method")) for row in x["rows"]}
        for table, x in printed.items()
    }
    second = other.pop("secondary")
    averages = {
        (ratio, second["names"].get(method, method)): (
            value,
            f"{second['source']} at tau {row['tau']:g}",
        )
        for row in second["rows"]
        for ratio in row["ratios"]
        for method, value in _without(row, ("tau", "ratios")).items()
    }
    return Reported(tables, other, averages)


def _without(row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _name(method: str) -> str:
    return NAMES.get(method, method)


def _at(ratio: float, name: str) -> float:
    """The ratio whose figures a row has; zero-shot figures are the same at every ratio."""
    return BALANCED if name == ZERO_SHOT else ratio


def _kind(table: str) -> str:
    return "targets" if table in TRANSFERS else "data sets"


def _title(table: str) -> str:
    """`table1` -> `Table 1`."""
    return f"Table {table.removeprefix('table')}"
