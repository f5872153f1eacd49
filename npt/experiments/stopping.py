"""What a program with worker processes does at a signal to stop (`npt.stopping` is of one run)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from npt.stopping import EXIT_INTERRUPTED, EXIT_STOPPED, PREEMPTION


class Preempted(KeyboardInterrupt):
    """Ends a program as Ctrl-C does, but with EXIT_STOPPED."""


def exit_code(stop: KeyboardInterrupt) -> int:
    return EXIT_STOPPED if isinstance(stop, Preempted) else EXIT_INTERRUPTED


@contextmanager
def preemptible() -> Iterator[None]:
    """Raise Preempted at SIGTERM and SIGUSR1, inside a `with` block of the main thread."""
    if threading.current_thread() is not threading.main_thread():  # others cannot have handlers
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Preempted

    before = {number: signal.signal(number, stop) for number in PREEMPTION}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def block_interrupts(blocked: bool) -> None:
    """Hold SIGINT back in this thread, or let it through. A new process inherits this."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        how = signal.SIG_BLOCK if blocked else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {signal.SIGINT})
