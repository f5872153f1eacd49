"""Archives from strangers: only plain files and folders come out, and only below the folder given.

Nothing that an archive says of links, devices, owners or permissions reaches the disk. A link to
another file of the same archive becomes a copy of it.
"""

from __future__ import annotations

import errno
import lzma
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from tqdm import tqdm

from npt.errors import NPTError

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)


class BadArchive(NPTError):
    """The archive is damaged, or not to be trusted, or another than expected."""


# A member: its name, and what opens its content unless it is a folder.
Member = tuple[str, Callable[[], IO[bytes]] | None]


def unpack(archive: Path, folder: Path, wanted: Collection[str] = ("",)) -> None:
    """Writes the members of a zip or tar archive that are, or lie below, `wanted` into `folder`.

    BadArchive where it is damaged, or holds what could be written outside `folder` or is neither
    file nor folder; NPTError where the disk is too small. What was written by then stays, so
    `folder` should be a temporary one, and empty.
    """
    written: set[str] = set()
    try:
        for name, opener in tqdm(_members(archive), desc=archive.name, unit=" files", disable=None):
            if opener is not None and any(_below(name, place) for place in wanted):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # A name may come again (the last counts), but not where the file system takes it
                # for another's, as with capitals: then "x" finds a file there.
                with opener() as content, target.open("wb" if name in written else "xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                written.add(name)
    except (*DAMAGE, NotImplementedError, OSError) as error:
        if not isinstance(error, OSError) or error.errno is None:  # gzip and bz2 raise the latter
            raise BadArchive(
                f"{archive} is damaged ({error}): delete it, and run the command again."
            ) from error
        if error.errno == errno.ENOSPC:
            raise NPTError(
                f"the disk is full while unpacking {archive.name} in {folder}: make room."
            ) from error
        if isinstance(error, (FileExistsError, IsADirectoryError, NotADirectoryError)):
            raise _refused(archive, name, "where it has another file or folder already") from error
        raise


def _members(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as file:
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")  # the latter of an empty one
    if is_zip:  # zipfile.is_zipfile would take a tar that ends with a zip for one
        with zipfile.ZipFile(archive) as opened:
            yield from _of_zip(archive, opened)
    else:
        with tarfile.open(archive, "r:*") as opened_tar:
            yield from _of_tar(archive, opened_tar)


def _of_zip(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    _check_room(archive, sum(info.file_size for info in opened.infolist()))
    for info in opened.infolist():
        name = _checked(archive, info.filename)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, info.filename, "as a link or device")
        if info.flag_bits & 1:
            raise _refused(archive, info.filename, "under a password")
        yield name, None if info.is_dir() else partial(opened.open, info)


def _of_tar(archive: Path, opened: tarfile.TarFile) -> Iterator[Member]:
    for info in opened:
        name = _checked(archive, info.name)
        if info.isdir():
            yield name, None
        elif info.isreg():
            _check_room(archive, info.size)  # of this file alone: what follows is not known yet
            yield name, partial(opened.extractfile, info)  # type: ignore[arg-type]
        elif info.issym() or info.islnk():
            yield name, _linked(archive, opened, info)
        else:
            raise _refused(archive, info.name, "as a device or pipe")
    while opened.fileobj and opened.fileobj.read(1 << 20):
        pass  # to the end of the file, where gzip keeps its checksum


def _linked(
    archive: Path, opened: tarfile.TarFile, link: tarfile.TarInfo
) -> Callable[[], IO[bytes]]:
    """What opens the file that a link stands for, which must be one of the same archive."""
    beside = posixpath.dirname(link.name) if link.issym() else ""
    target = posixpath.normpath(posixpath.join(beside, link.linkname))
    found = next((m for m in opened.getmembers() if posixpath.normpath(m.name) == target), None)
    if found is None or not found.isreg():
        raise _refused(archive, link.name, f"as a link to {link.linkname!r}, no file of its own")
    return partial(opened.extractfile, found)  # type: ignore[arg-type]


def _check_room(archive: Path, size: int) -> None:
    room = shutil.disk_usage(archive.parent).free
    if size > room:
        raise NPTError(
            f"{archive.name} unpacks to {size / 1e9:.1f} GB, but {archive.parent} has room for "
            f"{room / 1e9:.1f} GB: make room, and run the command again."
        )


def _checked(archive: Path, name: str) -> str:
    """The member's name without `./` and doubled slashes, where it stays below the folder."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = path.is_absolute() or windows.drive or windows.root or ".." in windows.parts
    if outside or "\\" in name or "\0" in name:
        raise _refused(archive, name, "outside the folder it is unpacked in")
    return path.as_posix()


def _below(name: str, place: str) -> bool:
    return not place or name == place or name.startswith(f"{place}/")


def _refused(archive: Path, name: str, how: str) -> BadArchive:
    return BadArchive(
        f"{archive} holds {name!r} {how}, so it is not unpacked: delete it, it is not the archive "
        "that it should be."
    )
