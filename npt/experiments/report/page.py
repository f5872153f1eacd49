"""The report of an output folder: OUT/report/README.md, and beside it each table and figure.

A table has a LaTeX and a CSV file, a figure PNG, PDF and CSV. Numbers come from the records of the
runs alone, so the same runs in two places give the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from npt.datasets.catalog import CATALOG
from npt.errors import NPTError
from npt.experiments import state
from npt.experiments.found import BASE_TO_NEW, TRANSFER, frames_found
from npt.experiments.frame import frame_of
from npt.experiments.plan import merge
from npt.experiments.report import figures, long_tail, tables
from npt.experiments.report.reported import Reported, load_reported
from npt.experiments.report.table import Table
from npt.experiments.reproduce import PAPER_SUITE, asked
from npt.experiments.running.console import PROBLEMS
from npt.experiments.training_sets import PAPERS, TYPE
from npt.files import atomic_write, read_record, remove_leftovers
from npt.identity import FREE
from npt.results import RESULT

FOLDER = "report"
PAGE = "README.md"
Frames = Mapping[str, pd.DataFrame]  # of the parts of an experiment, by name


def _one(frames: Frames) -> pd.DataFrame:
    """The frame of an experiment with one part, or of all its parts."""
    whole = pd.concat(list(frames.values()), ignore_index=True)
    return whole.drop_duplicates(["method", "ratio", "seed", "source", "part"])


def _of_one(*makes: Callable[..., Table]) -> Callable[..., list[Table]]:
    return lambda frames, reported: [make(_one(frames), reported) for make in makes]


# How results are shown: tables, and figures by the end of their files' names.
TABLES: dict[str, Callable[[Frames, Reported | None], list[Table]]] = {
    "base_to_new": _of_one(tables.base_to_new),
    "base_and_new": _of_one(*(partial(tables.appendix, figure=x) for x in tables.APPENDIX)),
    "cross_dataset": _of_one(partial(tables.transfer, name="table2")),
    "domain_generalisation": _of_one(partial(tables.transfer, name="table4")),
    "ablation": lambda frames, reported: [tables.ablation(frames, reported)],
    "long_tail": lambda frames, reported: long_tail.tables_of(_one(frames)),
}
FIGURES: dict[str, dict[str, Callable[[Frames], figures.Drawn]]] = {
    "fig1": {"": lambda frames: figures.fig1(_one(frames))},
    "fig2": {"": lambda frames: figures.fig2(_one(frames))},
    "fig4": {"": lambda frames: figures.fig4(_one(frames))},
    "fig5": {"": figures.fig5},
    "long_tail": {
        "": lambda frames: long_tail.draw_differences(_one(frames)),
        "_classes": lambda frames: long_tail.draw_classes(_one(frames)),
    },
}
ALONE = (
    "base_and_new",
    "ablation",
    "long_tail",
)  # their comparisons are with those of other tables


@dataclass(frozen=True)
class Results:
    """The results behind one table or figure."""

    name: str  # of its files
    title: str
    kind: str  # in TABLES or FIGURES
    suite: str
    frames: Frames
    opts: Mapping[str, str] = field(default_factory=dict)  # KEY VALUE pairs of the command line

    @property
    def type(self) -> str:
        """The type of imbalance of all runs; the paper's figures are of PAPERS."""
        return self.opts.get(TYPE, PAPERS)

    @property
    def accuracies(self) -> pd.Series:
        return pd.concat([frame["accuracy"] for frame in self.frames.values()])


@dataclass(frozen=True)
class Drawing:
    """A figure with its data, or why it is not drawn."""

    name: str  # of its files
    title: str
    figure: Figure | None = None
    data: pd.DataFrame | None = None
    problem: str = ""
    note: str = ""  # what it leaves out


@dataclass(frozen=True)
class Section:
    """What is shown of some results."""

    results: Results
    changed: str  # what was given for every run on the command line; ""
    drawings: tuple[Drawing, ...]
    tables: tuple[Table, ...]

    @property
    def frame(self) -> pd.DataFrame:
        return _one(self.results.frames)

    def stem(self, table: Table) -> str:
        """The name of a table's files."""
        name = self.results.name
        own = table.name.startswith(("table", name))
        return table.name if own else f"{name}_{table.name}"


@dataclass(frozen=True)
class Report:
    """All that a report says, however it is written."""

    versions: str
    missing: tuple[str, ...]  # sentences
    sections: tuple[Section, ...]
    disagreements: tuple[str, ...]  # of the paper's figures


def gather(out: str | Path) -> Report:
    """The report of what `reproduce` was asked for in `out`.

    If it was asked for nothing there, the report is of all the runs that are found. NPTError if
    there are none.
    """
    out = Path(out)
    results = _asked(out) or _found(out)
    reported = load_reported()
    of_paper = any(x.suite == PAPER_SUITE for x in results)
    found = dict.fromkeys(x.sentence for x in reported.disagreements()) if of_paper else ()
    sections = tuple(_section(x, reported) for x in results)
    return Report(_versions(out), tuple(_missing(results, out)), sections, tuple(found))


def write(out: str | Path, report: Report | None = None) -> Path:
    """Write the pages and files of `gather`; returns the page in Markdown."""
    report = report or gather(out)
    folder = Path(out) / FOLDER
    remove_leftovers(folder)
    parts = [
        "# Results",
        "Accuracies in percent. The CSV file of a table has its numbers in full precision, with "
        "deviation, 95 % interval and number of runs.",
        *filter(None, [report.versions]),
        *_headed("## What is missing", report.missing),
    ]
    for section in report.sections:
        shown = [_written(x, folder) for x in section.drawings]
        shown += [_table(x, section.stem(x), folder) for x in section.tables]
        parts += [f"## {section.results.title}", *filter(None, [section.changed])]
        parts += ["\n".join(shown).strip()]
    parts += _headed("## What does not agree in the paper's own figures", report.disagreements)
    with atomic_write(folder / PAGE) as file:
        file.write("\n\n".join(parts) + "\n")
    return folder / PAGE


def _headed(heading: str, sentences: Sequence[str]) -> list[str]:
    return [heading, "\n".join(f"- {x}" for x in sentences)] if sentences else []


# --------------------------------------------------------------------------- results
def _asked(out: Path) -> list[Results]:
    """What `reproduce` was asked for. Damaged records of its runs are named on stderr."""
    requests = asked(out)
    for run in merge(run for x in requests for run in x.experiment.runs(out)):
        state.warn(run.folder, state.read_run(run.folder), [e.name for e in run.evaluations])
    return [
        Results(
            *(x.experiment.name, x.experiment.title, x.experiment.report, x.suite),
            {name: frame_of(part, out) for name, part in x.experiment.parts.items()},
            {key: value for key, value in x.selection.opts.items() if key not in FREE},
        )
        for x in requests
    ]


def _found(out: Path) -> list[Results]:
    """What there is of runs that no experiment has asked for."""
    frames = frames_found(out)
    if not frames:
        raise NPTError(f"the runs in {out} have no results on test images: test them first")
    names = {
        BASE_TO_NEW: ("base_to_new", "Base-to-new generalisation"),
        TRANSFER: ("transfer", "Tests on all classes, of the training data set and of others"),
    }
    papers = {row.config for row in CATALOG.values()}
    return [
        Results(*names[kind], kind, PAPER_SUITE if papers & {*x["dataset"]} else "", {"": x})
        for kind, x in frames.items()
    ]


# --------------------------------------------------------------------------- tables, figures
def _section(results: Results, reported: Reported | None) -> Section:
    kind, frames = results.kind, results.frames
    if kind not in TABLES and kind not in FIGURES:
        known = ", ".join(dict.fromkeys((*TABLES, *FIGURES)))
        raise NPTError(f"{results.name} has the report {kind!r}, but there are {known}")
    drawn = [
        _drawing(results, f"{results.name}{end}", draw)
        for end, draw in FIGURES.get(kind, {}).items()
    ]
    made: list[Table] = []
    if kind in TABLES:
        of_paper = reported if results.suite == PAPER_SUITE and results.type == PAPERS else None
        made = [*TABLES[kind](frames, of_paper), *_beside(kind, _one(frames), of_paper)]
    if results.type != PAPERS:
        made = [replace(x, title=f"{x.title}, imbalance of type {results.type}") for x in made]
    return Section(results, _changed(results), tuple(drawn), tuple(made))


def _beside(kind: str, frame: pd.DataFrame, reported: Reported | None) -> Iterator[Table]:
    """The tables that follow those of accuracies."""
    makes = [tables.train_counts]
    if kind not in ALONE:
        makes = [tables.pairs, tables.imbalance, *makes]
        makes += [tables.settings] if reported and frame["setting"].any() else []
    for make in makes:
        table = make(frame, reported)
        if any(block.rows for block in table.blocks) or table.name == "pairs":
            yield table


def _table(table: Table, stem: str, folder: Path) -> str:
    with atomic_write(folder / f"{stem}.tex") as file:
        file.write(table.latex())
    with atomic_write(folder / f"{stem}.csv") as file:
        table.cells().to_csv(file, index=False)
    return table.markdown()


def _changed(results: Results) -> str:
    """What was given for every run on the command line; "" if nothing."""
    words = ", ".join(f"`{key} {value}`" for key, value in results.opts.items())
    return f"Every run with {words}, which is not in the configs of this table." if words else ""


def _drawing(results: Results, name: str, draw: Callable[[Frames], figures.Drawn]) -> Drawing:
    try:
        return Drawing(name, results.title, *draw(results.frames))
    except NPTError as error:
        return Drawing(name, results.title, problem=str(error))


def _written(drawing: Drawing, folder: Path) -> str:
    if drawing.figure is None or drawing.data is None:
        return f"Not drawn: {drawing.problem}\n"
    figures.save(drawing.figure, drawing.data, folder, drawing.name)
    return f"![{drawing.title}]({drawing.name}.png)\n"


# --------------------------------------------------------------------------- about the runs
def _versions(out: Path) -> str:
    """What the results were computed with, by the first record there is."""
    path = next(iter(sorted(out.rglob(RESULT))), None)
    versions = state.read_result(path).get("versions", {}) if path else {}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _missing(results: Sequence[Results], out: Path) -> list[str]:
    lines = [
        f"{x.title}: {x.accuracies.isna().sum()} of {len(x.accuracies)} evaluations are missing"
        for x in results
        if x.accuracies.isna().any()
    ]
    if not lines:
        return []
    with suppress(NPTError):  # there is no such file, or it is damaged
        lines += [f"{name}: {words}" for name, words in read_record(out / PROBLEMS).items()]
    return lines
