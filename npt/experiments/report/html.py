"""The page of a report: OUT/report/index.html, one file that needs nothing else.

Tables and figures are those of the Markdown report (`page.gather`); beside them are the course of
the trainings, the accuracy of single classes, and where each run was made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd

from npt.experiments import state
from npt.experiments.report import course
from npt.experiments.report.page import ALONE, Report, Section
from npt.experiments.report.table import MISSING, NAMES, Cell, Row, Table, fraction, signed
from npt.experiments.report.tables import NPT
from npt.pages import html
from npt.results import RESULT

NAME = "index.html"
SPLIT = "test"


def write(report: Report, folder: Path) -> Path:
    """Write the page into `folder`; returns it."""
    return html.write(
        folder / NAME,
        "npt.experiments.report",
        {"row": shown_row, "named": lambda x: NAMES.get(x, x)},
        report=report,
        sections=[_section(section) for section in report.sections],
        runs=list(_runs(report)),
    )


def _section(section: Section) -> dict[str, Any]:
    """What the template shows of a section: with the tables that others follow, also its runs."""
    frame, alone = section.frame, not section.tables or section.results.kind in ALONE
    drawn = () if alone else (course.draw(frame), course.draw_counts(frame))
    return {
        "section": section,
        "gains": list(_gains(section.tables)),
        "more": [drawing for drawing in drawn if drawing is not None],
        "classes": [] if alone else _classes(frame),
    }


# --------------------------------------------------------------------------- tables
def shown_row(row: Row) -> list[dict[str, Any]]:
    """What the template shows of the cells of a row."""
    return [_shown(cell) for cell in row.cells]


def _shown(cell: Cell) -> dict[str, Any]:
    """A cell: the number it is sorted by (None: last), its text, and smaller texts below it."""
    summary, below = cell.summary, []
    if cell.text:
        return {"value": _number(cell.text), "text": cell.text, "below": [], "missing": False}
    if not summary.runs:
        return {"value": None, "text": MISSING, "below": _quoted(cell), "missing": True}
    text = f"{summary.mean:.2f}"
    if cell.marked:
        below.append(f"{fraction(summary.runs, summary.expected)} runs")
    if summary.runs > 1:
        text += f" ± {summary.std:.2f}"
        below.append(f"95 %: {summary.low:.2f} to {summary.high:.2f}")
    return {"value": summary.mean, "text": text, "below": below + _quoted(cell), "missing": False}


def _quoted(cell: Cell) -> list[str]:
    """What is reported for a cell, and the difference to it."""
    if cell.quoted is None:
        return []
    difference = "" if isnan(cell.difference) else f" ({signed(cell.difference)})"
    return [f"{cell.quoted.label} {cell.quoted.value:.2f}{difference}"]


def _number(text: str) -> float | None:
    found = re.match(r"<?([-+]?\d+(?:\.\d+)?)", text.replace("\u2212", "-"))
    return float(found[1]) if found else None


def _gains(tables: Sequence[Table]) -> Iterator[dict[str, Any]]:
    """For each table of figures, those of each method with NPT minus those without."""
    for table in tables:
        blocks = []
        for block in table.blocks:
            of = {row.label: row for row in block.rows}
            rows = []
            for label, row in of.items():
                if label.endswith(NPT) and label.removesuffix(NPT) in of:
                    without = of[label.removesuffix(NPT)].cells
                    values = [_gain(*pair) for pair in zip(row.cells, without, strict=True)]
                    if not all(map(isnan, values)):
                        rows.append((f"{label} − {label.removesuffix(NPT)}", values))  # noqa: RUF001
            if rows:
                blocks.append((block.ratio, rows))
        if blocks:
            yield {"table": table, "blocks": blocks}


def _gain(npt: Cell, without: Cell) -> float:
    """The difference of two figures; NaN where one lacks seeds, which the other may have."""
    incomplete = npt.summary.incomplete or without.summary.incomplete
    return nan if incomplete else npt.summary.mean - without.summary.mean


# --------------------------------------------------------------------------- classes
def _classes(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The accuracies of single classes of each test, means over seeds, for the page's script.

    An entry for each data set, part and ratio: `classes`, `methods`, and for each class its
    training images and the accuracies by method; None where one is missing.
    """
    found = []
    keys = ["source", "part", "dataset", "ratio"]
    for key, rows in frame.groupby(keys, sort=False):
        source, part, dataset, ratio = key
        classes: list[str] = []
        counts: list[set[int | None]] = []
        accuracy: dict[str, list[float | None]] = {}
        for method, runs in rows.groupby("method", sort=False):
            records = [x for x in map(_per_class, dict.fromkeys(runs["record"].dropna())) if x]
            for record in records:
                names = [entry["class"] for entry in record]
                classes = classes or names
                counts = counts or [set() for _ in classes]
                if names != classes:
                    break  # of other classes
                for known, entry in zip(counts, record, strict=True):
                    known.add(entry.get("train_count"))
            else:
                if records:
                    columns = zip(*records, strict=True)
                    accuracy[str(method)] = [_mean(column) for column in columns]
        if accuracy:
            found.append(
                {
                    "title": _title(source, part, dataset, ratio),
                    "classes": classes,
                    "counts": _shared(counts),
                    "methods": accuracy,
                }
            )
    return found


def _per_class(record: str) -> list[dict[str, Any]]:
    return state.read_result(Path(record) / RESULT).get("per_class", {}).get(SPLIT, [])


def _mean(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean accuracy of one class over seeds."""
    known = [x["accuracy"] for x in entries if x.get("accuracy") is not None]
    return round(sum(known) / len(known), 1) if known else None


def _shared(counts: Sequence[set[int | None]]) -> list[int | None]:
    """The training images of each class where all runs that know them agree; [] if none does."""
    known = [values - {None} for values in counts]
    found = [next(iter(values)) if len(values) == 1 else None for values in known]
    return found if any(x is not None for x in found) else []


def _title(source: Any, part: Any, dataset: Any, ratio: float) -> str:
    names = [NAMES.get(str(x), str(x)) for x in dict.fromkeys([source, dataset])]
    words = f"{part} classes" if part in ("base", "new") else "test on all classes"
    return f"{' → '.join(names)}, {words}, τ = {ratio:g}"


# --------------------------------------------------------------------------- runs
def _runs(report: Report) -> Iterator[dict[str, Any]]:
    """Where each run was made, and its commands."""
    every = pd.concat([section.frame for section in report.sections]).dropna(subset=["record"])
    for _, rows in every.groupby("folder", sort=False):
        run, records = rows.iloc[0], dict.fromkeys(rows["record"])
        results = [state.read_result(Path(record) / RESULT) for record in records]
        first = next(filter(None, results), {})
        environment = first.get("environment") or {}
        commands = state.read_run(Path(run["record"]).parent).get("commands", {})
        yield {
            "name": _name(run),
            "done": sum(bool(result.get("results")) for result in results),
            "tests": len(records),
            "seconds": first.get("train_seconds"),
            "environment": {key: environment.get(key) for key in ("node", "gpu", "job", "commit")},
            "versions": ", ".join(f"{k} {v}" for k, v in first.get("versions", {}).items()),
            "commands": [commands[x] for x in (Path(r).name for r in records) if x in commands],
        }


def _name(run: Mapping[str, Any]) -> str:
    data = NAMES.get(run["source"], run["source"])
    return f"{data}, {run['method']}, τ = {run['ratio']:g}, seed {run['seed']}"
