"""The copy of a data set at another host, for files that their own hosts do not give."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from npt.data.unpack import unpack
from npt.datasets.catalog import Mirror
from npt.download import RemoteFile, Unavailable, fetch, read
from npt.errors import NPTError


def get_folders(mirror: Mirror, work: Path, wanted: Collection[str], ready: Path) -> str:
    """Download the archive into `work`, verify it, and unpack what is `wanted` of it into `ready`.

    Returns the checksum. NPTError if that is not possible.
    """
    checksum = mirror.checksum or listed_checksum(mirror)
    archive = fetch(mirror.url, work / f"mirror-{file_name(mirror)}", checksum)
    unpack(archive, ready, wanted)
    archive.unlink()
    return checksum


def get_files(mirror: Mirror, wanted: Collection[str], ready: Path) -> None:
    """Write single files of the archive into `ready`, without downloading the rest of it.

    They are verified by the checksums (CRC) inside of the archive only. NPTError if that is not
    possible; files that are not in it are left out.
    """
    try:
        with (
            io.BufferedReader(RemoteFile(mirror.url), 1 << 20) as remote,
            zipfile.ZipFile(remote) as archive,
        ):
            for name in sorted(set(wanted) & set(archive.namelist())):
                target = ready / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as content, target.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
    except NPTError:
        raise
    except Exception as error:  # zipfile raises many types on a damaged archive
        raise Unavailable(f"{mirror.url} cannot be read ({error}): try again later.") from error


def file_name(mirror: Mirror) -> str:
    return PurePosixPath(unquote(urlsplit(mirror.url).path)).name


def listed_checksum(mirror: Mirror) -> str:
    """The checksum of the archive in the list of files of its host.

    Hugging Face lists a large file as {"path": ..., "lfs": {"oid": <sha256>}}. Unavailable if there
    is none.
    """
    try:
        entries: Any = json.loads(read(mirror.listing))
        oids = {entry["path"]: entry.get("lfs", {}).get("oid", "") for entry in entries}
        oid = oids.get(file_name(mirror), "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        oid = ""
    if not (isinstance(oid, str) and len(oid) == 64):
        raise Unavailable(f"{mirror.listing} lists no checksum of {file_name(mirror)}.")
    return f"sha256:{oid}"
