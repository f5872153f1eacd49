"""Writing files so that a crash damages none, records with checksums, locks, the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from npt.errors import OF_THE_DEVICE, NPTError, UnwritableFile

OTHER_COPY = "use another copy of it, or run the command that made it again"
LARGEST_RECORD = 256 << 20  # bytes
CHECKSUM = "sha256"  # the entry of a record with the checksum of the others


# --------------------------------------------------------------------------- writing
@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` if the `with` block ends without an error.

    Readers see the complete old or the complete new content, also after a crash of the machine. A
    missing folder is created. UnwritableFile if that is not possible. mode: "w" (UTF-8) or "wb".
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{_process()}-{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside a `with` block into an UnwritableFile that names `path`."""
    try:
        yield
    except UnwritableFile:
        raise
    except OSError as error:
        advice = "free space, or choose" if error.errno in OF_THE_DEVICE else "choose"
        raise UnwritableFile(
            f"{path} cannot be written ({error.strerror or error}): {advice} another folder"
        ) from error


def _process() -> str:
    """A name of this process that no other process has at the same time, on any machine."""
    return f"{socket.gethostname()}~{os.getpid()}"


def _sync_folder(folder: Path) -> None:
    """Make the new name of a file in `folder` survive a crash of the machine."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some network file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of `atomic_write` in `folder` and its folders whose process ended.

    Those of other machines are deleted when they are a day old.
    """
    for pattern in (".*.tmp", "*/.*.tmp"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                if _is_left_over(path):
                    path.unlink()


def _is_left_over(path: Path) -> bool:
    found = re.fullmatch(r"\..+\.([^~]+)~(\d+)-[0-9a-f]{8}\.tmp", path.name)
    if found is None:
        return False
    host, process = found[1], int(found[2])
    if host != socket.gethostname():
        return time.time() - path.stat().st_mtime > 24 * 3600
    return not is_process(process)


def is_process(number: int) -> bool:
    """Whether this machine has a process of this number; True where the system does not say."""
    if os.name != "posix":  # elsewhere the signal 0 ends a process
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


# --------------------------------------------------------------------------- JSON
def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. ValueError where a number is infinite or NaN."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=1, allow_nan=False)


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with a checksum, which `read_record` verifies."""
    content = {key: value for key, value in content.items() if key != CHECKSUM}
    write_json(path, {**content, CHECKSUM: _checksum(content)})


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that a run has written. NPTError, naming the file, if it is damaged.

    A record without a checksum, from an earlier version, is read as it is.
    """
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_RECORD:  # such as a pipe
            raise ValueError("it is not a file of a reasonable size")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise NPTError(f"{path} cannot be read ({reason}): delete it and run again.") from error
    if not isinstance(content, dict):
        raise NPTError(f"{path} does not contain a JSON object: delete it and run again.")
    found = content.pop(CHECKSUM, None)
    if found is not None and found != _checksum(content):
        raise NPTError(f"{path} was changed after it was written: delete it and run again.")
    return content


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# --------------------------------------------------------------------------- reading
def check_zip(path: str | os.PathLike[str]) -> None:
    """NPTError if a file is a zip archive (as torch.save writes) with a wrong checksum."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory leads to many types
        raise NPTError(f'"{path}" is damaged ({error}): {OTHER_COPY}') from error
    if damaged is not None:
        raise NPTError(f'"{path}" is damaged (in {damaged}): {OTHER_COPY}')


# --------------------------------------------------------------------------- locks
_held: dict[Path, int] = {}  # the locks of this process, and the process that took them


def file_digest(path: str | os.PathLike[str]) -> str:
    """A checksum of a file of weights, of a zip archive that of its checksums; "" if no file.

    It is computed once for each state of the file.
    """
    if not os.path.isfile(path):
        return ""
    status = os.stat(path)
    return _file_digest(os.fspath(path), status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _file_digest(path: str, *state: int) -> str:
    digest = hashlib.sha256()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = [(x.filename, x.CRC, x.file_size) for x in archive.infolist()]
        digest.update(repr(entries).encode("utf-8", "surrogateescape"))
    else:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(file: Path, doing: str) -> Iterator[None]:
    """Hold a lock on `file` inside a `with` block. NPTError if it is held already.

    The system releases it when this process ends, however it ends; child processes do not hold it.
    doing: what a process that holds it does, for the error message, such as "preparing EuroSAT in
    DATA"
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    key, busy = file.resolve(), f"another process is {doing}: wait for it, or stop it"
    if _held.get(key) == os.getpid():
        raise NPTError(busy)
    # lockf, not flock: a lock of flock lives on in the children of a process that was killed.
    with writing(file):
        held = file.open("a", encoding="utf-8")
    with held:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise NPTError(busy) from error
        _held[key] = os.getpid()
        try:
            yield
        finally:
            del _held[key]


def is_locked_here(file: Path) -> bool:
    """Whether this process holds the lock of `locked` on `file`."""
    return _held.get(file.resolve()) == os.getpid()


def cache_folder() -> Path:
    """The package's folder in the user's cache ($XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "npt"
