"""The fifteen data sets of the paper: one `Row` for each, with everything that differs.

This module contains data only. `npt.datasets.paper` makes a class from each row,
`npt.datasets.splits` makes missing split files, and `python -m npt.data` downloads the data sets
and checks the files on disk.

Checksums: the md5 sums are those of torchvision's data sets, except for FGVC-Aircraft, which has
none in torchvision; its md5 is the one on which other libraries agree. The sha256 sums (ImageNet's
variants and the lists of SUN397) are those of TensorFlow Datasets. They are copied here because
the addresses in older releases of torchvision no longer work. Google Drive and the host of
ImageNet-Sketch publish no checksums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CLASSNAMES = "classnames.txt"  # lines "<wnid> <class name>", in the order of ImageNet's labels
DRIVE = "https://drive.google.com/file/d/"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One download of a data set: a plain file (`place`) or an archive (`members`).

    address: where the authors publish it
    url: where the file is downloaded from, if not from `address`
    place: path of a plain file below the data set's folder
    members: of an archive: file or folder in it -> path below the data set's folder
    nested: path of an archive inside the downloaded one; `members` are then in the inner archive
    checksum: "md5:..." or "sha256:..."; "" if none is published
    by_hand: why it cannot be downloaded automatically, and what to do
    """

    address: str
    url: str = ""
    place: str = ""
    members: Mapping[str, str] = field(default_factory=dict)
    nested: str = ""
    checksum: str = ""
    by_hand: str = ""


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """A copy of a whole data set: a zip archive that contains its folder, as in `Row`.

    checksum: "sha256:..."; "" if it is looked up in `listing`
    listing: the address of the host's list of its files, with checksums
    """

    url: str
    checksum: str = ""
    listing: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A data set. All paths are relative to `folder`.

    name: DATASET.NAME
    config: the config file is configs/datasets/<config>.yaml
    template: the hand-written prompt of CoOp and its successors, with {} for the class name
    folder: below DATASET.ROOT
    images: folder of the images
    kind: "split" (a split file, or official lists), "imagenet" (images/{train,val}/<wnid>), or
        "variant" (of ImageNet, used for testing only)
    made_from: how `npt.datasets.splits` makes the lists if there is no split file; for ImageNet
        and its variants the naming of the class folders: "wnid" or "label"
    classes: number of classes
    counts: published numbers of images in train, val and test (0: there is no such list)
    split: the split file; "" if the data set has none and its official lists are used instead
    needs: files (other than images) that are required to make the lists
    renamed: class folder -> class name, where they differ, for lists made from folders
    ignored: folders that are not classes, for lists made from folders
    mirror: where there is a copy, for files that the hosts in `sources` do not give
    """

    name: str
    config: str
    template: str
    folder: str
    images: str
    kind: str
    made_from: str
    classes: int
    counts: tuple[int, int, int]
    split: str = ""
    needs: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    sources: tuple[Source, ...]
    mirror: Mirror | None = None


_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
_CARS = "http://ai.stanford.edu/~jkrause/car196/"
_SUN = "http://vision.princeton.edu/projects/2010/SUN/"
_BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks/"
_HUGGING_FACE = "https://huggingface.co/datasets/"

# The copies of the authors of PromptKD, in one fixed version. The checksums are those that the host
# shows for that version; those that are not here, `listing` has.
_COPIES = "zhengli97/prompt_learning_dataset"
_VERSION = "ceb3112337fb6e1bf71534e355ca5569b63f19a6"


def _mirror(file: str, sha256: str = "") -> Mirror:
    return Mirror(
        url=f"https://huggingface.co/{_COPIES}/resolve/{_VERSION}/{file}",
        checksum=sha256 and f"sha256:{sha256}",
        listing=f"https://huggingface.co/api/models/{_COPIES}/tree/{_VERSION}",
    )


_IMAGENET_CLASSNAMES = Source(
    address=f"{DRIVE}1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF",
    place=CLASSNAMES,
)
_IMAGENET_BY_HAND = (
    "the host requires signing in: get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar at "
    "https://image-net.org/download.php and unpack them into one folder per class"
)
_CARS_BY_HAND = (
    "its host has closed; https://github.com/pytorch/vision/issues/7545#issuecomment-1631441616 "
    "lists copies"
)

_ROWS = (
    Row(
        name="ImageNet",
        config="imagenet",
        template="a photo of a {}.",
        folder="imagenet",
        images="images",
        kind="imagenet",
        made_from="wnid",
        classes=1000,
        counts=(1_281_167, 0, 50_000),
        needs=(CLASSNAMES,),
        sources=(
            Source(
                address="https://image-net.org/",
                place="images/train",
                by_hand=_IMAGENET_BY_HAND,
            ),
            Source(
                address="https://image-net.org/",
                place="images/val",
                by_hand=_IMAGENET_BY_HAND,
            ),
            _IMAGENET_CLASSNAMES,
        ),
    ),
    Row(
        name="Caltech101",
        config="caltech101",
        template="a photo of a {}.",
        folder="caltech-101",
        images="101_ObjectCategories",
        kind="split",
        made_from="folders",
        classes=100,
        counts=(4128, 1649, 2465),
        split="split_zhou_Caltech101.json",
        renamed={
            "airplanes": "airplane",
            "Faces": "face",
            "Leopards": "leopard",
            "Motorbikes": "motorbike",
        },
        ignored=("BACKGROUND_Google", "Faces_easy"),
        sources=(
            Source(
                address="https://data.caltech.edu/records/mzrjq-6wc02",
                url="https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                members={"101_ObjectCategories": "101_ObjectCategories"},
                nested="caltech-101/101_ObjectCategories.tar.gz",
                checksum="md5:3138e1922a9193bfa496528edbbc45d0",
            ),
            Source(
                address=f"{DRIVE}1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
                place="split_zhou_Caltech101.json",
            ),
        ),
        mirror=_mirror(
            "caltech-101.zip", "ef7dced0802c60cf962273331dafb6b247059f22569edc87c3190d39f29c6f1c"
        ),
    ),
    Row(
        name="OxfordPets",
        config="oxford_pets",
        template="a photo of a {}, a type of pet.",
        folder="oxford_pets",
        images="images",
        kind="split",
        made_from="pets",
        classes=37,
        counts=(2944, 736, 3669),
        split="split_zhou_OxfordPets.json",
        needs=("annotations/trainval.txt", "annotations/test.txt"),
        sources=(
            Source(
                address=f"{_VGG}pets/data/images.tar.gz",
                members={"images": "images"},
                checksum="md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
            ),
            Source(
                address=f"{_VGG}pets/data/annotations.tar.gz",
                members={"annotations": "annotations"},
                checksum="md5:95a8c909bbe2e81eed6a22bccdf3f68f",
            ),
            Source(
                address=f"{DRIVE}1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
                place="split_zhou_OxfordPets.json",
            ),
        ),
        mirror=_mirror("oxford_pets.zip"),
    ),
    Row(
        name="StanfordCars",
        config="stanford_cars",
        template="a photo of a {}.",
        folder="stanford_cars",
        images="",  # cars_train/ and cars_test/
        kind="split",
        made_from="cars",
        classes=196,
        counts=(6509, 1635, 8041),
        split="split_zhou_StanfordCars.json",
        needs=(
            "devkit/cars_meta.mat",
            "devkit/cars_train_annos.mat",
            "cars_test_annos_withlabels.mat",
        ),
        sources=(
            Source(
                address=f"{_CARS}cars_train.tgz",
                place="cars_train",
                by_hand=_CARS_BY_HAND,
            ),
            Source(
                address=f"{_CARS}cars_test.tgz",
                place="cars_test",
                by_hand=_CARS_BY_HAND,
            ),
            Source(
                address="https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",
                place="devkit",
                by_hand=_CARS_BY_HAND,
            ),
            Source(
                address=f"{_CARS}cars_test_annos_withlabels.mat",
                place="cars_test_annos_withlabels.mat",
                by_hand=_CARS_BY_HAND,
            ),
            Source(
                address=f"{DRIVE}1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
                place="split_zhou_StanfordCars.json",
            ),
        ),
        mirror=_mirror("stanford_cars.zip"),
    ),
    Row(
        name="OxfordFlowers",
        config="oxford_flowers",
        template="a photo of a {}, a type of flower.",
        folder="oxford_flowers",
        images="jpg",
        kind="split",
        made_from="flowers",
        classes=102,
        counts=(4093, 1633, 2463),
        split="split_zhou_OxfordFlowers.json",
        needs=("imagelabels.mat", "cat_to_name.json"),
        sources=(
            Source(
                address=f"{_VGG}flowers/102/102flowers.tgz",
                members={"jpg": "jpg"},
                checksum="md5:52808999861908f626f3c1f4e79d11fa",
            ),
            Source(
                address=f"{_VGG}flowers/102/imagelabels.mat",
                place="imagelabels.mat",
                checksum="md5:e0620be6f572b9609742df49c70aed4d",
            ),
            Source(
                address=f"{DRIVE}1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0",
                place="cat_to_name.json",
            ),
            Source(
                address=f"{DRIVE}1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
                place="split_zhou_OxfordFlowers.json",
            ),
        ),
        mirror=_mirror(
            "oxford_flowers.zip", "bd8d090f0f28581458243cfe4d4a7b1cd5f3a3a8840096adb8bb7ad80020907e"
        ),
    ),
    Row(
        name="Food101",
        config="food101",
        template="a photo of {}, a type of food.",
        folder="food-101",
        images="images",
        kind="split",
        made_from="folders",
        classes=101,
        counts=(50_500, 20_200, 30_300),
        split="split_zhou_Food101.json",
        sources=(
            Source(
                address="https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                members={"food-101/images": "images"},
                checksum="md5:85eeb15f3717b99a5da872d97d918f87",
            ),
            Source(
                address=f"{DRIVE}1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl",
                place="split_zhou_Food101.json",
            ),
        ),
        mirror=_mirror(
            "food101.zip", "b9f59577fcc4f85183b7a102b6f84eecf338fde6453fa486309dc2951efeb254"
        ),
    ),
    Row(
        name="FGVCAircraft",
        config="fgvc_aircraft",
        template="a photo of a {}, a type of aircraft.",
        folder="fgvc_aircraft",
        images="images",
        kind="split",
        made_from="aircraft",
        classes=100,
        counts=(3334, 3333, 3333),
        needs=(
            "variants.txt",
            "images_variant_train.txt",
            "images_variant_val.txt",
            "images_variant_test.txt",
        ),
        sources=(
            Source(
                address=f"{_VGG}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                members={
                    "fgvc-aircraft-2013b/data/images": "images",
                    "fgvc-aircraft-2013b/data/variants.txt": "variants.txt",
                    "fgvc-aircraft-2013b/data/images_variant_train.txt": "images_variant_train.txt",
                    "fgvc-aircraft-2013b/data/images_variant_val.txt": "images_variant_val.txt",
                    "fgvc-aircraft-2013b/data/images_variant_test.txt": "images_variant_test.txt",
                },
                checksum="md5:d4acdd33327262359767eeaa97a4f732",
            ),
        ),
        mirror=_mirror("fgvc_aircraft.zip"),
    ),
    Row(
        name="SUN397",
        config="sun397",
        template="a photo of a {}.",
        folder="sun397",
        images="SUN397",
        kind="split",
        made_from="sun",
        classes=397,
        counts=(15_880, 3970, 19_850),
        split="split_zhou_SUN397.json",
        needs=("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
        sources=(
            Source(
                address=f"{_SUN}SUN397.tar.gz",
                members={"SUN397": "SUN397"},
                checksum="md5:8ca2778205c41d23104230ba66911c7a",
            ),
            Source(
                address=f"{_SUN}download/Partitions.zip",
                members={
                    "ClassName.txt": "ClassName.txt",
                    "Training_01.txt": "Training_01.txt",
                    "Testing_01.txt": "Testing_01.txt",
                },
                checksum="sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
            ),
            Source(
                address=f"{DRIVE}1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
                place="split_zhou_SUN397.json",
            ),
        ),
        mirror=_mirror(
            "sun397.zip", "ce6dee6685c9f1d592c8297e193dde885aa9c50d008fd998a38ccc57a3dda722"
        ),
    ),
    Row(
        name="DescribableTextures",
        config="dtd",
        template="{} texture.",
        folder="dtd",
        images="images",
        kind="split",
        made_from="folders",
        classes=47,
        counts=(2820, 1128, 1692),
        split="split_zhou_DescribableTextures.json",
        sources=(
            Source(
                address=f"{_VGG}dtd/download/dtd-r1.0.1.tar.gz",
                members={"dtd/images": "images"},
                checksum="md5:fff73e5086ae6bdbea199a49dfb8a4c1",
            ),
            Source(
                address=f"{DRIVE}1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
                place="split_zhou_DescribableTextures.json",
            ),
        ),
        mirror=_mirror(
            "dtd.zip", "5ba4d3000e60f5541ba15a082033ca0696eee68125e9c28edff3dbe22f04313b"
        ),
    ),
    Row(
        name="EuroSAT",
        config="eurosat",
        template="a centered satellite photo of {}.",
        folder="eurosat",
        images="2750",
        kind="split",
        made_from="folders",
        classes=10,
        counts=(13_500, 5400, 8100),
        split="split_zhou_EuroSAT.json",
        renamed={
            "AnnualCrop": "Annual Crop Land",
            "HerbaceousVegetation": "Herbaceous Vegetation Land",
            "Highway": "Highway or Road",
            "Industrial": "Industrial Buildings",
            "Pasture": "Pasture Land",
            "PermanentCrop": "Permanent Crop Land",
            "Residential": "Residential Buildings",
            "SeaLake": "Sea or Lake",
        },
        sources=(
            Source(
                address="https://madm.dfki.de/files/sentinel/EuroSAT.zip",
                url=f"{_HUGGING_FACE}torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                members={"2750": "2750"},
                checksum="md5:c8fa014336c82ac7804f0398fcb19387",
            ),
            Source(
                address=f"{DRIVE}1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
                place="split_zhou_EuroSAT.json",
            ),
        ),
        mirror=_mirror(
            "eurosat.zip", "cedceda1690cad47bc3b41eb6bf2d0a134ec7413558128409928829f06c74613"
        ),
    ),
    Row(
        name="UCF101",
        config="ucf101",
        template="a photo of a person doing {}.",
        folder="ucf101",
        images="UCF-101-midframes",
        kind="split",
        made_from="ucf",
        classes=101,
        counts=(7639, 1898, 3783),
        split="split_zhou_UCF101.json",
        needs=(
            "ucfTrainTestlist/classInd.txt",
            "ucfTrainTestlist/trainlist01.txt",
            "ucfTrainTestlist/testlist01.txt",
        ),
        sources=(
            Source(
                address=f"{DRIVE}10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
                members={"UCF-101-midframes": "UCF-101-midframes"},
            ),
            Source(
                address=f"{DRIVE}1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
                place="split_zhou_UCF101.json",
            ),
        ),
        mirror=_mirror("ucf101.zip"),
    ),
    Row(
        name="ImageNetV2",
        config="imagenetv2",
        template="a photo of a {}.",
        folder="imagenetv2",
        images="imagenetv2-matched-frequency-format-val",
        kind="variant",
        made_from="label",
        classes=1000,
        counts=(0, 0, 10_000),
        needs=(CLASSNAMES,),
        sources=(
            Source(
                address="https://s3-us-west-2.amazonaws.com/imagenetv2public/"
                "imagenetv2-matched-frequency.tar.gz",
                url=f"{_HUGGING_FACE}vaishaal/ImageNetV2/resolve/main/"
                "imagenetv2-matched-frequency.tar.gz",
                members={
                    "imagenetv2-matched-frequency-format-val": (
                        "imagenetv2-matched-frequency-format-val"
                    ),
                },
                checksum="sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
            ),
            _IMAGENET_CLASSNAMES,
        ),
    ),
    Row(
        name="ImageNetSketch",
        config="imagenet_sketch",
        template="a photo of a {}.",
        folder="imagenet-sketch",
        images="images",
        kind="variant",
        made_from="wnid",
        classes=1000,
        counts=(0, 0, 50_889),
        needs=(CLASSNAMES,),
        sources=(
            Source(
                address="https://github.com/HaohanWang/ImageNet-Sketch",
                url=f"{_HUGGING_FACE}songweig/imagenet_sketch/resolve/main/data/"
                "ImageNet-Sketch.zip",
                members={"sketch": "images"},
            ),
            _IMAGENET_CLASSNAMES,
        ),
    ),
    Row(
        name="ImageNetA",
        config="imagenet_a",
        template="a photo of a {}.",
        folder="imagenet-adversarial",
        images="imagenet-a",
        kind="variant",
        made_from="wnid",
        classes=200,
        counts=(0, 0, 7500),
        needs=(CLASSNAMES,),
        sources=(
            Source(
                address=f"{_BERKELEY}imagenet-a.tar",
                members={"imagenet-a": "imagenet-a"},
                checksum="sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
            ),
            _IMAGENET_CLASSNAMES,
        ),
    ),
    Row(
        name="ImageNetR",
        config="imagenet_r",
        template="a photo of a {}.",
        folder="imagenet-rendition",
        images="imagenet-r",
        kind="variant",
        made_from="wnid",
        classes=200,
        counts=(0, 0, 30_000),
        needs=(CLASSNAMES,),
        sources=(
            Source(
                address=f"{_BERKELEY}imagenet-r.tar",
                members={"imagenet-r": "imagenet-r"},
                checksum="sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
            ),
            _IMAGENET_CLASSNAMES,
        ),
    ),
)

CATALOG: dict[str, Row] = {row.name: row for row in _ROWS}
