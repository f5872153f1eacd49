"""Atomic writing of files, locks between processes, and the cache folder."""

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
    """Open a temporary file that replaces `path` if the `with` block ends without an error.

    Readers see the complete old or the complete new content, also after a crash. A missing folder
    is created. mode: "w" (text, UTF-8) or "wb".
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


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that a run has written. NPTError, naming the file, if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NPTError(f"{path} cannot be read ({error}): delete it and run again.") from error
    if not isinstance(content, dict):
        raise NPTError(f"{path} does not contain a JSON object: delete it and run again.")
    return content


@contextmanager
def locked(file: Path, doing: str) -> Iterator[None]:
    """Hold a lock on `file` inside a `with` block. NPTError if another process holds it.

    The system releases it when the process ends. doing: what a process that holds it does, for the
    error message, such as "preparing EuroSAT in DATA"
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
