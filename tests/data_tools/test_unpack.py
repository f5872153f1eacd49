"""Unpacking of safe, unsafe and damaged archives."""

import gzip
import io
import os
import stat
import tarfile
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.data import unpack as module
from npt.data.unpack import BadArchive, unpack
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


# --------------------------------------------------------------------------- bombs
@pytest.fixture
def small(monkeypatch):
    """The bytes that any archive may write are few."""
    monkeypatch.setattr(module, "SPARE", 300_000)


def size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def linked(path, mode="w:gz", kind=tarfile.LNKTYPE, number=1000, length=50_000):
    links = [link(f"links/{k}", "a" if kind == tarfile.LNKTYPE else "../a", kind) for k in
             range(number)]  # fmt: skip
    return tar(path, ("a", os.urandom(100) * (length // 100)), *links, mode=mode)


def pax(path, length):
    """A header of a gigabyte of spaces, which tarfile reads into memory."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x")
        info.pax_headers = {"comment": " " * length}
        archive.addfile(info)
    return path


def sparse(path):
    """A file of 1 TB of which nothing is stored."""
    info = tarfile.TarInfo("x")
    info.pax_headers = {"GNU.sparse.size": "1000000000000", "GNU.sparse.map": "0,0"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return path


BOMBS = {
    "hard links": linked,
    "symbolic links": lambda path: linked(path, kind=tarfile.SYMTYPE),
    "zeros in gz": lambda path: tar(path, ("x", bytes(10**7))),
    "zeros in xz": lambda path: tar(path, ("x", bytes(10**7)), mode="w:xz"),
    "zeros in zip": lambda path: zipped(path, ("x", bytes(10**7))),
    "zeros after the end": lambda path: path.write_bytes(
        gzip.compress(gzip.decompress(tar(path, ("x", b"x")).read_bytes()) + bytes(10**7))
    ),
    "many files": lambda path: tar(path, *((f"x{k}", b"") for k in range(1000))),
    "long header": lambda path: pax(path, 10**7),
    "sparse": sparse,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_archive_writes_little(tmp_path, small, bomb):
    archive = tmp_path / "a"
    BOMBS[bomb](archive)
    allowed = module.allowance(archive.stat().st_size)
    with pytest.raises(BadArchive, match=f"{archive} unpacks to more than"):
        unpack(archive, tmp_path / "out")
    assert size(tmp_path / "out") < allowed


def test_what_is_not_wanted_counts(tmp_path, small):
    """It is not written, but it has to be decompressed."""
    archive = tar(tmp_path / "a", ("x", bytes(10**7)), ("y", b"y"))
    with pytest.raises(BadArchive, match="unpacks to more than"):
        unpack(archive, tmp_path / "out", ["y"])


def test_an_archive_in_an_archive_has_the_allowance_of_the_outer_one(tmp_path, small):
    inner = zipped(tmp_path / "inner", ("x", os.urandom(1000) * 100))
    unpack(inner, tmp_path / "out")
    with pytest.raises(BadArchive, match="unpacks to more than"):
        unpack(inner, tmp_path / "out2", allowed=10_000)


def test_images_that_are_linked_from_several_folders_are_unpacked(tmp_path, small):
    images = [(f"all/{k}.jpg", os.urandom(20_000)) for k in range(40)]
    links = [link(f"{part}/{k}.jpg", f"all/{k}.jpg", tarfile.LNKTYPE) for k in range(40) for part
             in ("train", "base", "small")]  # fmt: skip
    unpack(tar(tmp_path / "a", *images, *links), tmp_path / "out", ["train", "base"])
    expected = {f"{part}/{k}.jpg": images[k][1] for k in range(40) for part in ("train", "base")}
    assert files(tmp_path / "out") == expected


def test_many_links_take_no_time_in_a_compressed_archive(tmp_path):
    """A compressed file that is read backwards is decompressed from its beginning."""
    padding = ("first", bytes(30_000_000))
    links = [link(f"links/{k}", "second", tarfile.LNKTYPE) for k in range(1000)]
    archive = tar(tmp_path / "a", padding, ("second", b"2"), *links)
    start = time.process_time()
    unpack(archive, tmp_path / "out", ["links"])
    assert time.process_time() - start < 10  # it was 60
    assert set(files(tmp_path / "out").values()) == {b"2"}


def test_a_link_before_its_target_and_a_link_to_itself(tmp_path):
    members = (link("x", "y", tarfile.LNKTYPE), ("y", b"y"), link("y", "y", tarfile.LNKTYPE))
    unpack(tar(tmp_path / "a", *members), tmp_path / "out")
    assert files(tmp_path / "out") == {"x": b"y", "y": b"y"}


@pytest.mark.parametrize("first", [True, False])
def test_a_name_of_both_a_file_and_a_link_is_refused(tmp_path, first):
    both = [link("x", "y", tarfile.LNKTYPE), ("x", b"x")]
    archive = tar(tmp_path / "a", ("y", b"y"), *(both if first else both[::-1]))
    with pytest.raises(BadArchive, match="'x' both as a file and as a link"):
        unpack(archive, tmp_path / "out")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_ends_in_the_same_files_or_one_sentence(data):
    kind = data.draw(st.sampled_from([tar, zipped]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        content = bytearray(
            kind(path, ("x/1", b"one" * 50), ("y", b"two")).read_bytes()
            if kind is zipped
            else tar(
                path, ("x/1", b"one" * 50), link("z", "y"), ("y", b"two"), mode="w"
            ).read_bytes()
        )
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, min(2000, len(content)) - 1))] = data.draw(
                st.integers(0, 255)
            )
        path.write_bytes(content)
        with suppress(NPTError):
            unpack(path, Path(folder) / "out")


def test_headers_within_headers_are_an_error(tmp_path):
    """tarfile calls itself for each long name before a header."""
    header = special("x", tarfile.GNUTYPE_LONGNAME)
    header.size = 512
    block = header.tobuf(tarfile.GNU_FORMAT) + b"n".ljust(512, b"\0")
    (tmp_path / "a").write_bytes(block * 5000 + bytes(1024))
    with pytest.raises(BadArchive, match="is damaged"):
        unpack(tmp_path / "a", tmp_path / "out")
