"""Bars on a terminal: epochs, batches and figures of a training, and the batches of a test.

    epoch 3/20   |████▎                          | 01:12 left
    batch 52/96  |████████████████▎              | 1840 images/s, 00:02 left
    loss 3.45  clip 3.12  lc 0.0123  mi 0.432  lcd 0.123  mid 0.346

Where there is no terminal, nothing of this module is shown. The lines of progress that parsers read
are then printed; with bars they go into the log file only. Figures are read a few times a second at
most, because reading one waits for the device. TQDM_DISABLE=1 switches bars off, as for any tqdm.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

EVERY = 0.25  # seconds between two updates
WIDE = 60  # columns from which on the line of the batches has the images a second
# Written as it is, in the place of a bar: a line that is drawn again, and all that tqdm writes.
REDRAWN = re.compile(r"\r.*", re.DOTALL)
OF_TQDM = re.compile(r"\r.*|\n*|(\x1b\[A)+", re.DOTALL)
HEAD = "\r\x1b[K"  # to the beginning of the line, which is cleared


def on_terminal() -> bool:
    """Whether bars can be drawn.

    Both streams must be terminals: with `| tee log.txt` the lines would run through the bars.
    """
    try:
        terminals = sys.stdout.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):  # replaced or closed streams
        return False
    off = os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
    return terminals and not off and os.environ.get("TERM") not in ("dumb", "unknown")


def line_start() -> str:
    """What to write first for a line of its own on the terminal; "" where there is none."""
    return HEAD if on_terminal() else ""


def _columns(stream: Any) -> int:
    """The width for a line. The last column stays free: some terminals wrap after it."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return (columns or 80) - 1


class _Bar(tqdm):
    """A line of the terminal, in its current width; it disappears when it is closed."""

    monitor_interval = 0  # no thread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, leave=False, miniters=1, mininterval=EVERY, **kwargs)

    @staticmethod
    def status_printer(file: Any) -> Any:
        def show(text: str) -> None:  # tqdm clears with spaces, too many in a narrower window
            file.write(f"{HEAD}{text}")
            file.flush()

        return show

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        self.ncols = _columns(self.fp)
        return super().display(msg, pos)


class _Above:
    """A stream of the terminal whose complete lines appear above the bars.

    passed: what is written as it is
    """

    def __init__(self, stream: Any, bars: Sequence[_Bar], passed: re.Pattern[str]) -> None:
        self._stream, self._bars, self._passed = stream, bars, passed
        self._begun = ""  # a line without its end

    def write(self, text: str) -> int:
        if not self._begun and self._passed.fullmatch(text):
            self._stream.write(text)
            return len(text)
        lines, end, self._begun = (self._begun + text).rpartition("\n")
        if end:
            with _Bar.get_lock():
                for bar in self._bars:
                    bar.clear(nolock=True)
                self._stream.write(lines + end)
                self._stream.flush()
                for bar in self._bars:
                    bar.refresh(nolock=True)
        return len(text)

    def end(self) -> None:
        self._stream.write(self._begun)
        self._begun = ""

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # before __init__, for example while unpickling
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def _above(bars: Sequence[_Bar]) -> Iterator[None]:
    """What is printed inside a `with` block appears above the bars, which it ends with.

    The log file of the engine's Logger gets it at once: its console is replaced, not the Logger.
    """
    logger = hasattr(sys.stdout, "console")
    handlers = [x for x in logging.root.handlers if getattr(x, "stream", None) is sys.stderr]
    places: list[tuple[Any, str, re.Pattern[str]]] = [
        (sys.stdout, "console", REDRAWN) if logger else (sys, "stdout", REDRAWN),
        *((handler, "stream", OF_TQDM) for handler in handlers),
        (sys, "stderr", OF_TQDM),
    ]
    replaced = []
    for owner, name, passed in places:
        stream = _Above(getattr(owner, name), bars, passed)
        setattr(owner, name, stream)
        replaced.append((owner, name, stream))
    try:
        yield
    finally:
        for bar in reversed(bars):
            bar.close()
        for owner, name, stream in replaced:
            stream.end()
            if getattr(owner, name) is stream:
                setattr(owner, name, stream._stream)


@contextmanager
def batches(loader: Iterable[Any], what: str) -> Iterator[Iterable[Any]]:
    """The batches of a loader, inside a `with` block; on a terminal with a bar named `what`."""
    if not on_terminal():
        yield loader
        return
    bar = _Bar(loader, desc=what, bar_format="{desc} {n_fmt}/{total_fmt} |{bar}| {remaining} left")
    with _above([bar]):
        yield bar


@contextmanager
def training(trainer: Any) -> Iterator[Training | None]:
    """The bars of a training inside a `with` block; None where there is no terminal."""
    if not on_terminal():
        yield None
        return
    with ExitStack() as stack:
        yield Training(trainer, stack)


class Training:
    """The bars of a training, from the first batch that it reports on.

    trainer: has the numbers `epoch`, `max_epoch`, `batch_idx`, `num_batches` and `first_batch`, and
    `figures_so_far()`, the averages of the epoch
    """

    def __init__(self, trainer: Any, stack: ExitStack) -> None:
        self._trainer, self._stack = trainer, stack
        self._bars: list[_Bar] = []  # epochs, batches, figures
        self._images = 0  # in a batch
        self._last = 0.0  # time of the last update

    def begin_epoch(self, images: int) -> None:
        """Begin with the first batch of an epoch that this process takes.

        images: in a batch; 0 if that is not known
        """
        trainer, self._images = self._trainer, images
        if not self._bars:
            self._bars = [_Bar(total=trainer.max_epoch, position=0), _Bar(position=1)]
            self._bars.append(_Bar(bar_format="{desc}", position=2))
            self._stack.enter_context(_above(self._bars))
            self._bars[0].initial = self._place(trainer.first_batch)
        batch = self._bars[1]
        batch.reset(trainer.num_batches)
        batch.initial = trainer.first_batch
        self._show(trainer.first_batch)

    def step(self) -> None:
        """Show what has been done after a batch, if it is time to."""
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            self._show(self._trainer.batch_idx + 1)

    def end_epoch(self) -> None:
        """Leave a line of the epoch on the terminal."""
        trainer = self._trainer
        self._show(trainer.num_batches)
        seconds = self._bars[1].format_dict["elapsed"]
        words = "  ".join(_words(trainer.figures_so_far()))
        line = f"epoch {trainer.epoch + 1}/{trainer.max_epoch} ({seconds:.1f} s)  {words}"
        print(line, file=getattr(sys.stdout, "console", sys.stdout))

    def log(self, line: str) -> None:
        """A line of progress, for the log file only: the bars say the same."""
        file = getattr(sys.stdout, "file", None)
        if file is None:
            print(line)
        else:
            file.write(line + "\n")

    def _place(self, batches: int) -> float:
        """The epochs done, with a fraction for the current one."""
        return self._trainer.epoch + batches / max(self._trainer.num_batches, 1)

    def _show(self, batches: int) -> None:
        trainer, (epoch, batch, figures) = self._trainer, self._bars
        epoch.n, batch.n = self._place(batches), batches
        heads = [
            f"epoch {trainer.epoch + 1}/{trainer.max_epoch}",
            f"batch {batches}/{trainer.num_batches}",
        ]
        width, speed = max(map(len, heads)), self._speed()
        wide = speed and _columns(batch.fp) >= WIDE
        for bar, head in zip((epoch, batch), heads, strict=True):
            more = f"{speed}, " if wide and bar is batch else ""
            bar.bar_format = f"{head.ljust(width)} |{{bar}}| {more}{{remaining}} left"
        figures.desc = _fitting(_words(trainer.figures_so_far()), _columns(figures.fp))
        for bar in self._bars:
            bar.refresh()

    def _speed(self) -> str:
        """Images a second in this epoch, with the time for the data; "" if it is not known."""
        bar = self._bars[1]
        seconds, images = bar.format_dict["elapsed"], (bar.n - bar.initial) * self._images
        return f"{images / seconds:.0f} images/s" if seconds and images else ""


def _words(figures: Mapping[str, float]) -> list[str]:
    """Figures as they are shown: loss_lc 0.01234 as "lc 0.0123"."""
    return [f"{name.removeprefix('loss_')} {value:.3g}" for name, value in figures.items()]


def _fitting(words: Sequence[str], width: int) -> str:
    """As many of the words as fit: half a figure would be another one."""
    line = ""
    for word in words:
        longer = f"{line}  {word}" if line else word
        if len(longer) > width:
            break
        line = longer
    return line
