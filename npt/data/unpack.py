"""Unpacks untrusted archives: only plain files and folders, and only below the given folder.

Links, devices, owners and permissions of an archive are never written to disk. A link to another
file of the same archive is replaced by a copy of that file.
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
    """The archive is damaged or unsafe, or does not have the expected content."""


# A member: its name, and a function that opens its content (None for a folder).
Member = tuple[str, Callable[[], IO[bytes]] | None]


def unpack(archive: Path, folder: Path, wanted: Collection[str] = ("",)) -> None:
    """Write the members of a zip or tar archive into `folder`.

    wanted: only these members, and the members below them, are written
    BadArchive if the archive is damaged, or has a member that is outside `folder` or is neither a
    file nor a folder; NPTError if the disk is too small. Files written before the error are not
    removed, so `folder` should be temporary and empty.
    """
    written: set[str] = set()
    try:
        for name, opener in tqdm(_members(archive), desc=archive.name, unit=" files", disable=None):
            if opener is not None and any(_below(name, place) for place in wanted):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # If a name is repeated, the last member counts. Mode "x" fails if a member with
                # another name is the same file, as on a file system that ignores case.
                with opener() as content, target.open("wb" if name in written else "xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                written.add(name)
    except (*DAMAGE, NotImplementedError, OSError) as error:
        if not isinstance(error, OSError) or error.errno is None:  # None: raised by gzip or bz2
            raise BadArchive(
                f"{archive} is damaged ({error}): delete it and run the command again."
            ) from error
        if error.errno == errno.ENOSPC:
            raise NPTError(
                f"the disk became full while unpacking {archive.name} in {folder}: free some space."
            ) from error
        if isinstance(error, (FileExistsError, IsADirectoryError, NotADirectoryError)):
            raise _refused(archive, name, "in conflict with another file or folder") from error
        raise


def _members(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as file:
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")  # the second: an empty archive
    if is_zip:  # zipfile.is_zipfile is also true for a tar that ends with a zip
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
            raise _refused(archive, info.filename, "with a password")
        yield name, None if info.is_dir() else partial(opened.open, info)


def _of_tar(archive: Path, opened: tarfile.TarFile) -> Iterator[Member]:
    for info in opened:
        name = _checked(archive, info.name)
        if info.isdir():
            yield name, None
        elif info.isreg():
            _check_room(archive, info.size)  # only of this file: later ones are not known yet
            yield name, partial(_open, opened, info)
        elif info.issym() or info.islnk():
            yield name, _linked(archive, opened, info)
        else:
            raise _refused(archive, info.name, "as a device or pipe")
    while opened.fileobj and opened.fileobj.read(1 << 20):
        pass  # read to the end of the file, where gzip stores its checksum


def _linked(
    archive: Path, opened: tarfile.TarFile, link: tarfile.TarInfo
) -> Callable[[], IO[bytes]]:
    """A function that opens the target of a link, which must be a file of the same archive."""
    beside = posixpath.dirname(link.name) if link.issym() else ""
    target = posixpath.normpath(posixpath.join(beside, link.linkname))
    found = next((m for m in opened.getmembers() if posixpath.normpath(m.name) == target), None)
    if found is None or not found.isreg():
        raise _refused(archive, link.name, f"as a link to {link.linkname!r}, not a file in it")
    return partial(_open, opened, found)


def _open(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = opened.extractfile(info)
    assert content is not None  # as it is for folders and devices
    return content


def _check_room(archive: Path, size: int) -> None:
    free = shutil.disk_usage(archive.parent).free
    if size > free:
        raise NPTError(
            f"{archive.name} unpacks to {size / 1e9:.1f} GB, but {archive.parent} has "
            f"{free / 1e9:.1f} GB free: free some space and run the command again."
        )


def _checked(archive: Path, name: str) -> str:
    """The member's name without `./` and repeated slashes. BadArchive if it leaves the folder."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = path.is_absolute() or windows.drive or windows.root or ".." in windows.parts
    if outside or "\\" in name or "\0" in name:
        raise _refused(archive, name, "outside the target folder")
    return path.as_posix()


def _below(name: str, place: str) -> bool:
    return not place or name == place or name.startswith(f"{place}/")


def _refused(archive: Path, name: str, how: str) -> BadArchive:
    return BadArchive(
        f"{archive} contains {name!r} {how}, so it is not unpacked: it is not the expected "
        "archive; delete it."
    )
