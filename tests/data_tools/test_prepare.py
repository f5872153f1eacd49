"""`python -m npt.data prepare` with a local host."""

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
from dataclasses import replace

import pytest
from file_server import serving
from PIL import Image

from npt import download
from npt.data.__main__ import main
from npt.data.sources import pieces
from npt.datasets.catalog import CATALOG, DRIVE, Mirror, Row
from npt.files import read_record

CLASSES = ("AnnualCrop", "River")
SPLIT = "eurosat/split_zhou_EuroSAT.json"

# The real program, with the sources of EuroSAT on the host of the test.
PROGRAM = """
import json, sys
from dataclasses import replace
from npt import download
from npt.data.__main__ import main
from npt.datasets.catalog import CATALOG
download.PAUSE = 0.01
row = CATALOG["EuroSAT"]
changed = zip(row.sources, json.loads(sys.argv[1]), strict=True)
sources = tuple(replace(source, **changes) for source, changes in changed)
CATALOG["EuroSAT"] = replace(row, sources=sources, mirror=None)
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


def eurosat(host, **changes: object) -> list[dict[str, object]]:
    """The changes of EuroSAT's sources (archive, split file) that lead to the host."""
    checksum = f"md5:{hashlib.md5(host.files['EuroSAT.zip']).hexdigest()}"
    archive = {"url": host.url("EuroSAT.zip"), "checksum": checksum, **changes}
    return [archive, {"url": host.url("split.json")}]


@pytest.fixture
def command(host, tmp_path):
    """The arguments of a process that prepares EuroSAT from the host into tmp_path/data."""

    def build(before: str = "", **changes: object) -> list[str]:
        arguments = ["prepare", "eurosat", "--root", str(tmp_path / "data")]
        return ["-c", PROGRAM, json.dumps(eurosat(host, **changes)), before, *arguments]

    return build


@pytest.fixture
def prepare(host, tmp_path, monkeypatch, capsys):
    """The same in this process, for any data set: exit code, output, errors."""

    def run(
        name: str = "EuroSAT", sources=None, mirror=None, **changes: object
    ) -> tuple[int, str, str]:
        row = CATALOG[name]
        pairs = zip(row.sources, sources or eurosat(host, **changes), strict=True)
        changed = tuple(replace(source, **values) for source, values in pairs)
        monkeypatch.setitem(CATALOG, name, replace(row, sources=changed, mirror=mirror))
        code = main(["prepare", name, "--root", str(tmp_path / "data")])
        return code, *capsys.readouterr()

    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "*")
    return run


def tree(folder) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


WHOLE = {f"eurosat/{name}" for name in images()} | {SPLIT, "eurosat/prepared.json"}


def test_a_data_set_is_downloaded_recorded_and_not_downloaded_again(
    host, command, prepare, python, tmp_path
):
    done = python(*command(), no_proxy="*")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == WHOLE
    assert (tmp_path / "data/eurosat/2750/River/River_3.jpg").read_bytes() == jpeg(30)
    record = json.loads((tmp_path / "data/eurosat/prepared.json").read_text())
    assert record["eurosat/2750"]["checksum"].startswith("md5:")
    assert "none published" in record[SPLIT]["checksum"]
    assert "no checksum is published for split_zhou_EuroSAT.json" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("EuroSAT "))
    assert row.split() == ["EuroSAT", "yes", "10", "4", "6", "2", "0", "yes"]
    code, out, _ = prepare()
    assert code == 0 and out.count("already there") == 2
    assert len(host.asked) == 2


def test_only_missing_files_are_downloaded_and_no_file_is_overwritten(host, prepare, tmp_path):
    own = tmp_path / "data" / SPLIT
    own.parent.mkdir(parents=True)
    own.write_bytes(split() + b"\n")
    assert prepare()[0] == 0
    assert own.read_bytes() == split() + b"\n"
    assert [path for path, _ in host.asked] == ["EuroSAT.zip"]


def test_a_folder_that_is_a_link_to_another_disk_stays_a_link(host, prepare, tmp_path):
    (tmp_path / "big" / "elsewhere").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "eurosat").symlink_to(tmp_path / "big" / "elsewhere")
    assert prepare()[0] == 0
    assert (tmp_path / "big" / "elsewhere" / "2750" / "River").is_dir()
    assert tree(tmp_path / "big") == {p.replace("eurosat", "elsewhere", 1) for p in WHOLE}


def test_without_the_split_file_there_is_a_warning(host, prepare, tmp_path):
    del host.files["split.json"]
    code, out, err = prepare()
    assert code == 0
    assert "warning: " in err and "404" in err
    assert "are not comparable with published ones" in " ".join(out.split())
    assert tree(tmp_path / "data") >= {f"eurosat/{name}" for name in images()}


def failing(prepare, tmp_path, **changes: object) -> str:
    """The error message of a run that fails and moves no file into place."""
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
    assert "does not contain 2750" in failing(prepare, tmp_path, checksum="")


def test_a_web_page_instead_of_a_split_file(host, prepare):
    host.files["split.json"] = b"<html>Too many users have viewed this file</html>"
    code, _, err = prepare()
    assert code == 0 and "is not a valid split_zhou_EuroSAT.json" in err


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff", b"[]", b'{"train": []}'])
def test_a_damaged_split_file_is_not_put_into_place(host, prepare, content, tmp_path):
    host.files["split.json"] = content
    code, _, err = prepare()
    assert code == 0 and "is not a valid split_zhou_EuroSAT.json" in err
    assert not (tmp_path / "data" / SPLIT).exists()


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff", b"[]", b""])
def test_a_damaged_record_is_replaced(host, prepare, content, tmp_path):
    record = tmp_path / "data" / "eurosat" / "prepared.json"
    record.parent.mkdir(parents=True)
    record.write_bytes(content)
    assert prepare()[0] == 0
    assert {"eurosat/2750", SPLIT} <= set(json.loads(record.read_text()))


def test_an_archive_that_unpacks_to_too_much_is_deleted(host, prepare, tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("2750/River/River_1.jpg", bytes(11 * 10**7))
    host.files["EuroSAT.zip"] = stream.getvalue()
    assert "unpacks to more than" in failing(prepare, tmp_path, checksum="")
    assert tree(tmp_path / "data" / ".eurosat.preparing") <= {"lock", "split.json"}


def test_no_file_of_an_unsafe_archive_remains(host, prepare, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in {**images(), "../../../evil": b"x"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    host.files["EuroSAT.zip"] = stream.getvalue()
    assert "outside the target folder" in failing(prepare, tmp_path, checksum="")
    assert not [p for p in tmp_path.rglob("*evil*")]
    assert not list((tmp_path / "data").rglob("*.jpg"))  # nor the files unpacked before it


def test_no_network_is_an_error_of_one_sentence(command, python, tmp_path):
    done = python(*command(url="http://127.0.0.1:9/EuroSAT.zip"), no_proxy="*")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]  # before it, importing clip may warn of pkg_resources
    assert "Traceback" not in done.stderr
    assert "127.0.0.1:9 cannot be reached" in line and "the same command" in line
    assert not (tmp_path / "data" / "eurosat" / "2750").exists()


def killed_when(command: list[str], is_time) -> None:
    """Start a process, and kill it with SIGKILL when `is_time()` becomes true."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not is_time():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_download_of_a_killed_process_is_resumed(host, command, prepare, tmp_path):
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


def test_a_process_killed_while_unpacking_leaves_no_incomplete_files(
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
    sources = [{}, {}, {}, {}, {"url": host.url("split.json")}]
    code, _, err = prepare("StanfordCars", sources)
    assert code == 2
    assert "StanfordCars cannot be downloaded" in err and "issues/7545" in err


def test_class_names_are_copied_from_another_data_set(host, prepare, tmp_path):
    """The archive of ImageNet-R is downloaded; classnames.txt is copied from ImageNet."""
    names = "n01443537 goldfish\nn01484850 great white shark\n"
    (tmp_path / "data" / "imagenet").mkdir(parents=True)
    (tmp_path / "data" / "imagenet" / "classnames.txt").write_text(names)
    host.files["imagenet-r.tar"] = zipped({"imagenet-r/n01443537/1.jpg": jpeg(0)})
    archive = {"url": host.url("imagenet-r.tar"), "checksum": ""}
    code, out, err = prepare("ImageNetR", [archive, {}])
    assert "a copy of" in out
    place = tmp_path / "data" / "imagenet-rendition"
    assert (place / "classnames.txt").read_text() == names
    assert (place / "imagenet-r" / "n01443537" / "1.jpg").read_bytes() == jpeg(0)
    assert code == 2 and "the published numbers are 0, 0, 30,000" in err


def test_an_archive_in_an_archive(host, prepare, tmp_path):
    """The images of Caltech101 are in a tar in a zip."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo("101_ObjectCategories/ant/image_0001.jpg")
        info.size = len(jpeg(0))
        archive.addfile(info, io.BytesIO(jpeg(0)))
    inner = "caltech-101/101_ObjectCategories.tar.gz"
    host.files["caltech-101.zip"] = zipped({inner: stream.getvalue(), "__MACOSX/x": b""})
    archive = {"url": host.url("caltech-101.zip"), "checksum": ""}
    prepare("Caltech101", [archive, {"url": host.url("absent.json")}])
    place = tmp_path / "data" / "caltech-101"
    assert tree(place) == {"101_ObjectCategories/ant/image_0001.jpg", "prepared.json"}


# --------------------------------------------------------------------------- the mirror
@pytest.fixture
def copy(host):
    """EuroSAT as the mirror has it: one archive with its folder."""
    files = {f"eurosat/{name}": content for name, content in images().items()}
    host.files["mirror/eurosat.zip"] = zipped({**files, SPLIT: split(), "eurosat/more.txt": b""})
    checksum = hashlib.sha256(host.files["mirror/eurosat.zip"]).hexdigest()
    entry = {"path": "eurosat.zip", "lfs": {"oid": checksum}}
    others = [{"path": "README.md", "size": 3}, {"path": "dtd.zip", "lfs": {"oid": "0" * 64}}]
    host.files["listing"] = json.dumps([*others, entry]).encode()
    url, listing = host.url("mirror/eurosat.zip"), host.url("listing")
    return Mirror(url=url, checksum=f"sha256:{checksum}", listing=listing)


def absent(host) -> list[dict[str, object]]:
    """The sources of EuroSAT at a host that has them no more."""
    return [{"url": host.url("gone.zip"), "checksum": ""}, {"url": host.url("gone.json")}]


@pytest.mark.parametrize("checksum", ["known", "listed"])
def test_what_no_host_has_comes_from_the_mirror(host, prepare, copy, tmp_path, checksum):
    mirror = copy if checksum == "known" else replace(copy, checksum="")
    code, out, err = prepare(sources=absent(host), mirror=mirror)
    assert code == 0, err
    assert "eurosat/2750" in out and f"from the mirror {copy.url}" in out
    assert tree(tmp_path / "data") == WHOLE  # and not more.txt
    record = read_record(tmp_path / "data" / "eurosat" / "prepared.json")
    entry = record["eurosat/2750"]
    assert entry["address"] == copy.url and entry["checksum"].endswith(copy.checksum)


def test_the_mirror_is_not_asked_while_the_hosts_answer(host, prepare, copy):
    assert prepare(mirror=copy)[0] == 0
    assert not [path for path, _ in host.asked if path.startswith(("mirror", "listing"))]


def test_what_is_there_already_is_not_taken_from_the_mirror(host, prepare, copy, tmp_path):
    (tmp_path / "data" / "eurosat" / "2750" / "mine").mkdir(parents=True)
    prepare(sources=absent(host), mirror=copy)
    assert not list((tmp_path / "data" / "eurosat" / "2750").rglob("*.jpg"))
    assert (tmp_path / "data" / SPLIT).is_file()


def test_a_split_file_is_read_out_of_the_mirror_s_archive(host, prepare, copy, tmp_path):
    content = zipped({"eurosat/large": bytes(3_000_000), SPLIT: split()})
    host.files["mirror/eurosat.zip"] = content
    sources = [eurosat(host)[0], absent(host)[1]]
    code, _, err = prepare(sources=sources, mirror=copy)
    assert code == 0, err
    assert tree(tmp_path / "data") == WHOLE
    ranges = [wanted for path, wanted in host.asked if path == "mirror/eurosat.zip"]
    assert ranges and all(ranges)  # never the whole archive


def test_a_mirror_that_sends_no_parts(host, prepare, copy):
    host.no_ranges.add("mirror/eurosat.zip")
    code, out, err = prepare(sources=[eurosat(host)[0], absent(host)[1]], mirror=copy)
    assert code == 0 and "does not send parts" in out  # the images are there, and a warning
    assert "warning: " in err


@pytest.mark.parametrize(
    "fault, words",
    [
        ("checksum", "does not have the checksum sha256:"),
        ("gone", "404"),
        ("listing", "lists no checksum of eurosat.zip"),
        ("html", "lists no checksum of eurosat.zip"),
        ("no listing", "cannot be read"),
    ],
)
def test_a_mirror_that_fails_is_named(host, prepare, copy, tmp_path, fault, words):
    mirror = copy if fault in ("checksum", "gone") else replace(copy, checksum="")
    if fault == "checksum":
        host.files["mirror/eurosat.zip"] += b"more"
    elif fault == "gone":
        del host.files["mirror/eurosat.zip"]
    elif fault == "no listing":
        del host.files["listing"]
    else:
        host.files["listing"] = {"listing": b'[{"path": "dtd.zip"}, 3]', "html": b"<html>"}[fault]
    code, out, err = prepare(sources=absent(host), mirror=mirror)
    assert code == 2 and words in out and "gone.zip" in err
    assert not (tmp_path / "data" / "eurosat" / "2750").exists()


def test_what_had_to_be_downloaded_by_hand_comes_from_the_mirror(host, prepare, tmp_path):
    files = {f"stanford_cars/{part}/1.jpg": jpeg(0) for part in ("cars_train", "cars_test")}
    files |= {
        "stanford_cars/devkit/cars_meta.mat": b"",
        "stanford_cars/split_zhou_StanfordCars.json": split(),
    }
    files["stanford_cars/cars_test_annos_withlabels.mat"] = b""
    host.files["cars.zip"] = zipped(files)
    checksum = hashlib.sha256(host.files["cars.zip"]).hexdigest()
    mirror = Mirror(url=host.url("cars.zip"), checksum=f"sha256:{checksum}")
    prepare("StanfordCars", [{}, {}, {}, {}, {"url": host.url("gone.json")}], mirror)
    assert tree(tmp_path / "data") == {*files, "stanford_cars/prepared.json"}


def test_a_file_of_the_mirror_must_have_the_checksum_of_its_own_host(host, prepare, tmp_path):
    host.files["flowers.zip"] = zipped({"oxford_flowers/imagelabels.mat": b"changed"})
    host.files["jpg.zip"] = zipped({"jpg/1.jpg": jpeg(0)})
    host.files["names.json"] = b"{}"
    sources = [
        {"url": host.url("jpg.zip"), "checksum": ""},
        {"url": host.url("gone.mat")},
        {"url": host.url("names.json")},
        {"url": host.url("names.json")},
    ]
    out = prepare("OxfordFlowers", sources, Mirror(url=host.url("flowers.zip")))[1]
    assert "the imagelabels.mat in" in out and "does not have the md5:" in out
    assert not (tmp_path / "data" / "oxford_flowers" / "imagelabels.mat").exists()


def test_ten_data_sets_have_a_mirror():
    with_one = [row for row in CATALOG.values() if row.mirror]
    assert len(with_one) == 10 and not any(row.name.startswith("ImageNet") for row in with_one)
    for row in with_one:
        assert row.mirror.checksum or row.mirror.listing


# --------------------------------------------------------------------------- the sources
@pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
def test_every_source_is_a_file_or_an_archive_with_a_checksum_if_one_is_published(row: Row):
    for source in row.sources:
        assert bool(source.place) != bool(source.members), source
        unpublished = source.address.startswith(DRIVE) or row.name == "ImageNetSketch"
        assert source.checksum or source.by_hand or unpublished, source


@pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
def test_the_sources_contain_all_files_of_the_layout(row: Row):
    places = {place for piece in pieces(row) for place in piece.places.values()}
    assert all(place.startswith(f"{row.folder}/") for place in places)
    images = f"{row.folder}/{row.images}".rstrip("/")
    assert any(place == images or place.startswith(f"{images}/") for place in places)
    if row.split:
        assert f"{row.folder}/{row.split}" in places


def test_the_checksums_are_those_of_torchvision():
    """Only those that this release has as attributes."""
    datasets = pytest.importorskip("torchvision.datasets")
    ours = {piece.checksum for row in CATALOG.values() for piece in pieces(row)}
    names = {"Food101": "_MD5", "DTD": "_MD5", "SUN397": "_DATASET_MD5"}
    theirs = [getattr(getattr(datasets, c), a) for c, a in names.items()]
    theirs += [md5 for _, md5 in datasets.OxfordIIITPet._RESOURCES]
    theirs += [datasets.Flowers102._file_dict[key][1] for key in ("image", "label")]
    assert {f"md5:{md5}" for md5 in theirs} <= ours
