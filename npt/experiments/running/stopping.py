"""What a program with worker processes does at a signal to stop (`npt.stopping` is of one run)."""

from __future__ import annotations

import signal

from npt.stopping import EXIT_INTERRUPTED, EXIT_STOPPED, PREEMPTION


class Preempted(KeyboardInterrupt):
    """Ends a program as Ctrl-C does, but with EXIT_STOPPED."""


def exit_code(stop: KeyboardInterrupt) -> int:
    return EXIT_STOPPED if isinstance(stop, Preempted) else EXIT_INTERRUPTED


def block_signals(blocked: bool) -> None:
    """Hold the signals to stop back in this thread, or not. A new process inherits this."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        how = signal.SIG_BLOCK if blocked else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {signal.SIGINT, *PREEMPTION})
