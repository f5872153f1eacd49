"""Copies stdout to a log file."""

from __future__ import annotations

import os.path as osp
import sys
import time
from typing import IO, Any

from .tools import mkdir_if_missing

__all__ = ["Logger", "setup_logger"]


class Logger:
    """A replacement of sys.stdout that writes to the console and to a file."""

    console: Any
    file: IO[str] | None

    def __init__(self, fpath: str | None = None):
        # A second logger in a process replaces the first one: it does not write to both files.
        previous: Any = sys.stdout
        if isinstance(previous, Logger):
            previous.close()
            previous = previous.console
        self.console = previous
        self.file = None
        if fpath is not None:
            mkdir_if_missing(osp.dirname(fpath))
            # Line buffered, so that a killed run has every complete line in its file.
            self.file = open(fpath, "w", buffering=1, encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> int:
        self.console.write(text)
        if self.file is not None:
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file. The console stays open."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getattr__(self, name: str):
        if name == "console":  # before __init__, for example while unpickling
            raise AttributeError(name)
        return getattr(self.console, name)


def setup_logger(output: str | None = None) -> None:
    """Copy stdout to `output`/log.txt, or to the file `output` if it ends in .txt or .log.

    If that file exists, it is kept, and the date and time are appended to the new file's name.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else osp.join(output, "log.txt")
    if osp.exists(fpath):
        fpath += time.strftime("-%Y-%m-%d-%H-%M-%S")
    sys.stdout = Logger(fpath)
