"""Unpacks untrusted archives: only plain files and folders, and only below the given folder.

Links, devices, owners and permissions of an archive are never written to disk. A link to another
file of the same archive is replaced by a copy of that file.

A small archive can hold a large one's content, by compression, links, sparse files or long headers.
What is unpacked is therefore bounded by the size of the archive (see `allowance`).
"""

from __future__ import annotations

import errno
import posixpath
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from tqdm import tqdm

from npt.errors import NPTError

EXPANSION = 20  # bytes that may be unpacked for each byte of an archive; photographs reach 1
SPARE = 100_000_000  # bytes that may be unpacked in any case
FILE = 1024  # bytes that each file counts in addition, because empty ones take space, too


class BadArchive(NPTError):
    """The archive is damaged or unsafe, or does not have the expected content."""


@dataclass
class Member:
    """A file of an archive.

    source: the name of the file that has the content; another name if the member is a link
    open: opens the content in the archive
    """

    name: str
    source: str
    size: int
    open: Callable[[], IO[bytes]]


def allowance(size: int) -> int:
    """The bytes that may be unpacked from an archive of `size` bytes."""
    return SPARE + EXPANSION * size


def unpack(
    archive: Path, folder: Path, wanted: Collection[str] = ("",), allowed: int | None = None
) -> None:
    """Write the members of a zip or tar archive into `folder`.

    wanted: only these members, and the members below them, are written
    allowed: see `allowance`; of an archive in another archive it is that of the outer one
    BadArchive if the archive is damaged, unpacks to more than is allowed, or has a member that is
    outside `folder` or is neither a file nor a folder; NPTError if the disk is too small. Files
    written before the error are not removed, so `folder` should be temporary and empty.
    """
    allowed = allowed or allowance(archive.stat().st_size)
    written: dict[str, Path] = {}  # by the name of the file that has the content
    total = 0
    try:
        members = tqdm(_members(archive, allowed), desc=archive.name, unit=" files", disable=None)
        for member in members:
            name = member.name
            total += member.size + FILE
            if total > allowed:
                raise _too_large(archive, allowed)
            if not any(_below(name, place) for place in wanted):
                continue
            _check_room(archive, member.size)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copied = written.get(member.source) if member.source != name else None
            # If a name is repeated, the last member counts. Mode "x" fails if a member with
            # another name is the same file, as on a file system that ignores case.
            with (
                copied.open("rb") if copied else member.open() as content,
                target.open("wb" if name in written else "xb") as file,
            ):
                shutil.copyfileobj(content, file, 1 << 20)
            written.setdefault(member.source, target)
            written[name] = target
    except NPTError:
        raise
    except Exception as error:  # zipfile and tarfile raise many types on a damaged archive
        code = error.errno if isinstance(error, OSError) else None
        if code in (None, errno.EINVAL):  # raised by gzip or bz2, or a place before the beginning
            raise BadArchive(
                f"{archive} is damaged ({error}): delete it and run the command again."
            ) from error
        if code == errno.ENOSPC:
            raise NPTError(
                f"the disk became full while unpacking {archive.name} in {folder}: free some space."
            ) from error
        if isinstance(error, (FileExistsError, IsADirectoryError, NotADirectoryError)):
            raise _refused(archive, name, "in conflict with another file or folder") from error
        raise


def _members(archive: Path, allowed: int) -> Iterator[Member]:
    """The files of an archive. The names of its folders are checked, too."""
    with archive.open("rb") as file:
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")  # the second: an empty archive
    if is_zip:  # zipfile.is_zipfile is also true for a tar that ends with a zip
        with zipfile.ZipFile(archive) as opened:
            yield from _of_zip(archive, opened, allowed)
    else:
        limited: Any = type("LimitedTar", (_Tar,), {"archive": archive, "allowed": allowed})
        with archive.open("rb") as file, limited.open(fileobj=file, mode="r:*") as opened_tar:
            yield from _of_tar(archive, opened_tar)


def _of_zip(archive: Path, opened: zipfile.ZipFile, allowed: int) -> Iterator[Member]:
    size = sum(info.file_size + FILE for info in opened.infolist())
    if size > allowed:
        raise _too_large(archive, allowed)
    _check_room(archive, size)
    for info in opened.infolist():
        name = _checked(archive, info.filename)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, info.filename, "as a link or device")
        if info.flag_bits & 1:
            raise _refused(archive, info.filename, "with a password")
        if not info.is_dir():
            yield Member(name, name, info.file_size, partial(opened.open, info))


def _of_tar(archive: Path, opened: tarfile.TarFile) -> Iterator[Member]:
    """First the files, then the links, in the order of their targets: so none is read twice."""
    files: dict[str, tarfile.TarInfo] = {}
    links: dict[str, tarfile.TarInfo] = {}
    for info in opened:
        name = _checked(archive, info.name)
        if info.isreg():
            files[name] = info
            yield Member(name, name, info.size, partial(_open, opened, info))
        elif info.issym() or info.islnk():
            links[name] = info
        elif not info.isdir():
            raise _refused(archive, info.name, "as a device or pipe")
    while opened.fileobj and opened.fileobj.read(1 << 20):
        pass  # read to the end of the file, where gzip stores its checksum
    targets = {name: _target(link) for name, link in links.items()}
    for name, target in targets.items():
        if target not in files:
            how = f"as a link to {links[name].linkname!r}, not a file in it"
            raise _refused(archive, name, how)
        if name in files and name != target:
            raise _refused(archive, name, "both as a file and as a link")
    for name, target in sorted(targets.items(), key=lambda pair: files[pair[1]].offset):
        if name != target:  # tar writes a link to itself if it is told to add a file twice
            found = files[target]
            yield Member(name, target, found.size, partial(_open, opened, found))


def _target(link: tarfile.TarInfo) -> str:
    """The name of a link's target in the archive."""
    beside = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(beside, link.linkname))


def _open(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = opened.extractfile(info)
    assert content is not None  # as it is for folders and devices
    return content


class _Tar(tarfile.TarFile):
    """Refuses to read beyond `allowed` bytes, counted after decompression."""

    archive: Path
    allowed: int

    @classmethod
    def taropen(cls, name: Any, mode: Any = "r", fileobj: Any = None, **more: Any) -> Any:
        limited: Any = _Limited(fileobj, cls.archive, cls.allowed)
        return super().taropen(name, mode, limited, **more)


class _Limited:
    """A file opened for reading whose first `allowed` bytes can be read."""

    def __init__(self, file: IO[bytes], archive: Path, allowed: int):
        self.file, self.archive, self.allowed = file, archive, allowed
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int) -> bytes:
        if self.tell() + size > self.allowed:
            raise _too_large(self.archive, self.allowed)
        return self.file.read(size)


def _too_large(archive: Path, allowed: int) -> BadArchive:
    return BadArchive(
        f"{archive} unpacks to more than {allowed / 1e6:,.0f} MB, which is too much for its size: "
        "it is not the expected archive; delete it."
    )


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
