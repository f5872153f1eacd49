"""The page of a run as one HTML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from npt.commands.compare import half_width
from npt.identity import flat
from npt.pages import html
from npt.results import RESULT
from npt.view import confusions, figures, names, settings
from npt.view.gather import View
from npt.view.thumbnails import thumbnails

NAME = "view.html"
MOST_PICTURES = 24  # of mistakes, and of hits; so a page stays below 3 MB
FIGURES = {  # of a test -> its words, its unit, digits
    "class_mean_accuracy": ("mean over classes", " %", 2),
    "many": ("classes with many images", " %", 2),
    "medium": ("classes with a medium number", " %", 2),
    "few": ("classes with few images", " %", 2),
    "worst_class": ("worst class", " %", 2),
    "ece": ("calibration error (ECE)", " %", 2),
    "ece_scaled": ("ECE at the temperature", " %", 2),
    "lcd_abs": ("LCD", "", 4),
    "mid_abs": ("MID", "", 4),
    "nc1": ("NC1", "", 3),
    "nc2": ("NC2", "", 3),
    "nc3": ("NC3", "", 3),
}


def write(view: View, path: Path) -> Path:
    """Write the page; returns its path."""
    record, per_class = view.record, view.per_class
    pictures: dict[str, list[dict[str, Any]]] = {}
    upright = bool(flat(record.get("config") or {}).get("INPUT.EXIF_ROTATE"))
    if view.tested is not None:
        for kind in ("mistakes", "uncertain"):
            chosen = getattr(view.tested, kind)(MOST_PICTURES)
            pictures[kind] = thumbnails(view.tested, view.names, chosen, upright)
    temperature = view.figures.get("temperature") or 1.0
    pairs = view.confusion
    made = datetime.fromtimestamp((view.folder / RESULT).stat().st_mtime)
    return html.write(
        path,
        "npt.view",
        {"number": number, "breakable": breakable},
        view=view,
        name=names.text(view.folder.resolve().name),
        cards=list(_cards(view)),
        classes=_classes(view, pairs),
        by_images=figures.by_training_images(per_class),
        matrix=confusions.matrix(pairs, per_class) if pairs else None,
        confused=confusions.confused(pairs, per_class),
        pictures=pictures,
        temperature=temperature,
        features=list(figures.features(view)),
        cosines=figures.cosines(view.texts),
        course=list(figures.course(record.get("course") or [])),
        calibration=list(figures.calibration(view, temperature)),
        command=settings.command(view.folder),
        changed=settings.changed(record.get("config") or {}),
        whole=settings.whole(record.get("config") or {}),
        made=f"{made:%Y-%m-%d %H:%M}",
    )


def number(value: Any, digits: int = 2, unit: str = "") -> str:
    """A number, or a dash where there is none."""
    return f"{value:.{digits}f}{unit}" if isinstance(value, (int, float)) else "–"  # noqa: RUF001


def breakable(name: str) -> Markup:
    """A name of many parts that may be broken between them."""
    return Markup(re.sub(r"([._/]+)", r"\1<wbr>", str(escape(name))))


def _cards(view: View) -> Iterator[tuple[str, str]]:
    """The figures of the test with their words."""
    found = view.figures
    accuracy, images = found.get("accuracy"), sum(x["images"] or 0 for x in view.per_class)
    if accuracy is not None:
        text = number(accuracy, 2, " %")
        if images:
            text += f" ± {half_width(accuracy, images):.1f}"
        yield f"accuracy on {images:,} images", text
    for name, (words, unit, digits) in FIGURES.items():
        if found.get(name) is not None:
            yield words, number(found[name], digits, unit)
    temperature = found.get("temperature")
    if temperature is not None:
        yield "temperature fitted on the validation images", number(temperature, 3)


def _classes(view: View, pairs: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """The rows of the table of classes: those with the most training images first."""
    taken = confusions.taken_for(pairs, view.per_class)
    rows = [{**x, "taken": y} for x, y in zip(view.per_class, taken, strict=True)]
    return sorted(rows, key=lambda row: -(row["train_count"] or 0))
