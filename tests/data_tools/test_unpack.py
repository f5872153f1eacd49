"""Unpacking of safe, unsafe and damaged archives."""

import io
import os
import stat
import tarfile
import zipfile

import pytest

from npt.data import unpack as module
from npt.data.unpack import unpack
from npt.errors import NPTError


def tar(path, *members, mode="w:gz"):
    """Members are (name, content), or a TarInfo."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o6777
            archive.addfile(info, io.BytesIO(content))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def special(name, kind):
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


def zipped(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_archives(tmp_path, mode):
    archive = tar(tmp_path / "a", ("./x/1", b"one"), ("x//2", b"two"), ("y", b"three"), mode=mode)
    unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == {"x/1": b"one", "x/2": b"two", "y": b"three"}


def test_a_tar_that_contains_a_zip(tmp_path):
    inner = zipped(tmp_path / "a.zip", ("x", b"x")).read_bytes()
    unpack(tar(tmp_path / "a.tar", ("a.zip", inner), mode="w"), tmp_path / "out")
    assert files(tmp_path / "out") == {"a.zip": inner}


def test_only_wanted_members_are_unpacked(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("x/1", b"1"), ("xy/2", b"2"), ("z", b"3"), ("w/", b""))
    unpack(archive, tmp_path / "out", ["x", "z"])
    assert files(tmp_path / "out") == {"x/1": b"1", "z": b"3"}


def test_permissions_are_not_unpacked(tmp_path):
    unpack(tar(tmp_path / "a", ("x", b"x")), tmp_path / "out")
    mode = (tmp_path / "out" / "x").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)


EVIL_NAMES = ["../evil", "x/../../evil", "/etc/evil", "C:/evil", "C:\\evil", "..\\evil", "//h/evil"]


@pytest.mark.parametrize("name", EVIL_NAMES)
@pytest.mark.parametrize("make", [tar, zipped])
def test_names_outside_the_folder_are_an_error(tmp_path, make, name):
    """Even if that member is not wanted: the whole archive is refused."""
    (tmp_path / "in").mkdir()
    archive = make(tmp_path / "in" / "a", (name, b"x"))
    with pytest.raises(NPTError, match="outside the target folder"):
        unpack(archive, tmp_path / "in" / "out", ["wanted"])
    assert files(tmp_path) == {"in/a": archive.read_bytes()}


@pytest.mark.parametrize(
    "member",
    [
        link("x", "/etc/passwd"),
        link("x", "../secret"),
        link("a/x", "../../secret"),
        link("x", "../secret", tarfile.LNKTYPE),
        link("x", "/etc/passwd", tarfile.LNKTYPE),
        link("x", "absent"),
        special("x", tarfile.CHRTYPE),
        special("x", tarfile.BLKTYPE),
        special("x", tarfile.FIFOTYPE),
    ],
    ids=lambda m: f"{m.name}-{m.linkname or m.type!r}",
)
def test_links_to_other_files_and_devices_are_refused(tmp_path, member):
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(NPTError, match="is not unpacked"):
        unpack(tar(tmp_path / "a", ("good", b"x"), member), tmp_path / "out")
    assert not os.path.lexists(tmp_path / "out" / "x")


def test_no_file_is_written_through_a_link_to_a_folder(tmp_path):
    (tmp_path / "outside").mkdir()
    archive = tar(tmp_path / "a", link("x", "../outside"), ("x/evil", b"x"))
    with pytest.raises(NPTError):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("kind, target", [(tarfile.SYMTYPE, "1"), (tarfile.LNKTYPE, "x/1")])
def test_a_link_to_a_file_of_the_archive_becomes_a_copy(tmp_path, kind, target):
    unpack(tar(tmp_path / "a", ("x/1", b"one"), link("x/2", target, kind)), tmp_path / "out")
    assert files(tmp_path / "out") == {"x/1": b"one", "x/2": b"one"}
    assert not (tmp_path / "out" / "x" / "2").is_symlink()
    assert (tmp_path / "out" / "x" / "2").stat().st_nlink == 1


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("x")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(NPTError, match="as a link"):
        unpack(zipped(tmp_path / "a.zip", (info, "/etc/passwd")), tmp_path / "out")


def test_a_name_of_both_a_file_and_a_folder_is_refused(tmp_path):
    with pytest.raises(NPTError, match="'x/y' in conflict with another file or folder"):
        unpack(tar(tmp_path / "a", ("x", b"1"), ("x/y", b"2")), tmp_path / "out")
    with pytest.raises(NPTError, match="'x' in conflict with another file or folder"):
        unpack(tar(tmp_path / "b", ("x/y", b"2"), ("x", b"1")), tmp_path / "out2")


def test_the_last_member_of_a_repeated_name_counts(tmp_path):
    unpack(tar(tmp_path / "a", ("x", b"old"), ("y", b"2"), ("x", b"new")), tmp_path / "out")
    assert files(tmp_path / "out") == {"x": b"new", "y": b"2"}


def test_names_that_are_equal_for_the_file_system_are_refused(tmp_path, monkeypatch):
    """On a file system that ignores case, `X` would replace `x`."""
    opened = module.Path.open
    monkeypatch.setattr(module.Path, "open", lambda p, *a: opened(p.parent / p.name.casefold(), *a))
    with pytest.raises(NPTError, match="'X' in conflict with another file or folder"):
        unpack(tar(tmp_path / "a", ("x", b"1"), ("X", b"2")), tmp_path / "out")


@pytest.mark.parametrize("make", [tar, zipped])
def test_a_damaged_archive_is_an_error(tmp_path, make):
    archive = make(tmp_path / "a", ("x", os.urandom(100_000)))
    content = bytearray(archive.read_bytes())
    content[50_000:50_100] = bytes(100)
    archive.write_bytes(content)
    with pytest.raises(NPTError, match="is damaged"):
        unpack(archive, tmp_path / "out")
    archive.write_bytes(content[:40_000])
    with pytest.raises(NPTError, match="is damaged"):
        unpack(archive, tmp_path / "out2")
    archive.write_bytes(b"")
    with pytest.raises(NPTError, match="is damaged"):
        unpack(archive, tmp_path / "out3")


@pytest.mark.parametrize("make", [tar, zipped])
def test_too_little_disk_space_is_an_error_before_unpacking(tmp_path, monkeypatch, make):
    archive = make(tmp_path / "a", ("x", bytes(10**6)))
    usage = module.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NPTError, match="free some space"):
        unpack(archive, tmp_path / "out")
