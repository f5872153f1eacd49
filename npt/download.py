"""Downloads of files: resumable, verified, and atomic.

A download is written to `<file>.part`. Beside it, `<file>.part.of` contains the version of the file
on the host (its ETag or date), so that a later attempt can request the rest of the same version.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from npt.errors import NPTError

TIMEOUT = 30  # seconds without data
ATTEMPTS = 4  # consecutive attempts without data
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
CHUNK = 1 << 20
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP status codes worth another attempt


class Unavailable(NPTError):
    """The host cannot be reached, does not have the file, or sends another one."""


class Interrupted(Exception):
    """The connection ended too early, or the host is busy: another attempt may succeed."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections only to http and https, and never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new != "https" and new != old:
            raise NPTError(
                f"{req.full_url} redirects to {newurl}, which is not allowed: download the file by "
                "hand."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https (not file: or ftp:), with the proxies of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


def fetch(url: str, file: Path, checksum: str = "") -> Path:
    """Download `url` to `file`, or resume the download, and return `file`.

    checksum: "md5:..." or "sha256:..."; "" if none is known, then only the length that the host
    reports is verified. If `file` exists, it is only verified.
    Unavailable if the host cannot be reached, does not have the file, or sends a different file;
    NPTError if the file cannot be written, or is there already and a different one.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise NPTError(f"{url} cannot be downloaded: only http and https addresses are allowed.")
    if file.is_file():
        if checksum and not has_checksum(file, checksum):
            raise NPTError(f"{file} is not the file at {url} ({checksum}): delete it.")
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    resumed = part.is_file() and part.stat().st_size > 0
    _complete(url, part, bool(checksum))
    if checksum and not has_checksum(part, checksum):
        _discard(part)
        if resumed:  # the parts may be of two versions: download again from the beginning
            return fetch(url, file, checksum)
        raise Unavailable(
            f"the {file.name} sent by {urlsplit(url).netloc} does not have the checksum {checksum} "
            f"and was deleted: try again later, or get the file elsewhere, put it at {file} and "
            "run the same command."
        )
    os.replace(part, file)
    _version(part).unlink(missing_ok=True)
    return file


def read(url: str) -> bytes:
    """What the host sends for `url`. Unavailable if it sends nothing."""
    with _requested(url, {}) as response:
        return response.read()


class RemoteFile(io.RawIOBase):
    """A file of a host, opened for reading; only the bytes that are read are downloaded.

    Unavailable if the host cannot be reached, or sends only whole files.
    """

    def __init__(self, url: str):
        self.url, self.place = url, 0
        with _requested(url, {"Range": "bytes=0-0"}) as response:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdigit():
            raise Unavailable(f"{urlsplit(url).netloc} does not send parts of {url}.")
        self.size = int(total)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        self.place = max(0, start + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        end = min(self.place + len(buffer), self.size)
        if self.place >= end:
            return 0
        with _requested(self.url, {"Range": f"bytes={self.place}-{end - 1}"}) as response:
            content = response.read(end - self.place)
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


def _requested(url: str, headers: dict[str, str]) -> Any:
    """The response of the host. Unavailable if there is none."""
    request = urllib.request.Request(url, headers={"User-Agent": "npt-clip", **headers})
    try:
        return _opener().open(request, timeout=TIMEOUT)
    except (http.client.HTTPException, OSError) as error:
        raise Unavailable(f"{url} cannot be read ({error}): try again later.") from error


def has_checksum(file: Path, checksum: str) -> bool:
    """Whether the file has the checksum "<algorithm>:<hexadecimal digest>"."""
    algorithm, _, expected = checksum.partition(":")
    return digest(file, algorithm) == expected


def digest(file: Path, algorithm: str = "sha256") -> str:
    """The file's hexadecimal digest."""
    value = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            value.update(chunk)
    return value.hexdigest()


def _complete(url: str, part: Path, checked: bool) -> None:
    """Repeat `_attempt` until `part` is complete, or ATTEMPTS in a row received no data."""
    failures, size = 0, _size(part)
    while True:
        try:
            return _attempt(url, part, checked)
        except (Interrupted, http.client.HTTPException, OSError) as error:
            if not isinstance(error, Interrupted) and not _is_network_error(error):
                raise _disk_error(error, part) from error
            grown = _size(part) > size
            failures, size = (1, _size(part)) if grown else (failures + 1, size)
            never_connected = isinstance(error, urllib.error.URLError) and not size
            if failures >= ATTEMPTS or never_connected:
                raise _unreachable(url, part, error) from error
        time.sleep(PAUSE * 2 ** (failures - 1))


def _attempt(url: str, part: Path, checked: bool) -> None:
    """Request the missing bytes of `part`. Raises Interrupted if not all of them arrive."""
    have, known, version = _size(part), _known_version(part), _version(part)
    headers = {"User-Agent": "npt-clip", "Accept-Encoding": "identity"}
    if have and (known or checked):
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no bytes after these: the part is complete, or of another file
            if error.headers.get("Content-Range", "") == f"bytes */{have}":
                return
            _discard(part)
            raise Interrupted("the host has a file of another length") from error
        if error.code in TEMPORARY:
            raise Interrupted(f"{error.code} {error.reason}") from error
        raise Unavailable(
            f"{urlsplit(url).netloc} answers {error.code} {error.reason} for {url}: the file may "
            "have moved; `python -m npt.data check` lists the sources of the data sets."
        ) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise Unavailable(
                f"{url} is a web page instead of the file: open it in a browser and put the file "
                f"at {part.with_suffix('')}."
            )
        start = have if response.status == 206 else 0
        if start and not _continues(response, start):
            _discard(part)
            raise Interrupted("the host sent another part than requested")
        if not start:
            _save_version(version, response)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _receive(response, part, start, total)
    if total is not None and _size(part) < total:
        raise Interrupted(f"received {_size(part):,} of {total:,} bytes")


def _receive(response: Any, part: Path, start: int, total: int | None) -> None:
    """Write the body of the response to `part`, from byte `start` on."""
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise NPTError(
            f"{part.parent} has {free / 1e9:.1f} GB free, but {part.stem} needs another "
            f"{(total - start) / 1e9:.1f} GB: free some space and run the command again."
        )
    with (
        part.open("r+b" if start else "wb") as file,
        tqdm(
            desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        file.seek(start)
        file.truncate()
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _continues(response: Any, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _save_version(version: Path, response: Any) -> None:
    """Save the ETag or date. A weak ETag is not used: it does not guarantee identical bytes."""
    etag = response.headers.get("ETag", "")
    value = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    version.write_text(value if value.isascii() else "", "ascii")


def _version(part: Path) -> Path:
    return part.with_name(f"{part.name}.of")


def _known_version(part: Path) -> str:
    """The saved ETag or date; "" if there is none or it is damaged."""
    try:
        text = _version(part).read_text("ascii")
    except (FileNotFoundError, ValueError):
        return ""
    return text if text.isprintable() else ""


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _is_network_error(error: BaseException) -> bool:
    kinds = (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError)
    return isinstance(error, kinds) or type(error).__module__ == "ssl"


def _disk_error(error: BaseException, part: Path) -> BaseException:
    if getattr(error, "errno", None) == errno.ENOSPC:
        return NPTError(
            f"the disk of {part.parent} is full: free some space and run the command again."
        )
    return error


def _unreachable(url: str, part: Path, error: BaseException) -> Unavailable:
    reason = getattr(error, "reason", error)
    resumes = " and continues where it stopped" if _size(part) else ""
    return Unavailable(
        f"{urlsplit(url).netloc} cannot be reached or the connection keeps failing ({reason}): "
        f"check the network; the same command tries again{resumes}. If you download {url} by other "
        f"means, put the file at {part.with_suffix('')}."
    )
