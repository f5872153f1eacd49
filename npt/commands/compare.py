"""`npt compare RUN RUN...`: the figures of runs side by side, and of each class."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from npt import files, identity, results
from npt.errors import NPTError, report
from npt.flags import Parser

FIGURES = {  # heading -> entry of results.test, decimals; the first has an interval
    "accuracy": ("accuracy", 2),
    "class mean": ("class_mean_accuracy", 2),
    "many": ("many", 2),
    "medium": ("medium", 2),
    "few": ("few", 2),
    "worst class": ("worst_class", 2),
    "ECE": ("ece", 2),
    "LCD": ("lcd", 4),
    "MID": ("mid", 4),
}
CLASSES = 20  # of the table of classes, unless --all
DEVIATIONS = 1.959964  # of a normal distribution, for 95 %


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npt compare",
        description="The test figures of runs side by side, the settings in which they differ, "
        "and the accuracy of each class.",
        example="npt compare output/mine-maple output/mine-maple-npt",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run, or one of its result-....json")
    add("--all", action="store_true", help=f"every class, not only the {CLASSES} that differ most")
    return parser


def record_of(place: str) -> dict[str, Any]:
    """The record of a test, in a folder or a file. NPTError if there is none."""
    path = Path(place)
    record = files.read_record(path) if path.is_file() else results.of_run(path)
    results.check(record, place)
    if not (record.get("results") or {}).get("test"):
        raise NPTError(
            f"{place} has no test on record: run `npt test {place}`, or its command to the end"
        )
    return record


def half_width(accuracy: float, images: int) -> float:
    """Half of the 95 % interval of an accuracy in percent on that many images (Wilson, 1927)."""
    p, z2 = accuracy / 100, DEVIATIONS**2
    spread = math.sqrt(p * (1 - p) / images + z2 / (4 * images**2))
    return 100 * DEVIATIONS * spread / (1 + z2 / images)


def table_of_figures(records: Mapping[str, dict[str, Any]]) -> str:
    """A row for each run."""
    rows = []
    for name, record in records.items():
        test, images = record["results"]["test"], sum(x["images"] for x in _classes(record))
        cells = [_number(test.get(key), places) for key, places in FIGURES.values()]
        if images and test["accuracy"] is not None:
            cells[0] += f" ± {half_width(test['accuracy'], images):.2f}"
        rows.append([name, f"{images:,}" if images else "-", *cells])
    align = ["left", *["right"] * (1 + len(FIGURES))]
    headers = ["run", "images", *FIGURES]
    return tabulate(rows, headers=headers, colalign=align, disable_numparse=True)


def table_of_settings(records: Mapping[str, dict[str, Any]]) -> str:
    """The trainer, and the keys on which the configs differ; "" if there are none."""
    configs = [{"trainer": r["trainer"], **identity.flat(r["config"])} for r in records.values()]
    keys = sorted({key for config in configs for key in config} - identity.FREE - {"TRAINER.NAME"})
    rows = [[key, *(str(config.get(key, identity.UNSET)) for config in configs)] for key in keys]
    different = [row for row in rows if len(set(row[1:])) > 1]
    if not different:
        return ""
    return tabulate(different, headers=["setting", *records], disable_numparse=True)


def table_of_classes(records: Mapping[str, dict[str, Any]], most: int | None) -> str:
    """The accuracy of each class in percent, those first on which the runs differ most."""
    by_run = [_by_name(_classes(record)) for record in records.values()]
    rows = []
    for name, number in dict.fromkeys(key for entries in by_run for key in entries):
        found = [entries.get((name, number), {}) for entries in by_run]
        values = [entry["accuracy"] for entry in found if entry.get("accuracy") is not None]
        counts = {int(entry["train_count"]) for entry in found if entry.get("train_count")}
        shown = [_number(entry.get("accuracy"), 1) for entry in found]
        spread = max(values) - min(values) if values else 0.0
        rows.append((-spread, [name, "/".join(map(str, sorted(counts))) or "-", *shown]))
    rows.sort(key=lambda row: row[0])
    headers = ["class", "train images", *records]
    align = ["left", *["right"] * (len(headers) - 1)]
    cells = [row for _, row in rows[:most]]
    text = tabulate(cells, headers=headers, colalign=align, disable_numparse=True)
    left_out = len(rows) - len(cells)
    return f"{text}\n{left_out} more classes (--all)" if left_out else text


def _by_name(entries: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """(Class name, how often it came before) -> entry: two classes may have one name."""
    seen: Counter[str] = Counter()
    found = {}
    for entry in entries:
        found[entry["class"], seen[entry["class"]]] = entry
        seen[entry["class"]] += 1
    return found


def _classes(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return (record.get("per_class") or {}).get("test") or []


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def run(args: argparse.Namespace) -> None:
    records = {place: record_of(place) for place in args.runs}
    print(table_of_figures(records))
    print("\nIn percent but for LCD and MID; ±: half of the 95 % interval over the test images.")
    if len({record.get("data") for record in records.values()}) > 1:
        print(
            "The runs differ in training images, test images or the file of CLIP: the figures may "
            "not be of the same test images."
        )
    settings = table_of_settings(records)
    if settings:
        print(f"\n{settings}")
    print(f"\n{table_of_classes(records, None if args.all else CLASSES)}")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
