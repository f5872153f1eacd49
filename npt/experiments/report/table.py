"""A table of a report: its figures, and how they are written in Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from tabulate import tabulate

from npt.experiments.report import latex
from npt.experiments.report.reported import Quoted
from npt.experiments.report.statistics import Summary
from npt.experiments.training_sets import CONTROL, LEGEND

NAMES = {  # as tables show them; any other name is shown as it is
    "imagenet": "ImageNet",
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "Flowers102",
    "food101": "Food101",
    "fgvc_aircraft": "FGVC Aircraft",
    "sun397": "SUN397",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
    "imagenetv2": "ImageNetV2",
    "imagenet_sketch": "ImageNet-Sketch",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
    "base_to_new": "Base-to-new",
    "cross_dataset": "Cross-dataset",
    "domain_generalisation": "Domain generalisation",
}
STAR = "*"
MISSING = "–"  # noqa: RUF001
OURS, INTERVAL, DIFFERENCE = "ours", "95 %", "difference"
NOTHING = Summary()
CSV = ["table", "ratio", "method", "column", "mean", "std", "ci95_low", "ci95_high", "runs"]
CSV += ["expected", "reported", "difference", "source", "text"]


@dataclass(frozen=True)
class Column:
    key: str  # in the CSV file
    heading: str
    short: str  # its heading in LaTeX


@dataclass(frozen=True)
class Cell:
    """A figure, and what is reported for it. `text` is shown instead of the figure if given."""

    summary: Summary = NOTHING
    quoted: Quoted | None = None
    text: str = ""

    @property
    def marked(self) -> bool:
        """Whether it is shown with a mark, as a figure of fewer runs than expected."""
        return self.summary.incomplete and (not self.text or STAR in self.text)

    @property
    def difference(self) -> float:
        """Ours minus the reported figure; NaN where there is one of them only."""
        return self.summary.mean - self.quoted.value if self.quoted else math.nan


@dataclass(frozen=True)
class Row:
    label: str  # a method or a data set
    cells: tuple[Cell, ...]  # one for each column of the table

    @property
    def heading(self) -> str:
        name = re.split(r", | \(", self.label, maxsplit=1)[0]
        return NAMES.get(name, name) + self.label[len(name) :]

    @property
    def line(self) -> str:
        """What the line of reported figures is called; "" if there are none."""
        return next((cell.quoted.label for cell in self.cells if cell.quoted), "")


@dataclass(frozen=True)
class Block:
    """The rows of one ratio (None: of no ratio), and what is to be said of them."""

    ratio: float | None
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def at(self) -> float:
        """The ratio; NaN if there is none."""
        return math.nan if self.ratio is None else self.ratio


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    heading: str  # of the labels of the rows
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()

    def all_cells(self) -> Iterator[Cell]:
        for block in self.blocks:
            for row in block.rows:
                yield from row.cells

    @property
    def legend(self) -> str:
        """What the rows of controls are; "" if there are none."""
        return LEGEND if any(CONTROL in row.label for x in self.blocks for row in x.rows) else ""

    def markdown(self) -> str:
        """The table as text with a heading, a table for each block, and footnotes."""
        return _markdown(self)

    def latex(self) -> str:
        """A `table*` of our figures, for the packages booktabs and graphicx."""
        return latex.render(self)

    def cells(self) -> pd.DataFrame:
        """A row for each cell in full precision, with the columns CSV.

        `source` says where the reported figure is from; `text` is what a cell shows that is not
        shown as a figure with its spread.
        """
        rows = [
            (
                *(self.name, block.at, row.label, column.key),
                *(cell.summary.mean, cell.summary.std, cell.summary.low, cell.summary.high),
                *(cell.summary.runs, cell.summary.expected),
                cell.quoted.value if cell.quoted else math.nan,
                cell.difference,
                cell.quoted.source if cell.quoted else "",
                cell.text,
            )
            for block in self.blocks
            for row in block.rows
            for column, cell in zip(self.columns, row.cells, strict=True)
        ]
        return pd.DataFrame(rows, columns=CSV)


# --------------------------------------------------------------------------- Markdown
def _markdown(table: Table) -> str:
    compared = any(
        row.line or any(cell.summary.runs > 1 and not cell.text for cell in row.cells)
        for block in table.blocks
        for row in block.rows
    )
    marks: dict[str, str] = {}  # footnote -> its mark
    shown = [0, *([1] if compared else []), *range(2, len(table.columns) + 2)]
    head = [table.heading, "", *(column.heading for column in table.columns)]
    parts = [f"### {table.title}"]
    for block in table.blocks:
        lines = [line for row in block.rows for line in _lines(row, marks)]
        text = tabulate(
            [[_escaped(line[place]) for place in shown] for line in lines],
            [_escaped(head[place]) for place in shown],
            tablefmt="pipe",  # "github" that also aligns columns where it is rendered
            colalign=["left" if place < 2 else "right" for place in shown],
            disable_numparse=True,
        )
        parts += [] if block.ratio is None else [f"**tau {block.ratio:g}**"]
        parts += [text, *block.notes]
    parts += [*table.notes, *_explanations(table)]
    parts += [f"[{mark}] {note}" for note, mark in marks.items()]
    return "\n\n".join(parts) + "\n"


def _lines(row: Row, marks: dict[str, str]) -> Iterator[list[str]]:
    """The lines of a row: ours with its interval, what is reported, and the differences to it."""
    yield [row.heading, OURS if row.line else "", *(_figure(cell) for cell in row.cells)]
    if any(cell.summary.runs > 1 and not cell.text for cell in row.cells):
        yield ["", INTERVAL, *(_half_width(cell) for cell in row.cells)]
    if row.line:
        yield ["", row.line, *(_reported(cell, marks) for cell in row.cells)]
        yield ["", DIFFERENCE, *(signed(cell.difference, "") for cell in row.cells)]


def _figure(cell: Cell) -> str:
    summary = cell.summary
    if cell.text:
        return cell.text
    if not summary.runs:
        return MISSING + _what_is_there(summary)
    text = f"{summary.mean:.2f}"
    if summary.runs > 1:
        text += f" ± {summary.std:.2f}"
    return f"{text}{STAR} {fraction(summary.runs, summary.expected)}" if cell.marked else text


def _half_width(cell: Cell) -> str:
    half = (cell.summary.high - cell.summary.low) / 2
    return "" if cell.text or math.isnan(half) else f"± {half:.2f}"


def _what_is_there(summary: Summary) -> str:
    """Why an average is missing."""
    if summary.all_datasets < 2:
        return ""
    if summary.datasets < summary.all_datasets:
        return f" ({fraction(summary.datasets, summary.all_datasets)})"
    return f" ({fraction(summary.runs, summary.expected)} seeds)"


def _reported(cell: Cell, marks: dict[str, str]) -> str:
    if cell.quoted is None:
        return ""
    for note in cell.quoted.notes:
        marks.setdefault(note, _letters(len(marks)))
    return f"{cell.quoted.value:.2f}" + "".join(f" [{marks[note]}]" for note in cell.quoted.notes)


def _explanations(table: Table) -> list[str]:
    """What the marks at our figures mean, for those that occur."""
    marked = [cell for cell in table.all_cells() if cell.marked]
    figures = [cell.summary for cell in table.all_cells() if not cell.text]
    averages = [x for x in figures if not x.runs and x.all_datasets > 1]
    found = [table.legend] if table.legend else []
    if any(x.runs > 1 for x in figures):
        seeds = max(x.expected for x in figures)
        found.append(
            f"±: population standard deviation over {seeds} seeds; in the lines {INTERVAL}, half "
            "of the t interval of the mean."
        )
    if marked:
        found.append(f"\\{STAR} from fewer runs than expected; n/m: n of m are there.")
    if any(cell.summary.all_datasets > 1 for cell in marked):
        found.append("An average is of the seeds that have a figure for every data set.")
    if any(x.datasets < x.all_datasets for x in averages):
        found.append(f"{MISSING} (n/m): no average, since n of m data sets have a figure.")
    if any(x.datasets == x.all_datasets for x in averages):
        found.append(f"{MISSING} (0/m seeds): no average, since no seed has every data set.")
    return found


def _letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    above, place = divmod(number, 26)
    return (_letters(above - 1) if above else "") + chr(ord("a") + place)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def fraction(number: int, total: int) -> str:
    return f"{number}/{total}"


def signed(value: float, missing: str = MISSING) -> str:
    if math.isnan(value):
        return missing
    text = f"{value:+.2f}"
    return text if float(text) else "0.00"
