"""Copies what is printed into a log file."""

from __future__ import annotations

import os.path as osp
import sys
import time

from .tools import mkdir_if_missing

__all__ = ["Logger", "setup_logger"]


class Logger:
    """A stand-in for sys.stdout that writes to the console and, line by line, to a file."""

    def __init__(self, fpath: str | None = None):
        # A second log in one process takes the place of the first one instead of feeding it too.
        previous = sys.stdout
        if isinstance(previous, Logger):
            previous.close()
            previous = previous.console
        self.console = previous
        self.file = None
        if fpath is not None:
            mkdir_if_missing(osp.dirname(fpath))
            # Line buffered: a killed run leaves every finished line behind.
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
        """Close the file; the console stays open, it is not ours."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getattr__(self, name: str):
        if name == "console":  # not set yet: an unpickled or half-built Logger
            raise AttributeError(name)
        return getattr(self.console, name)


def setup_logger(output: str | None = None) -> None:
    """Tee stdout into `output`/log.txt (or `output` itself where it ends in .txt or .log).

    An existing file is kept: the new one gets the date and time behind its name.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else osp.join(output, "log.txt")
    if osp.exists(fpath):
        fpath += time.strftime("-%Y-%m-%d-%H-%M-%S")
    sys.stdout = Logger(fpath)
