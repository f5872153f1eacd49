"""What a run is doing: progress.json in its folder, for whoever looks, from any machine.

The process that executes a run writes it at the start and at the end, at each epoch, and as a sign
of life every BEAT seconds; so its age tells a run that is executed from one whose process is gone.
The clocks of machines differ, so the age is taken by the clock of the file system, which sets the
times of files. Whether a run is complete is not said here, but by its figures (`state`).
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from npt import environment
from npt.errors import NPTError
from npt.files import is_process, read_record, write_record

PROGRESS = "progress.json"
RUNNING, STOPPED, FAILED, DONE = "running", "stopped", "failed", "done"
BEAT = 15.0  # seconds between two signs of life
LOOK = 1.0  # seconds between two looks at the epoch
SILENCE = 120.0  # seconds without a sign of life; a network file system may show one a minute late
Record = dict[str, Any]
TEXT, NUMBER, WHOLE = (str, type(None)), (int, float), (int, type(None))
ENTRIES: dict[str, type | tuple[type, ...]] = {
    "state": str,
    "node": str,
    "pid": int,
    "pids": TEXT,  # the name space of the process numbers: a container has its own
    "gpu": TEXT,
    "job": TEXT,
    "started": NUMBER,  # by the clock of the node, seconds since 1970
    "seconds": NUMBER,  # of work on this run, also in earlier processes that did not end it
    "evaluation": TEXT,
    "epoch": WHOLE,  # of a training, from 1
    "epochs": WHOLE,
    "error": TEXT,  # one sentence, if the run failed
    "log": TEXT,  # relative to the run's folder
}


# --------------------------------------------------------------------------- reading
def load(folder: Path, now: float | None = None) -> Record:
    """The record of the run in `folder`, empty if there is none. NPTError if it is damaged.

    Beside ENTRIES it has `silent`, the seconds since it was written.
    now: `clock`, where many records are read
    """
    path = folder / PROGRESS
    try:
        written = path.stat().st_mtime
    except OSError:
        return {}
    found = read_record(path)
    right = all(isinstance(found.get(key), kind) for key, kind in ENTRIES.items())
    if not right or found["state"] not in (RUNNING, STOPPED, FAILED, DONE):
        raise NPTError(f"{path} lacks what a run writes there: delete it.")
    return {**found, "silent": max(0.0, (clock(folder) if now is None else now) - written)}


def read(folder: Path, now: float | None = None) -> Record:
    """As `load`, but empty if the record is damaged."""
    try:
        return load(folder, now)
    except NPTError:
        return {}


def is_alive(record: Record) -> bool:
    """Whether a record of `read` is of a run that is being executed."""
    if record.get("state") != RUNNING or record["silent"] > SILENCE:
        return False
    here = (record["node"], record["pids"]) == (environment.node(), _pids())
    return not here or is_process(record["pid"])


def clock(folder: Path) -> float:
    """The time of the file system that has `folder`, in seconds since 1970.

    It is that of this machine where nothing can be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _pids() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


# --------------------------------------------------------------------------- writing
class Progress:
    """The progress of the run that this process executes; see `recorded`."""

    def __init__(self, folder: Path) -> None:
        earlier = read(folder)
        unfinished = earlier.get("state", DONE) != DONE
        self.folder = folder
        self.state, self.error = RUNNING, ""
        self.log: Path | None = None
        self.evaluation: str | None = None
        self.trainer: Any = None  # while it trains
        self._before = earlier["seconds"] if unfinished else 0.0
        self._started, self._start = time.time(), time.monotonic()

    def failed(self, error: str, log: Path | None) -> None:
        self.state, self.error, self.log = FAILED, error, log

    def record(self) -> Record:
        return {
            "state": self.state,
            "node": environment.node(),
            "pid": os.getpid(),
            "pids": _pids(),
            "gpu": environment.gpu(),
            "job": environment.job(),
            "started": self._started,
            "seconds": self._before + time.monotonic() - self._start,
            "evaluation": self.evaluation,
            **_epochs(self.trainer),
            **_failure(self.folder, self.error, self.log),
        }

    def keep(self, ended: threading.Event) -> None:
        """Write the record when the epoch or the evaluation changes, and at each beat."""
        seen, written = None, time.monotonic()
        while not ended.wait(LOOK):
            record = self.record()
            now, doing = time.monotonic(), [record[x] for x in ("evaluation", "epoch", "gpu")]
            if doing != seen or now - written >= BEAT:
                _write(self.folder, record)
                seen, written = doing, now


_current: Progress | None = None  # a process executes one run at a time


@contextmanager
def recorded(folder: Path) -> Iterator[Progress]:
    """Keep the progress of the run in `folder` on record inside a `with` block.

    At the end it is done, or failed if `failed` was called; STOPPED if an exception ends the block.
    A record that cannot be written, as on a full disk, changes nothing for the run.
    """
    global _current
    _current = progress = Progress(folder)
    _write(folder, progress.record())
    ended = threading.Event()
    thread = threading.Thread(target=progress.keep, args=(ended,), daemon=True)
    thread.start()
    try:
        yield progress
        if progress.state == RUNNING:
            progress.state = DONE
    except BaseException:
        progress.state = STOPPED
        raise
    finally:
        ended.set()
        thread.join()
        _write(folder, progress.record())
        _current = None


def doing(evaluation: str, trainer: Any = None) -> None:
    """Note what the run of this process does now; nothing where its progress is not recorded.

    trainer: if it trains; its `epoch` (from 0) and `max_epoch` are read now and then
    """
    if _current is not None:
        _current.evaluation, _current.trainer = evaluation, trainer


def fail(folder: Path, error: str, log: Path | None) -> None:
    """Note for a run's process, which has ended without a word, that the run has failed."""
    _change(folder, FAILED, error, log)


def waits(folder: Path) -> None:
    """Note that a run which failed, or whose process was killed, is to be executed again."""
    _change(folder, STOPPED, "", None)


def _change(folder: Path, state: str, error: str, log: Path | None) -> None:
    earlier = read(folder)
    if earlier:
        _write(folder, {**earlier, "state": state, **_failure(folder, error, log)})


def _epochs(trainer: Any) -> Record:
    epoch, epochs = getattr(trainer, "epoch", None), getattr(trainer, "max_epoch", None)
    if not isinstance(epoch, int) or not isinstance(epochs, int):
        return {"epoch": None, "epochs": None}
    return {"epoch": min(epoch + 1, epochs), "epochs": epochs}


def _failure(folder: Path, error: str, log: Path | None) -> Record:
    there = log is not None and log.is_relative_to(folder)
    place = os.path.relpath(log, folder) if log is not None and there else None
    return {"error": error or None, "log": place}


def _write(folder: Path, record: Record) -> None:
    with suppress(OSError):
        write_record(folder / PROGRESS, {key: record[key] for key in ENTRIES})
