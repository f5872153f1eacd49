"""How each file that the catalog names is got: its direct address, its checksum, what is in it.

Addresses and md5 are those of torchvision's data sets, but for FGVC-Aircraft's md5, which
torchvision lacks and other libraries agree on; sha256, of ImageNet's variants and SUN397's lists,
are those of TensorFlow Datasets. They stand here and are not asked of torchvision, because older
releases that still run name hosts that are gone. Google Drive and ImageNet-Sketch's host give none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from npt.datasets.catalog import Row


@dataclass(frozen=True)
class Fetch:
    """A file behind an address of the catalog.

    takes: what of an archive is wanted -> where it goes below the data set's folder; without
    any, the file itself is wanted, where the catalog says
    url: where it really is, if not at that address
    nested: the archive within the archive that is meant
    """

    checksum: str = ""
    takes: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    nested: str = ""


_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
_LISTS = ("variants.txt", *(f"images_variant_{part}.txt" for part in ("train", "val", "test")))
_DRIVE = "https://drive.google.com/file/d/"
_V2, _V2_FOLDER = (
    "imagenetv2-matched-frequency.tar.gz",
    "imagenetv2-matched-frequency-format-val",
)
_AIRCRAFT = "fgvc-aircraft-2013b/data"

# Address in the catalog -> the file.
FETCH: dict[str, Fetch] = {
    "https://data.caltech.edu/records/mzrjq-6wc02": Fetch(
        "md5:3138e1922a9193bfa496528edbbc45d0",
        {"101_ObjectCategories": "101_ObjectCategories"},
        url="https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        nested="caltech-101/101_ObjectCategories.tar.gz",
    ),
    f"{_VGG}pets/data/images.tar.gz": Fetch(
        "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c", {"images": "images"}
    ),
    f"{_VGG}pets/data/annotations.tar.gz": Fetch(
        "md5:95a8c909bbe2e81eed6a22bccdf3f68f", {"annotations": "annotations"}
    ),
    f"{_VGG}flowers/102/102flowers.tgz": Fetch(
        "md5:52808999861908f626f3c1f4e79d11fa", {"jpg": "jpg"}
    ),
    f"{_VGG}flowers/102/imagelabels.mat": Fetch("md5:e0620be6f572b9609742df49c70aed4d"),
    "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz": Fetch(
        "md5:85eeb15f3717b99a5da872d97d918f87",
        {"food-101/images": "images"},
        url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
    ),
    f"{_VGG}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz": Fetch(
        "md5:d4acdd33327262359767eeaa97a4f732",
        {f"{_AIRCRAFT}/{name}": name for name in ("images", *_LISTS)},
    ),
    "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz": Fetch(
        "md5:8ca2778205c41d23104230ba66911c7a", {"SUN397": "SUN397"}
    ),
    "http://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip": Fetch(
        "sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
        {name: name for name in ("ClassName.txt", "Training_01.txt", "Testing_01.txt")},
    ),
    f"{_VGG}dtd/download/dtd-r1.0.1.tar.gz": Fetch(
        "md5:fff73e5086ae6bdbea199a49dfb8a4c1", {"dtd/images": "images"}
    ),
    "https://madm.dfki.de/files/sentinel/EuroSAT.zip": Fetch(
        "md5:c8fa014336c82ac7804f0398fcb19387",
        {"2750": "2750"},
        url="https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
    ),
    f"{_DRIVE}10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O": Fetch(
        takes={"UCF-101-midframes": "UCF-101-midframes"},
    ),
    f"https://s3-us-west-2.amazonaws.com/imagenetv2public/{_V2}": Fetch(
        "sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
        {_V2_FOLDER: _V2_FOLDER},
        url=f"https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/{_V2}",
    ),
    "https://github.com/HaohanWang/ImageNet-Sketch": Fetch(
        takes={"sketch": "images"},
        url="https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/"
        "ImageNet-Sketch.zip",
    ),
    "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar": Fetch(
        "sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
        {"imagenet-a": "imagenet-a"},
    ),
    "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar": Fetch(
        "sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
        {"imagenet-r": "imagenet-r"},
    ),
}

_CARS = (
    "its host has closed; https://github.com/pytorch/vision/issues/7545#issuecomment-1631441616 "
    "tells of copies"
)
# Address in the catalog, or its beginning -> why nothing can be fetched there, and what to do.
BY_HAND: dict[str, str] = {
    "https://image-net.org/": "it is given out only to who signs in: get ILSVRC2012_img_train.tar "
    "and ILSVRC2012_img_val.tar at https://image-net.org/download.php and unpack them into one "
    "folder a class",
    "http://ai.stanford.edu/~jkrause/": _CARS,
    "https://ai.stanford.edu/~jkrause/": _CARS,
}


@dataclass(frozen=True)
class Piece:
    """One download of a data set.

    file: the name that it has on disk
    goes: what is in it (as `Fetch.takes`; for a plain file its own name) -> path below the root
    """

    url: str
    file: str
    goes: Mapping[str, str]
    archive: bool = False
    checksum: str = ""
    nested: str = ""
    by_hand: str = ""


def pieces(row: Row) -> list[Piece]:
    """What the data set consists of, in the order of the catalog."""
    return [_piece(row.folder, address, place) for address, place in row.sources]


def _piece(folder: str, address: str, place: str) -> Piece:
    entry = FETCH.get(address, Fetch())
    place = place.partition(" ")[0]  # what follows is for people
    last = PurePosixPath(place).name
    url = entry.url or address
    file = PurePosixPath(url).name if entry.takes else last
    if url.startswith(_DRIVE):  # an address that says nothing
        identity = url.removeprefix(_DRIVE).partition("/")[0]
        host = "https://drive.usercontent.google.com"
        url = f"{host}/download?id={identity}&export=download&confirm=t"
        file = f"{last}.zip" if entry.takes else last
    goes = {inside: f"{folder}/{name}" for inside, name in entry.takes.items()}
    return Piece(
        url=url,
        file=file,
        goes=goes or {last: place},
        archive=bool(goes),
        checksum=entry.checksum,
        nested=entry.nested,
        by_hand=next((why for start, why in BY_HAND.items() if address.startswith(start)), ""),
    )
