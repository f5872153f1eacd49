"""Finds files that are listed in another spelling than the disk has: case, and forms of Unicode.

Windows and macOS do not tell `A.JPG` from `a.jpg`, and macOS writes an accented letter as two
characters. So a list made there names files that do not exist elsewhere under that very name.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path


def folded(name: str) -> str:
    """The same text for all spellings of a name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def same_spelling(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is `name` in another spelling; None if there is none, or several."""
    found = [other for other in names if folded(other) == folded(name)]
    return found[0] if len(found) == 1 else None


class Spelling:
    """The files below a folder, whatever the spelling; it remembers what it has found."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.found = 0
        self.example = ""
        self._names = cache(_names)  # of this object, so that it never grows old

    def find(self, path: str) -> Path | None:
        """The file that `path`, below the folder, means; None if there is none, or several."""
        place = self.folder
        for name in path.split("/"):
            if name in ("", "..") or not place.is_dir():
                return None
            if not (place / name).exists():
                known = self._names(place).get(folded(name), [])
                if len(known) != 1:
                    return None
                name = known[0]
            place = place / name
        if not place.is_file():
            return None
        self.found += 1
        self.example = self.example or f"{path} (on the disk {place.relative_to(self.folder)})"
        return place

    @property
    def note(self) -> str:
        """What was found, in a sentence; "" for nothing."""
        if not self.found:
            return ""
        return (
            f"{self.found:,} images in {self.folder} are listed in another spelling of their name "
            f"(capitals, or the form of accents), such as {self.example}: they are used"
        )

    def warn(self) -> None:
        if self.found:
            text = f"{self.note}.".encode("utf-8", "backslashreplace").decode()
            warnings.warn(text, stacklevel=4)


def _names(folder: Path) -> dict[str, list[str]]:
    """The names in a folder, by what they are folded to."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(folded(name), []).append(name)
    return names
