"""`python -m npt.data prepare` against a host on the loopback."""

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress

import pytest
from file_server import serving
from PIL import Image

from npt import download
from npt.data.__main__ import main
from npt.data.sources import BY_HAND, FETCH, Fetch, pieces
from npt.datasets.catalog import CATALOG

CLASSES = ("AnnualCrop", "River")
SPLIT = "eurosat/split_zhou_EuroSAT.json"

# The real program, whose table of sources leads to the host of the test.
PROGRAM = """
import json, sys
from npt import download
from npt.data import sources
from npt.data.__main__ import main
download.PAUSE = 0.01
for address, values in json.loads(sys.argv[1]).items():
    sources.FETCH[address] = sources.Fetch(**values)
exec(sys.argv[2])
sys.exit(main(sys.argv[3:]))
"""


def jpeg(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "jpeg")
    return stream.getvalue()


def images() -> dict[str, bytes]:
    return {f"2750/{name}/{name}_{k}.jpg": jpeg(10 * k) for name in CLASSES for k in range(1, 11)}


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def split() -> bytes:
    parts = {"train": range(1, 6), "val": range(6, 8), "test": range(8, 11)}
    lists = {
        part: [
            [f"{name}/{name}_{k}.jpg", label, name]
            for label, name in enumerate(CLASSES)
            for k in numbers
        ]
        for part, numbers in parts.items()
    }
    return json.dumps(lists).encode()


@pytest.fixture
def host():
    with serving() as host:
        host.files["EuroSAT.zip"] = zipped(images())
        host.files["split.json"] = split()
        yield host


def table(host, **changes: object) -> dict[str, dict[str, object]]:
    """EuroSAT's sources, on the host."""
    archive, lists = (address for address, _ in CATALOG["EuroSAT"].sources)
    checksum = f"md5:{hashlib.md5(host.files['EuroSAT.zip']).hexdigest()}"
    values = {"url": host.url("EuroSAT.zip"), "checksum": checksum, "takes": {"2750": "2750"}}
    return {archive: {**values, **changes}, lists: {"url": host.url("split.json")}}


@pytest.fixture
def command(host, tmp_path):
    """The arguments of a process that prepares EuroSAT from the host into tmp_path/data."""

    def build(before: str = "", **changes: object) -> list[str]:
        arguments = ["prepare", "eurosat", "--root", str(tmp_path / "data")]
        return ["-c", PROGRAM, json.dumps(table(host, **changes)), before, *arguments]

    return build


@pytest.fixture
def prepare(host, tmp_path, monkeypatch, capsys):
    """The same in this process: exit code, output, errors."""

    def run(name: str = "eurosat", sources=None, **changes: object) -> tuple[int, str, str]:
        for address, values in (sources or table(host, **changes)).items():
            monkeypatch.setitem(FETCH, address, Fetch(**values))
        code = main(["prepare", name, "--root", str(tmp_path / "data")])
        return code, *capsys.readouterr()

    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "*")
    return run


def tree(folder) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


WHOLE = {f"eurosat/{name}" for name in images()} | {SPLIT, "eurosat/prepared.json"}


def test_the_layout_is_made_recorded_and_not_made_again(host, command, prepare, python, tmp_path):
    done = python(*command(), no_proxy="*")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == WHOLE
    assert (tmp_path / "data/eurosat/2750/River/River_3.jpg").read_bytes() == jpeg(30)
    record = json.loads((tmp_path / "data/eurosat/prepared.json").read_text())
    assert record["eurosat/2750"]["checksum"].startswith("md5:")
    assert "none known" in record[SPLIT]["checksum"]
    assert "no checksum is known for split_zhou_EuroSAT.json" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("EuroSAT "))
    assert row.split() == ["EuroSAT", "yes", "10", "4", "6", "2", "0", "yes"]
    code, out, _ = prepare()
    assert code == 0 and out.count("is there") == 2
    assert len(host.asked) == 2


def test_only_what_lacks_is_fetched_and_nothing_is_overwritten(host, prepare, tmp_path):
    own = tmp_path / "data" / SPLIT
    own.parent.mkdir(parents=True)
    own.write_bytes(split() + b"\n")
    assert prepare()[0] == 0
    assert own.read_bytes() == split() + b"\n"
    assert [path for path, _ in host.asked] == ["EuroSAT.zip"]


def test_a_folder_that_is_a_link_to_another_disk_stays_one(host, prepare, tmp_path):
    (tmp_path / "big" / "elsewhere").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "eurosat").symlink_to(tmp_path / "big" / "elsewhere")
    assert prepare()[0] == 0
    assert (tmp_path / "big" / "elsewhere" / "2750" / "River").is_dir()
    assert tree(tmp_path / "big") == {p.replace("eurosat", "elsewhere", 1) for p in WHOLE}


def test_without_the_split_file_it_is_usable_and_says_so(host, prepare, tmp_path):
    del host.files["split.json"]
    code, out, err = prepare()
    assert code == 0
    assert "warning: " in err and "404" in err
    assert "do not compare with published ones" in " ".join(out.split())
    assert tree(tmp_path / "data") >= {f"eurosat/{name}" for name in images()}


def failing(prepare, tmp_path, **changes: object) -> str:
    """The one sentence of a run that fails and puts nothing into place."""
    code, _, err = prepare(**changes)
    assert code == 2
    assert not (tmp_path / "data" / "eurosat" / "2750").exists()
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_wrong_checksum(prepare, tmp_path):
    assert "does not have the checksum" in failing(prepare, tmp_path, checksum="md5:" + "0" * 32)


def test_another_archive_than_expected(host, prepare, tmp_path):
    host.files["EuroSAT.zip"] = zipped({"other/file.jpg": b""})
    assert "holds no 2750" in failing(prepare, tmp_path, checksum="")


def test_a_page_in_place_of_a_split_file(host, prepare):
    host.files["split.json"] = b"<html>Too many users have viewed this file</html>"
    code, _, err = prepare()
    assert code == 0 and "something that is no split_zhou_EuroSAT.json" in err


def test_an_evil_archive_puts_nothing_anywhere(host, prepare, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in {**images(), "../../../evil": b"x"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    host.files["EuroSAT.zip"] = stream.getvalue()
    assert "outside the folder" in failing(prepare, tmp_path, checksum="")
    assert not [p for p in tmp_path.rglob("*evil*")]
    assert not list((tmp_path / "data").rglob("*.jpg"))  # nor what came out before it


def test_no_network_is_one_sentence(command, python, tmp_path):
    done = python(*command(url="http://127.0.0.1:9/EuroSAT.zip"), no_proxy="*")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]  # before it, importing clip may warn of pkg_resources
    assert "Traceback" not in done.stderr
    assert "127.0.0.1:9 cannot be reached" in line and "the same command" in line
    assert not (tmp_path / "data" / "eurosat" / "2750").exists()


def killed_when(command: list[str], is_time) -> None:
    """Start the process, and kill it the hard way at a moment."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not is_time():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_process_killed_while_downloading_is_continued(host, command, prepare, tmp_path):
    host.holds["EuroSAT.zip"] = len(host.files["EuroSAT.zip"]) // 2
    part = tmp_path / "data" / ".eurosat.preparing" / "EuroSAT.zip.part"

    def received() -> bool:
        with suppress(FileNotFoundError):
            return part.stat().st_size > 0
        return False

    killed_when(command(), received)
    assert not (tmp_path / "data" / "eurosat").exists()
    have = part.stat().st_size
    host.holds.clear()
    host.release.set()
    assert prepare()[0] == 0
    assert ("EuroSAT.zip", f"bytes={have}-") in host.asked
    assert tree(tmp_path / "data") == WHOLE


HANG = """
import shutil, time, pathlib
from npt.data import unpack
copy, done = shutil.copyfileobj, []
def copyfileobj(*args):
    if len(done) == 5:
        pathlib.Path(sys.argv[-1], "halfway").touch()
        time.sleep(60)
    done.append(copy(*args))
unpack.shutil.copyfileobj = copyfileobj
"""


def test_a_process_killed_while_unpacking_leaves_nothing_half_written(
    host, command, prepare, tmp_path
):
    (tmp_path / "data").mkdir()
    marker = tmp_path / "data" / "halfway"
    killed_when(command(before=HANG), marker.exists)
    marker.unlink()
    assert not (tmp_path / "data" / "eurosat").exists()
    assert prepare()[0] == 0
    assert tree(tmp_path / "data") == WHOLE
    assert [path for path, _ in host.asked].count("EuroSAT.zip") == 1


def test_what_cannot_be_downloaded_is_explained(host, prepare):
    *_, (address, _) = CATALOG["StanfordCars"].sources
    code, _, err = prepare("StanfordCars", {address: {"url": host.url("split.json")}})
    assert code == 2
    assert "StanfordCars cannot be fetched" in err and "issues/7545" in err


def test_names_of_imagenet_are_copied_from_where_they_are(host, prepare, tmp_path):
    """The archive of ImageNet-R from the host; classnames.txt from beside ImageNet."""
    names = "n01443537 goldfish\nn01484850 great white shark\n"
    (tmp_path / "data" / "imagenet").mkdir(parents=True)
    (tmp_path / "data" / "imagenet" / "classnames.txt").write_text(names)
    host.files["imagenet-r.tar"] = zipped({"imagenet-r/n01443537/1.jpg": jpeg(0)})
    (address, _), _ = CATALOG["ImageNetR"].sources
    values = {"takes": {"imagenet-r": "imagenet-r"}, "url": host.url("imagenet-r.tar")}
    code, out, err = prepare("imagenet_r", {address: values})
    assert "a copy of" in out
    place = tmp_path / "data" / "imagenet-rendition"
    assert (place / "classnames.txt").read_text() == names
    assert (place / "imagenet-r" / "n01443537" / "1.jpg").read_bytes() == jpeg(0)
    assert code == 2 and "30,000 were published" in err


def test_the_archive_within_an_archive(host, prepare, tmp_path):
    """Caltech's images come as a tar in a zip."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo("101_ObjectCategories/ant/image_0001.jpg")
        info.size = len(jpeg(0))
        archive.addfile(info, io.BytesIO(jpeg(0)))
    inner = "caltech-101/101_ObjectCategories.tar.gz"
    host.files["caltech-101.zip"] = zipped({inner: stream.getvalue(), "__MACOSX/x": b""})
    (images_at, _), (split_at, _) = CATALOG["Caltech101"].sources
    sources = {
        images_at: {
            "takes": {"101_ObjectCategories": "101_ObjectCategories"},
            "url": host.url("caltech-101.zip"),
            "nested": inner,
        },
        split_at: {"url": host.url("absent.json")},
    }
    prepare("Caltech101", sources)
    place = tmp_path / "data" / "caltech-101"
    assert tree(place) == {"101_ObjectCategories/ant/image_0001.jpg", "prepared.json"}


# --------------------------------------------------------------------------- the table of sources
def test_every_address_of_the_catalog_can_be_fetched_or_is_explained():
    for row in CATALOG.values():
        for (address, _), piece in zip(row.sources, pieces(row), strict=True):
            by_hand = any(address.startswith(start) for start in BY_HAND)
            drive = address.startswith("https://drive.google.com/")
            assert by_hand or drive or address in FETCH, address
            for place in piece.goes.values():
                assert place.startswith(f"{row.folder}/") and "*" not in place, place
    known = {address for row in CATALOG.values() for address, _ in row.sources}
    assert set(FETCH) <= known


@pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
def test_the_pieces_make_up_the_layout(row):
    places = {place for piece in pieces(row) for place in piece.goes.values()}
    images = f"{row.folder}/{row.images}".rstrip("/")
    assert any(place == images or place.startswith(f"{images}/") for place in places)
    if row.split:
        assert f"{row.folder}/{row.split}" in places


def test_the_checksums_are_those_of_torchvision():
    """Where this release still has them as attributes."""
    datasets = pytest.importorskip("torchvision.datasets")
    ours = {piece.checksum for row in CATALOG.values() for piece in pieces(row)}
    names = {"Food101": "_MD5", "DTD": "_MD5", "SUN397": "_DATASET_MD5"}
    theirs = [getattr(getattr(datasets, c), a) for c, a in names.items()]
    theirs += [md5 for _, md5 in datasets.OxfordIIITPet._RESOURCES]
    theirs += [datasets.Flowers102._file_dict[key][1] for key in ("image", "label")]
    assert {f"md5:{md5}" for md5 in theirs} <= ours
