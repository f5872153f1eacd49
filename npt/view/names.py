"""Names of classes and files as a page can show them."""

from __future__ import annotations

import os
from collections.abc import Sequence


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Names of at most about `most` characters, no two the same."""
    found: list[str] = []
    for name in names:
        short = name if len(name) <= most else f"{name[: most - 1]}…"
        again = sum(x == short or x.startswith(f"{short} (") for x in found)
        found.append(f"{short} ({again + 1})" if again else short)
    return found


def files(paths: Sequence[str]) -> list[str]:
    """Paths below the folder that they share; bytes that are no text are shown as such."""
    if not paths:
        return []
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [text(os.path.relpath(path, above)) for path in paths]


def text(name: str) -> str:
    """A name that UTF-8 can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
