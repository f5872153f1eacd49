"""Errors for users: `NPTError`, and the printing of an error as one sentence.

A program of this package prints an error that the user can correct as one sentence on stderr, and
ends with exit code 2. These are

- NPTError, and the embedded engine's `dassl.utils.errors.UserError`;
- an OSError that names its file, or is one of the device (no space left, read-only, ...);
- a yaml file, an image or an address that cannot be read (see `FOREIGN`).

Any other exception is a bug and keeps its traceback. NPT_TRACEBACK=1 shows the traceback of all.
"""

from __future__ import annotations

import errno
import os
import re
import sys

EXIT_BAD_INPUT = 2
VARIABLE = "NPT_TRACEBACK"
HINT = f"{VARIABLE}=1 shows the traceback"
# By name, so that nothing is imported to find out that it was not raised.
FOREIGN = {
    "dassl.utils.errors.UserError",
    "PIL.UnidentifiedImageError",
    "urllib.error.URLError",
    "yaml.error.YAMLError",
}
NAMES = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EFBIG")  # not all of them exist everywhere
OF_THE_DEVICE = {getattr(errno, name) for name in NAMES if hasattr(errno, name)}


class NPTError(Exception):
    """One sentence for the user: what is wrong, where, and what to do about it."""


class InvalidArgument(NPTError, ValueError):
    """An argument of a public function has a value or shape that the function does not take."""


class UnwritableFile(NPTError, OSError):
    """A file cannot be written, for example because the disk is full."""

    __str__ = Exception.__str__


class NotFinite(NPTError, FloatingPointError):
    """A loss, a gradient or a learned weight is infinite or NaN."""


class OtherRun(NPTError):
    """A folder or checkpoint belongs to a run with another configuration or other data."""


def sentence(error: BaseException) -> str | None:
    """What to tell the user of an error, in one line; None where the error is a bug."""
    text = str(error)
    if re.match(r"Caught \w+ in DataLoader worker process", text):
        text = _message_of_worker(text)
    if isinstance(error, NPTError) or _names(type(error)) & FOREIGN:
        return _one_line(text) or None
    if isinstance(error, OSError):
        if error.filename is not None and error.strerror:
            return _one_line(f"{error.strerror}: '{error.filename}'")
        if error.errno in OF_THE_DEVICE:  # while writing to a file that was open
            return f"{error.strerror}: free space, or choose another output folder"
        in_worker = re.fullmatch(r"\[Errno \d+\] (.+: '.+')", _one_line(text))
        return in_worker.group(1) if in_worker else None
    return None


def report(error: Exception) -> int:
    """Print the sentence of an error and return the exit code; raise an error that has none."""
    words = None if os.environ.get(VARIABLE) == "1" else sentence(error)
    if words is None:
        raise error
    try:
        sys.stdout.flush()
    except OSError:  # such as a full disk below it
        discard_output()
    print(f"error: {words} ({HINT})", file=sys.stderr)
    return EXIT_BAD_INPUT


def discard_output() -> None:
    """Let what is still to be written to the standard output, which cannot take it, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _names(kind: type) -> set[str]:
    """The qualified names of a class and its bases."""
    return {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}


def _message_of_worker(text: str) -> str:
    """The message at the end of the traceback that a data-loading process sends as text.

    torch raises the error again under its own type, with that traceback as its message.
    """
    last = text.rpartition("\n  File ")[2]
    return re.split(r"\n(?=[\w.]+(?:: |$))", last, maxsplit=1)[-1].partition(": ")[2]


def _one_line(text: str) -> str:
    return " ".join(text.split())
