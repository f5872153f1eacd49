"""Signals that ask a run to stop: Ctrl-C, and a cluster's SIGTERM, SIGUSR1 and SIGUSR2.

A training finishes its step, saves its state and ends with an exit code that a launcher can tell:
75 after a signal of the cluster (run the same command again), 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any, NoReturn

from npt import bars

EXIT_STOPPED = 75  # EX_TEMPFAIL, a temporary failure: the same command goes on
EXIT_INTERRUPTED = 130
_NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2")  # the last is what submitit asks SLURM to send
PREEMPTION = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def run_program(main: Callable[[], Any]) -> NoReturn:
    """End this process with the exit code of `main`, which a later signal must not change."""
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code
    for number in (signal.SIGINT, *PREEMPTION):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def exiting() -> AbstractContextManager[None]:
    """Inside a `with` block, the signals of PREEMPTION end the program with EXIT_STOPPED."""
    return preempted(lambda: SystemExit(EXIT_STOPPED))


@contextmanager
def preempted(
    error: Callable[[], BaseException], numbers: Iterable[int] = PREEMPTION
) -> Iterator[None]:
    """Raise `error()` at these signals, inside a `with` block of the main thread."""
    if threading.current_thread() is not threading.main_thread():  # others cannot have handlers
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise error()

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Deferred:
    """Inside a `with` block, a signal to stop only sets `signal`; a later one stops at once.

    Signals that come within a second of the first are the same request: a cluster signals all
    processes of a job, and their parents pass the signal on. Handlers can be set in the main thread
    only, so in another thread nothing changes.
    """

    def __init__(self) -> None:
        self.signal = ""  # the name of the first signal received
        self._first = 0.0  # time of that signal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *PREEMPTION):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.signal:
            if now - self._first > 1:
                raise SystemExit(self.exit_code)
            return
        self.signal, self._first = signal.Signals(number).name, now
        # print() cannot be used here: the signal may have interrupted another print().
        with suppress(OSError):
            line = f"{bars.line_start()}{self.signal}: the run stops after this step.\n"
            os.write(2, line.encode())

    @property
    def exit_code(self) -> int:
        return EXIT_INTERRUPTED if self.signal == "SIGINT" else EXIT_STOPPED
