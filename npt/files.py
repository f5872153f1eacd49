"""Files that are whole or not there, folders that one process holds at a time, and the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from npt.errors import NPTError


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` when the block ends without an error.

    A reader, or a crash, meets the old content or the new one, never a part. The folder is made
    where it is missing. mode: "w" (text, UTF-8) or "wb".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. ValueError where a number is infinite or NaN."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=1, allow_nan=False)


@contextmanager
def locked(file: Path, doing: str) -> Iterator[None]:
    """Hold the lock `file`, which ends with the process. NPTError where another process has it.

    doing: what the other process is then said to do, as "preparing EuroSAT in DATA"
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with file.open("w", encoding="utf-8") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise NPTError(f"another process is {doing}: wait for it, or stop it") from error
        yield


def cache_folder() -> Path:
    """The package's folder in the user's cache ($XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "npt"
