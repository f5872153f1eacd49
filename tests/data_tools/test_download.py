"""Downloads from a local host with the faults of real hosts."""

import hashlib
import random
import socket

import pytest
from file_server import Host, serving

from npt import download
from npt.download import fetch
from npt.errors import NPTError

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "*")
    with serving() as host:
        host.files["a.zip"] = CONTENT
        yield host


@pytest.fixture
def file(tmp_path):
    return tmp_path / "data" / "a.zip"


def ranges(host: Host) -> list[str]:
    return [wanted for _, wanted in host.asked]


def is_alone(file) -> bool:
    return [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("checksum", ["", MD5, SHA256])
def test_a_file_is_downloaded_and_no_other_file_remains(host, file, checksum):
    assert fetch(host.url("a.zip"), file, checksum) == file
    assert file.read_bytes() == CONTENT
    assert is_alone(file)


def test_an_existing_file_is_verified_and_not_downloaded_again(host, file):
    fetch(host.url("a.zip"), file, MD5)
    fetch(host.url("a.zip"), file, MD5)
    assert len(host.asked) == 1
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(NPTError, match="delete it"):
        fetch(host.url("a.zip"), file, MD5)
    assert len(host.asked) == 1


@pytest.mark.parametrize("etag", ["", '"v1"'])
def test_an_interrupted_download_is_resumed(host, file, etag):
    host.etags["a.zip"] = etag
    host.cuts["a.zip"] = [100_000, 50_000]
    fetch(host.url("a.zip"), file, SHA256)
    assert ranges(host) == ["", "bytes=100000-", "bytes=150000-"]
    assert file.read_bytes() == CONTENT


def test_a_later_call_resumes_an_earlier_one(host, file):
    host.etags["a.zip"] = '"v1"'
    host.cuts["a.zip"] = [1000, *[0] * download.ATTEMPTS]
    with pytest.raises(NPTError, match=r"keeps failing.*continues where it stopped"):
        fetch(host.url("a.zip"), file)
    assert not file.exists()
    host.cuts.clear()
    fetch(host.url("a.zip"), file)
    assert ranges(host)[-1] == "bytes=1000-"
    assert file.read_bytes() == CONTENT and is_alone(file)


def test_another_version_on_the_host_is_downloaded_from_the_beginning(host, file):
    """Parts of two versions must not be mixed, even without a checksum."""
    host.etags["a.zip"] = '"v1"'
    host.cuts["a.zip"] = [1000, *[0] * download.ATTEMPTS]
    with pytest.raises(NPTError):
        fetch(host.url("a.zip"), file)
    host.cuts.clear()
    host.files["a.zip"], host.etags["a.zip"] = CONTENT[::-1], '"v2"'
    fetch(host.url("a.zip"), file)
    assert file.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("saved", [b"\xff\xfe", b"a\r\nHost: other"])
def test_a_damaged_version_means_a_download_from_the_beginning(host, file, saved):
    file.parent.mkdir(exist_ok=True)
    file.with_name(f"{file.name}.part").write_bytes(b"other content")
    file.with_name(f"{file.name}.part.of").write_bytes(saved)
    fetch(host.url("a.zip"), file)
    assert file.read_bytes() == CONTENT and is_alone(file)


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_version_and_checksum_a_download_is_not_resumed(host, file, etag):
    host.etags["a.zip"] = etag
    host.cuts["a.zip"] = [1000]
    fetch(host.url("a.zip"), file)
    assert ranges(host) == ["", ""]
    assert file.read_bytes() == CONTENT


def test_a_host_without_range_requests_sends_the_whole_file_again(host, file):
    host.no_ranges.add("a.zip")
    host.cuts["a.zip"] = [1000]
    fetch(host.url("a.zip"), file, MD5)
    assert ranges(host) == ["", "bytes=1000-"]
    assert file.read_bytes() == CONTENT


def test_a_complete_part_is_kept(host, file):
    """The process was killed after the last byte, before renaming the file."""
    file.parent.mkdir()
    file.with_name("a.zip.part").write_bytes(CONTENT)
    fetch(host.url("a.zip"), file, MD5)
    assert file.read_bytes() == CONTENT and ranges(host) == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_too_long_is_discarded(host, file):
    file.parent.mkdir()
    file.with_name("a.zip.part").write_bytes(CONTENT + b"more")
    fetch(host.url("a.zip"), file, MD5)
    assert file.read_bytes() == CONTENT


def test_a_part_of_another_file_is_discarded(host, file):
    file.parent.mkdir()
    file.with_name("a.zip.part").write_bytes(b"something else")
    fetch(host.url("a.zip"), file, MD5)
    assert file.read_bytes() == CONTENT


def test_a_file_with_a_wrong_checksum_is_deleted(host, file):
    host.files["a.zip"] = CONTENT[::-1]
    with pytest.raises(NPTError, match=f"does not have the checksum {SHA256}"):
        fetch(host.url("a.zip"), file, SHA256)
    assert not list(file.parent.iterdir())


def test_a_busy_host_gets_another_request(host, file):
    host.statuses["a.zip"] = [503, 429]
    fetch(host.url("a.zip"), file, MD5)
    assert len(host.asked) == 3


def test_a_missing_file_is_an_error_at_once(host, file):
    with pytest.raises(NPTError, match="answers 404"):
        fetch(host.url("b.zip"), file)
    assert len(host.asked) == 1 and not file.exists()


def test_a_web_page_is_an_error(host, file):
    """Google Drive sends one if a file was downloaded too often."""
    host.types["a.zip"] = "text/html; charset=utf-8"
    with pytest.raises(NPTError, match="web page instead of the file"):
        fetch(host.url("a.zip"), file)


def test_a_download_is_resumed_after_a_redirection(host, file):
    host.redirects["r.zip"] = host.url("a.zip")
    host.cuts["a.zip"] = [1000]
    fetch(host.url("r.zip"), file, MD5)
    assert host.asked[-1] == ("a.zip", "bytes=1000-")
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a.zip", "file:///etc/hostname"])
def test_only_http_is_downloaded(host, file, target):
    host.redirects["r.zip"] = target
    with pytest.raises(NPTError):
        fetch(host.url("r.zip"), file)
    with pytest.raises(NPTError, match="only http and https"):
        fetch(target, file)
    assert not file.exists()


def test_a_refused_connection_is_an_error_of_one_sentence(file, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(NPTError, match=rf"127.0.0.1:{port} cannot be reached") as caught:
        fetch(f"http://127.0.0.1:{port}/a.zip", file)
    assert "\n" not in str(caught.value)


def test_too_little_disk_space_is_an_error_before_the_download(host, file, monkeypatch):
    usage = download.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NPTError, match="free some space"):
        fetch(host.url("a.zip"), file)


def test_clip_models_are_downloaded_and_verified(host, tmp_path, monkeypatch):
    """The checksum is in the address. An incomplete file of clip's own download is replaced."""
    from npt.backbones import sources

    monkeypatch.setenv("HOME", str(tmp_path))
    sha256 = SHA256.removeprefix("sha256:")
    host.files[f"{sha256}/ViT-B-16.pt"] = CONTENT
    monkeypatch.setitem(
        sources.MODELS, "ViT-B/16", sources.MODELS["ViT-B/16"]._replace(sha256=sha256)
    )
    monkeypatch.setattr(sources, "ADDRESS", host.url("").rstrip("/"))
    half = tmp_path / ".cache" / "clip" / "ViT-B-16.pt"
    half.parent.mkdir(parents=True)
    half.write_bytes(CONTENT[:1000])
    assert sources.fetch_openai("ViT-B/16") == half and half.read_bytes() == CONTENT
    sources.fetch_openai("ViT-B/16")
    assert len(host.asked) == 1
