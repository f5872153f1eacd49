"""The packages of the extra `report`, which pages, tables and figures need."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from npt.errors import NPTError

PACKAGES = {  # module -> package
    **{name: name for name in ("jinja2", "matplotlib", "pandas", "scipy")},
    "sklearn": "scikit-learn",
}


@contextmanager
def report_extra() -> Iterator[None]:
    """NPTError with the command to install if one of them is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in PACKAGES:
            raise
        raise NPTError(
            f"tables and figures need {PACKAGES[name]}: pip install 'npt-clip[report]'"
        ) from error


@report_extra()
def check_report_extra() -> None:
    """NPTError as above, without importing them: before hours of runs whose report needs them."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
