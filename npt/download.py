"""Files from the network: continued where they were cut, checked, and complete or not there.

A download grows in `<file>.part`, beside it `<file>.part.of` names the version of the file that
the host had (its ETag or date), so that a later attempt can ask for the rest of the same one.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
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

TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 4  # in a row that bring no byte
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
CHUNK = 1 << 20
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that another attempt may change


class CutShort(Exception):
    """The connection ended before the file did, or the host is busy: worth another attempt."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new != "https" and new != old:
            raise NPTError(f"{req.full_url} leads on to {newurl}, which is not followed.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """http and https, by way of the proxies that the environment names; no file:, no ftp:."""
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
    """The file at `url` as `file`, continuing what an earlier attempt left.

    checksum: "md5:..." or "sha256:...", or "" where none is known; then only the length that the
    host announces is verified. A `file` that is there already is only checked.
    NPTError where the host cannot be reached, has no such file, or sends another than expected.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise NPTError(f"{url} is no http or https address, and nothing else is fetched.")
    if file.is_file():
        if checksum and not has_checksum(file, checksum):
            raise NPTError(f"{file} is not what {url} should be ({checksum}): delete the file.")
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    resumed = part.is_file() and part.stat().st_size > 0
    _complete(url, part, bool(checksum))
    if checksum and not has_checksum(part, checksum):
        _discard(part)
        if resumed:  # the pieces may have been of two versions: once more, from the beginning
            return fetch(url, file, checksum)
        raise NPTError(
            f"what {urlsplit(url).netloc} sent as {file.name} does not have the checksum "
            f"{checksum}, and was deleted: try again later, or get the file elsewhere, put it at "
            f"{file} and run the same command."
        )
    os.replace(part, file)
    _version(part).unlink(missing_ok=True)
    return file


def has_checksum(file: Path, checksum: str) -> bool:
    """Whether the file's digest is the one of "<algorithm>:<hexadecimal>"."""
    algorithm, _, expected = checksum.partition(":")
    return digest(file, algorithm) == expected


def digest(file: Path, algorithm: str = "sha256") -> str:
    value = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            value.update(chunk)
    return value.hexdigest()


def _complete(url: str, part: Path, checked: bool) -> None:
    """Attempt after attempt, until `part` is whole or several attempts brought nothing."""
    failures, size = 0, _size(part)
    while True:
        try:
            return _attempt(url, part, checked)
        except (CutShort, http.client.HTTPException, OSError) as error:
            if not isinstance(error, CutShort) and not _of_the_network(error):
                raise _disk_error(error, part) from error
            grown = _size(part) > size
            failures, size = (1, _size(part)) if grown else (failures + 1, size)
            never_connected = isinstance(error, urllib.error.URLError) and not size
            if failures >= ATTEMPTS or never_connected:
                raise _unreachable(url, part, error) from error
        time.sleep(PAUSE * 2 ** (failures - 1))


def _attempt(url: str, part: Path, checked: bool) -> None:
    """One request for what `part` still lacks. CutShort where it does not bring all of it."""
    version = _version(part)
    have, known = _size(part), version.read_text("utf-8") if version.is_file() else ""
    headers = {"User-Agent": "npt-clip", "Accept-Encoding": "identity"}
    if have and (known or checked):
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing there from this place on: it is whole, or another file
            if error.headers.get("Content-Range", "") == f"bytes */{have}":
                return
            _discard(part)
            raise CutShort("the host has a file of another length") from error
        if error.code in PASSING:
            raise CutShort(f"{error.code} {error.reason}") from error
        raise NPTError(
            f"{urlsplit(url).netloc} answers {error.code} {error.reason} for {url}: the file may "
            "have moved; `python -m npt.data check` says where the data set comes from."
        ) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise NPTError(
                f"{url} answers with a web page in place of the file: open it in a browser, "
                f"and put the file at {part.with_suffix('')}."
            )
        start = have if response.status == 206 else 0
        if start and not _continues(response, start):
            _discard(part)
            raise CutShort("the host sent another part than asked for")
        if not start:
            _remember(version, response)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _receive(response, part, start, total)
    if total is not None and _size(part) < total:
        raise CutShort(f"{_size(part):,} of {total:,} bytes came")


def _receive(response: Any, part: Path, start: int, total: int | None) -> None:
    room = shutil.disk_usage(part.parent).free
    if total is not None and total - start > room:
        raise NPTError(
            f"{part.parent} has room for {room / 1e9:.1f} GB, but {part.stem} has "
            f"{(total - start) / 1e9:.1f} GB more to come: make room, and run the command again."
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


def _remember(version: Path, response: Any) -> None:
    """Keep what names this version of the file; a weak ETag cannot vouch for single bytes."""
    etag = response.headers.get("ETag", "")
    name = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    version.write_text(name, "utf-8")


def _version(part: Path) -> Path:
    return part.with_name(f"{part.name}.of")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _of_the_network(error: BaseException) -> bool:
    kinds = (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError)
    return isinstance(error, kinds) or type(error).__module__ == "ssl"


def _disk_error(error: BaseException, part: Path) -> BaseException:
    if getattr(error, "errno", None) == errno.ENOSPC:
        return NPTError(f"the disk of {part.parent} is full: make room, run the command again.")
    return error


def _unreachable(url: str, part: Path, error: BaseException) -> NPTError:
    reason = getattr(error, "reason", error)
    left = " and continues where it stopped" if _size(part) else ""
    return NPTError(
        f"{urlsplit(url).netloc} cannot be reached or keeps breaking off ({reason}): check the "
        f"network; the same command tries again{left}. A file fetched from {url} by other means "
        f"belongs at {part.with_suffix('')}."
    )
