"""Pages that are one file and need nothing else: templates are filled in, figures become SVG.

Figures are matplotlib's SVG, whose black is the colour of the text, so that they fit a dark page;
style and script are written into the page.
"""

from __future__ import annotations

import io
import re
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from npt.experiments.figures import styled
from npt.files import atomic_write

PAGE = "page.html.j2"
# What matplotlib writes -> what follows the scheme of the page.
COLOURS = {"#000000": "currentColor", "#666666": "var(--muted)", "#b0b0b0": "var(--line)"}
UNUSED = re.compile(
    r' id="(?:figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend)_\d+"'
)


def write(path: Path, package: str, filters: dict[str, Any], **values: Any) -> Path:
    """Write the page of `package`, from its templates/page.html.j2 and `values`; returns `path`.

    The template has the shared style and script, and after them those of the package, as `style`
    and `script`, and the filters `svg` and `filters`.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"svg": svg, **filters}
    template = environment.from_string(_texts(package, PAGE))
    page = template.render(
        style=Markup(_texts("npt.pages", ".css") + _texts(package, ".css")),
        script=Markup(_texts("npt.pages", ".js") + _texts(package, ".js")),
        **values,
    )
    with atomic_write(path) as file:
        file.write(page)
    return path


def _texts(package: str, suffix: str) -> str:
    """The templates of a package whose names end so."""
    found = (resources.files(package) / "templates").iterdir()
    names = sorted((x for x in found if x.name.endswith(suffix)), key=lambda x: x.name)
    return "\n".join(x.read_text(encoding="utf-8") for x in names)


@styled()
def svg(figure: Figure, name: str) -> Markup:
    """A figure as SVG to be put into a page; the same figure gives the same bytes.

    name: what tells its ids apart from those of the page's other figures
    """
    file = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name}
    look: Any = {"transparent": True, "bbox_inches": "tight", "metadata": {"Date": None}}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format="svg", **look)
    text = file.getvalue()
    text = UNUSED.sub("", text[text.index("<svg") :])
    for colour, variable in COLOURS.items():
        text = text.replace(colour, variable)
    return Markup(text)
