"""Tables in LaTeX, in the shape of the paper's: our figures, methods grouped by tau."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npt.experiments.report.table import Block, Cell, Table

MISSING = "--"
STAR = "$^{*}$"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": MISSING,  # noqa: RUF001
    "†": r"$^{\dagger}$",
    "<": "$<$",
    ">": "$>$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Text for LaTeX, in one line."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def render(table: Table) -> str:
    """A `table*` for the packages booktabs and graphicx."""
    by_ratio = any(block.ratio is not None for block in table.blocks)
    head = [
        *([r"$\tau$"] if by_ratio else []),
        escape(table.heading[:1].upper() + table.heading[1:]),
    ]
    head += [escape(column.short) for column in table.columns]
    align = "l" * (len(head) - len(table.columns)) + "r" * len(table.columns)
    lines = [r"\toprule", _line(head)]
    for block in table.blocks:
        lines += [r"\midrule", *(_line(cells) for cells in _rows(block, by_ratio))]
    marked = any(cell.marked for cell in table.all_cells())
    note = rf"\\[2pt] {{\footnotesize {STAR} from fewer runs than expected}}"
    return "\n".join(
        [
            r"% \usepackage{booktabs, graphicx}",
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{escape(_caption(table))}}}",
            rf"\label{{tab:{table.name.replace('_', '-')}}}",
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{align}}}",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            *([note] if marked else []),
            r"\end{table*}",
            "",
        ]
    )


def _caption(table: Table) -> str:
    sentences = [f"{table.title}."]
    sentences += [
        f"{column.short}: {column.heading}."
        for column in table.columns
        if column.short.lower() != column.heading.lower()
    ]
    sentences += [table.legend] if table.legend else []
    sentences += table.notes if any("±" in cell.text for cell in table.all_cells()) else ()
    if any(cell.summary.runs > 1 and not cell.text for cell in table.all_cells()):
        sentences.append("Mean and standard deviation over seeds.")
    return " ".join(sentences)


def _rows(block: Block, by_ratio: bool) -> Iterator[list[str]]:
    for number, row in enumerate(block.rows):
        ratio = [f"{block.ratio:g}" if number == 0 and block.ratio is not None else ""]
        yield [*(ratio if by_ratio else []), escape(row.heading), *map(_figure, row.cells)]


def _figure(cell: Cell) -> str:
    summary = cell.summary
    if cell.text:
        return escape(cell.text).replace("*", STAR)
    if not summary.runs:
        return MISSING
    text = f"{summary.mean:.2f}"
    if summary.runs > 1:
        text += rf"{{\scriptsize$\,\pm\,${summary.std:.2f}}}"
    return text + (STAR if cell.marked else "")


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
