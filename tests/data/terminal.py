"""A program on a pseudo terminal, and what a user sees there."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Screen:
    """The lines of a terminal that has scrolled nothing away; knows what bars and lines need."""

    def __init__(self, columns: int) -> None:
        self.columns, self.row, self.column = columns, 0, 0
        self.lines: list[str] = [""]
        self.unknown: set[str] = set()  # control sequences
        self._begun = ""  # a control sequence

    def feed(self, text: str) -> None:
        text = self._begun + text
        cut = re.search(r"(\x1b(\[[0-9;?]*)?)?\Z", text)
        assert cut is not None
        text, self._begun = text[: cut.start()], cut[0]
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\r\n]", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self._down()
            elif part == "\x1b[A":
                self.row = max(self.row - 1, 0)
            elif part == "\x1b[K":
                self.lines[self.row] = self.lines[self.row][: self.column]
            elif part[0] == "\x1b":
                self.unknown.add(part)
            else:
                if self.column == self.columns:
                    self._down()
                    self.column = 0
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")


class Session:
    """A program that runs on a pseudo terminal."""

    def __init__(self, argv: Sequence[object], columns: int = 100, **environment: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns)
        self.screen, self.output = Screen(columns), ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.process = subprocess.Popen(
            [sys.executable, *map(str, argv)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def resize(self, columns: int) -> None:
        size = struct.pack("HHHH", 50, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def read(self, until: Callable[[], bool] = lambda: False, seconds: float = 120) -> None:
        """Read until a condition is true, or the program ends."""
        limit = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < limit, self.output[-2000:]
            if not select.select([self.master], [], [], 1)[0]:
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO, all its processes have ended
                data = b""
            if not data:
                break
            text = self._decode(data)
            self.output += text
            self.screen.feed(text)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Read the rest; the exit code."""
        self.read()
        os.close(self.master)
        return self.process.wait(timeout=60)
