"""Reading of text files that people write, as the editors of all systems save them."""

from __future__ import annotations

import codecs
from pathlib import Path

MARKS = (  # byte-order marks; that of UTF-32 begins like that of UTF-16, so it comes first
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MARK = "\ufeff"  # also within a file, where two files were joined


def mark_of(content: bytes) -> tuple[bytes, str]:
    """The byte-order mark at the start of a text, and its encoding; b"" and UTF-8 without one."""
    return next((x for x in MARKS if content.startswith(x[0])), (b"", "utf-8"))


def read_text(file: Path) -> str:
    r"""The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark; lines end in \n.

    OSError, or ValueError with a sentence about its encoding.
    """
    content = file.read_bytes()
    mark, encoding = mark_of(content)
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, len(mark) + error.start) + 1
        raise ValueError(
            f"line {line} is not in {encoding.upper()}; perhaps an editor saved it in an encoding "
            "of Windows (Latin-1, cp1252, UTF-16 without its mark): save it as UTF-8"
        ) from error
    if not mark and "\0" in text[:200]:
        raise ValueError("it seems to be in UTF-16 without a byte-order mark: save it as UTF-8")
    return text.replace(MARK, "").replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: Path) -> list[str]:
    """The lines of a text file without spaces around them; empty ones are left out. As above."""
    return [line for line in map(str.strip, read_text(file).split("\n")) if line]
