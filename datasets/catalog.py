"""The fifteen data sets of the paper: what they are called and where their files lie.

Data only. `npt.datasets.base` and `npt.datasets.imagenet` load what a row describes,
`npt.datasets.splits` makes a split that is missing, and `python -m npt.data` checks a disk
against the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CLASSNAMES = "classnames.txt"  # lines "<wnid> <class name>", in the order of ImageNet's labels


@dataclass(frozen=True)
class Row:
    """A data set. Paths are below `folder`, which is below DATASET.ROOT.

    kind: "split" (a split file, or official lists), "imagenet" (images/{train,val}/<wnid>), or
    "variant" (of ImageNet: tested only)
    made_from: how `npt.datasets.splits` makes the lists where there is no split file; for
    ImageNet and its variants what the folders are called: "wnid" or "label"
    split: the split file; "" where there is none, and the official lists are read each time
    needs: the files, besides images, without which the lists cannot be made
    renamed, ignored: class names by folder, and folders that are no class, when they are made
    counts: images in train, val and test, as published (0: no such list)
    sources: (address, where it goes below DATASET.ROOT)
    """

    name: str  # DATASET.NAME
    config: str  # configs/datasets/<config>.yaml
    folder: str
    images: str
    kind: str
    made_from: str
    classes: int
    counts: tuple[int, int, int]
    split: str
    needs: tuple[str, ...]
    renamed: Mapping[str, str]
    ignored: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]


# fmt: off
_TABLE = (
    # name, config, folder, images, kind, made from, classes, (train, val, test)
    ("ImageNet", "imagenet", "imagenet", "images",
     "imagenet", "wnid", 1000, (1_281_167, 0, 50_000)),
    ("Caltech101", "caltech101", "caltech-101", "101_ObjectCategories",
     "split", "folders", 100, (4128, 1649, 2465)),
    ("OxfordPets", "oxford_pets", "oxford_pets", "images",
     "split", "pets", 37, (2944, 736, 3669)),
    ("StanfordCars", "stanford_cars", "stanford_cars", "",  # cars_train/ and cars_test/
     "split", "cars", 196, (6509, 1635, 8041)),
    ("OxfordFlowers", "oxford_flowers", "oxford_flowers", "jpg",
     "split", "flowers", 102, (4093, 1633, 2463)),
    ("Food101", "food101", "food-101", "images",
     "split", "folders", 101, (50_500, 20_200, 30_300)),
    ("FGVCAircraft", "fgvc_aircraft", "fgvc_aircraft", "images",
     "split", "aircraft", 100, (3334, 3333, 3333)),
    ("SUN397", "sun397", "sun397", "SUN397",
     "split", "sun", 397, (15_880, 3970, 19_850)),
    ("DescribableTextures", "dtd", "dtd", "images",
     "split", "folders", 47, (2820, 1128, 1692)),
    ("EuroSAT", "eurosat", "eurosat", "2750",
     "split", "folders", 10, (13_500, 5400, 8100)),
    ("UCF101", "ucf101", "ucf101", "UCF-101-midframes",
     "split", "ucf", 101, (7639, 1898, 3783)),
    ("ImageNetV2", "imagenetv2", "imagenetv2", "imagenetv2-matched-frequency-format-val",
     "variant", "label", 1000, (0, 0, 10_000)),
    ("ImageNetSketch", "imagenet_sketch", "imagenet-sketch", "images",
     "variant", "wnid", 1000, (0, 0, 50_889)),
    ("ImageNetA", "imagenet_a", "imagenet-adversarial", "imagenet-a",
     "variant", "wnid", 200, (0, 0, 7500)),
    ("ImageNetR", "imagenet_r", "imagenet-rendition", "imagenet-r",
     "variant", "wnid", 200, (0, 0, 30_000)),
)
# fmt: on

_NEEDS: dict[str, tuple[str, ...]] = {  # by what the lists are made from
    "folders": (),
    "pets": ("annotations/trainval.txt", "annotations/test.txt"),
    "cars": (
        "devkit/cars_meta.mat",
        "devkit/cars_train_annos.mat",
        "cars_test_annos_withlabels.mat",
    ),
    "flowers": ("imagelabels.mat", "cat_to_name.json"),
    "aircraft": (
        "variants.txt",
        "images_variant_train.txt",
        "images_variant_val.txt",
        "images_variant_test.txt",
    ),
    "sun": ("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
    "ucf": (
        "ucfTrainTestlist/classInd.txt",
        "ucfTrainTestlist/trainlist01.txt",
        "ucfTrainTestlist/testlist01.txt",
    ),
    "wnid": (CLASSNAMES,),
    "label": (CLASSNAMES,),
}

_RENAMED: dict[str, dict[str, str]] = {
    "Caltech101": {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    },
    "EuroSAT": {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    },
}
_IGNORED = {"Caltech101": ("BACKGROUND_Google", "Faces_easy")}

_DRIVE = "https://drive.google.com/file/d/"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
_CARS = "http://ai.stanford.edu/~jkrause/car196/"
_SUN = "http://vision.princeton.edu/projects/2010/SUN/"
_NAMES = _DRIVE + "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"
# fmt: off
_SOURCES: dict[str, dict[str, str]] = {  # where it goes below `folder` -> address
    "ImageNet": {
        "images/train": "https://image-net.org/",
        "images/val": "https://image-net.org/",
        CLASSNAMES: _NAMES,
    },
    "Caltech101": {
        "101_ObjectCategories": "https://data.caltech.edu/records/mzrjq-6wc02",
        "split_zhou_Caltech101.json": _DRIVE + "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
    },
    "OxfordPets": {
        "images": _VGG + "pets/data/images.tar.gz",
        "annotations": _VGG + "pets/data/annotations.tar.gz",
        "split_zhou_OxfordPets.json": _DRIVE + "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
    },
    "StanfordCars": {
        "cars_train": _CARS + "cars_train.tgz",
        "cars_test": _CARS + "cars_test.tgz",
        "devkit": "https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",
        "cars_test_annos_withlabels.mat": _CARS + "cars_test_annos_withlabels.mat",
        "split_zhou_StanfordCars.json": _DRIVE + "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
    },
    "OxfordFlowers": {
        "jpg": _VGG + "flowers/102/102flowers.tgz",
        "imagelabels.mat": _VGG + "flowers/102/imagelabels.mat",
        "cat_to_name.json": _DRIVE + "1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0",
        "split_zhou_OxfordFlowers.json": _DRIVE + "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
    },
    "Food101": {
        "images": "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        "split_zhou_Food101.json": _DRIVE + "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl",
    },
    "FGVCAircraft": {
        "images and *.txt": _VGG + "fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
    },
    "SUN397": {
        "SUN397": _SUN + "SUN397.tar.gz",
        "*.txt": _SUN + "download/Partitions.zip",
        "split_zhou_SUN397.json": _DRIVE + "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
    },
    "DescribableTextures": {
        "images": _VGG + "dtd/download/dtd-r1.0.1.tar.gz",
        "split_zhou_DescribableTextures.json": _DRIVE + "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
    },
    "EuroSAT": {
        "2750": "https://madm.dfki.de/files/sentinel/EuroSAT.zip",
        "split_zhou_EuroSAT.json": _DRIVE + "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
    },
    "UCF101": {
        "UCF-101-midframes": _DRIVE + "10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
        "split_zhou_UCF101.json": _DRIVE + "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
    },
    "ImageNetV2": {
        "imagenetv2-matched-frequency-format-val": "https://s3-us-west-2.amazonaws.com/"
        "imagenetv2public/imagenetv2-matched-frequency.tar.gz",
        CLASSNAMES: _NAMES,
    },
    "ImageNetSketch": {
        "images": "https://github.com/HaohanWang/ImageNet-Sketch",
        CLASSNAMES: _NAMES,
    },
    "ImageNetA": {
        "imagenet-a": "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
        CLASSNAMES: _NAMES,
    },
    "ImageNetR": {
        "imagenet-r": "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        CLASSNAMES: _NAMES,
    },
}
# fmt: on


def _row(
    name: str, config: str, folder: str, images: str, kind: str, made_from: str, *sizes
) -> Row:
    addresses = _SOURCES[name]
    split = f"split_zhou_{name}.json"
    return Row(
        *(name, config, folder, images, kind, made_from, *sizes),
        split=split if split in addresses else "",
        needs=_NEEDS[made_from],
        renamed=_RENAMED.get(name, {}),
        ignored=_IGNORED.get(name, ()),
        sources=tuple((address, f"{folder}/{place}") for place, address in addresses.items()),
    )


CATALOG: dict[str, Row] = {values[0]: _row(*values) for values in _TABLE}
