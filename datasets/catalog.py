"""The fifteen data sets of the paper, one row each: what they are called and where their files lie.

Data only. `npt.datasets.base` and `npt.datasets.imagenet` load what a row describes,
`npt.datasets.splits` makes a split that is missing, and `python -m npt.data` checks a disk
against the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DRIVE = "https://drive.google.com/file/d/"
CLASSNAMES = "classnames.txt"  # lines "<wnid> <class name>", the order of ImageNet's labels
NAMES_LINK = DRIVE + "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"


@dataclass(frozen=True)
class Row:
    """A data set. Paths are below `folder`, which is below DATASET.ROOT.

    kind: "split" (a split file, or official lists), "imagenet" (images/{train,val}/<wnid>), or
    "variant" (of ImageNet: tested only)
    made_from: how `npt.datasets.splits` makes the lists where there is no split file; for a
    variant, what its folders are called ("wnid" or "label")
    needs: the files that this takes
    renamed, ignored: class names by folder, and folders that are no class, when it is made
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
    sources: tuple[tuple[str, str], ...]
    split: str = ""  # "": the official lists are read each time
    needs: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


_ROWS = (
    Row(
        name="ImageNet",
        config="imagenet",
        folder="imagenet",
        images="images",
        kind="imagenet",
        made_from="wnid",
        classes=1000,
        counts=(1_281_167, 0, 50_000),
        needs=(CLASSNAMES,),
        sources=(
            ("https://image-net.org/", "imagenet/images/train and imagenet/images/val"),
            (NAMES_LINK, "imagenet/classnames.txt"),
        ),
    ),
    Row(
        name="Caltech101",
        config="caltech101",
        folder="caltech-101",
        images="101_ObjectCategories",
        kind="split",
        split="split_zhou_Caltech101.json",
        made_from="folders",
        classes=100,
        counts=(4128, 1649, 2465),
        renamed={
            "airplanes": "airplane",
            "Faces": "face",
            "Leopards": "leopard",
            "Motorbikes": "motorbike",
        },
        ignored=("BACKGROUND_Google", "Faces_easy"),
        sources=(
            ("https://data.caltech.edu/records/mzrjq-6wc02", "caltech-101/101_ObjectCategories"),
            (
                DRIVE + "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
                "caltech-101/split_zhou_Caltech101.json",
            ),
        ),
    ),
    Row(
        name="OxfordPets",
        config="oxford_pets",
        folder="oxford_pets",
        images="images",
        kind="split",
        split="split_zhou_OxfordPets.json",
        made_from="pets",
        needs=("annotations/trainval.txt", "annotations/test.txt"),
        classes=37,
        counts=(2944, 736, 3669),
        sources=(
            ("https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz", "oxford_pets/images"),
            (
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                "oxford_pets/annotations",
            ),
            (
                DRIVE + "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
                "oxford_pets/split_zhou_OxfordPets.json",
            ),
        ),
    ),
    Row(
        name="StanfordCars",
        config="stanford_cars",
        folder="stanford_cars",
        images="",  # the split's paths begin with cars_train/ and cars_test/
        kind="split",
        split="split_zhou_StanfordCars.json",
        made_from="cars",
        needs=(
            "devkit/cars_meta.mat",
            "devkit/cars_train_annos.mat",
            "cars_test_annos_withlabels.mat",
        ),
        classes=196,
        counts=(6509, 1635, 8041),
        sources=(
            ("http://ai.stanford.edu/~jkrause/car196/cars_train.tgz", "stanford_cars/cars_train"),
            ("http://ai.stanford.edu/~jkrause/car196/cars_test.tgz", "stanford_cars/cars_test"),
            ("https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz", "stanford_cars/devkit"),
            (
                "http://ai.stanford.edu/~jkrause/car196/cars_test_annos_withlabels.mat",
                "stanford_cars/cars_test_annos_withlabels.mat",
            ),
            (
                DRIVE + "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
                "stanford_cars/split_zhou_StanfordCars.json",
            ),
        ),
    ),
    Row(
        name="OxfordFlowers",
        config="oxford_flowers",
        folder="oxford_flowers",
        images="jpg",
        kind="split",
        split="split_zhou_OxfordFlowers.json",
        made_from="flowers",
        needs=("imagelabels.mat", "cat_to_name.json"),
        classes=102,
        counts=(4093, 1633, 2463),
        sources=(
            (
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
                "oxford_flowers/jpg",
            ),
            (
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat",
                "oxford_flowers/imagelabels.mat",
            ),
            (DRIVE + "1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0", "oxford_flowers/cat_to_name.json"),
            (
                DRIVE + "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
                "oxford_flowers/split_zhou_OxfordFlowers.json",
            ),
        ),
    ),
    Row(
        name="Food101",
        config="food101",
        folder="food-101",
        images="images",
        kind="split",
        split="split_zhou_Food101.json",
        made_from="folders",
        classes=101,
        counts=(50_500, 20_200, 30_300),
        sources=(
            ("https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "food-101/images"),
            (DRIVE + "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl", "food-101/split_zhou_Food101.json"),
        ),
    ),
    Row(
        name="FGVCAircraft",
        config="fgvc_aircraft",
        folder="fgvc_aircraft",
        images="images",
        kind="split",
        made_from="aircraft",
        needs=(
            "variants.txt",
            "images_variant_train.txt",
            "images_variant_val.txt",
            "images_variant_test.txt",
        ),
        classes=100,
        counts=(3334, 3333, 3333),
        sources=(
            (
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                "fgvc_aircraft (the archive's folder data/, renamed)",
            ),
        ),
    ),
    Row(
        name="SUN397",
        config="sun397",
        folder="sun397",
        images="SUN397",
        kind="split",
        split="split_zhou_SUN397.json",
        made_from="sun",
        needs=("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
        classes=397,
        counts=(15_880, 3970, 19_850),
        sources=(
            ("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz", "sun397/SUN397"),
            ("https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip", "sun397"),
            (DRIVE + "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq", "sun397/split_zhou_SUN397.json"),
        ),
    ),
    Row(
        name="DescribableTextures",
        config="dtd",
        folder="dtd",
        images="images",
        kind="split",
        split="split_zhou_DescribableTextures.json",
        made_from="folders",
        classes=47,
        counts=(2820, 1128, 1692),
        sources=(
            (
                "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                "dtd/images",
            ),
            (
                DRIVE + "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
                "dtd/split_zhou_DescribableTextures.json",
            ),
        ),
    ),
    Row(
        name="EuroSAT",
        config="eurosat",
        folder="eurosat",
        images="2750",
        kind="split",
        split="split_zhou_EuroSAT.json",
        made_from="folders",
        classes=10,
        counts=(13_500, 5400, 8100),
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
            ("https://madm.dfki.de/files/sentinel/EuroSAT.zip", "eurosat/2750"),
            (DRIVE + "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", "eurosat/split_zhou_EuroSAT.json"),
        ),
    ),
    Row(
        name="UCF101",
        config="ucf101",
        folder="ucf101",
        images="UCF-101-midframes",
        kind="split",
        split="split_zhou_UCF101.json",
        made_from="ucf",
        needs=(
            "ucfTrainTestlist/classInd.txt",
            "ucfTrainTestlist/trainlist01.txt",
            "ucfTrainTestlist/testlist01.txt",
        ),
        classes=101,
        counts=(7639, 1898, 3783),
        sources=(
            (DRIVE + "10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O", "ucf101/UCF-101-midframes"),
            (DRIVE + "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y", "ucf101/split_zhou_UCF101.json"),
        ),
    ),
    Row(
        name="ImageNetV2",
        config="imagenetv2",
        folder="imagenetv2",
        images="imagenetv2-matched-frequency-format-val",
        kind="variant",
        made_from="label",
        needs=(CLASSNAMES,),
        classes=1000,
        counts=(0, 0, 10_000),
        sources=(
            (
                "https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz",
                "imagenetv2/imagenetv2-matched-frequency-format-val",
            ),
            (NAMES_LINK, "imagenetv2/classnames.txt"),
        ),
    ),
    Row(
        name="ImageNetSketch",
        config="imagenet_sketch",
        folder="imagenet-sketch",
        images="images",
        kind="variant",
        made_from="wnid",
        needs=(CLASSNAMES,),
        classes=1000,
        counts=(0, 0, 50_889),
        sources=(
            (
                "https://github.com/HaohanWang/ImageNet-Sketch",
                "imagenet-sketch/images (the archive's folder sketch/, renamed)",
            ),
            (NAMES_LINK, "imagenet-sketch/classnames.txt"),
        ),
    ),
    Row(
        name="ImageNetA",
        config="imagenet_a",
        folder="imagenet-adversarial",
        images="imagenet-a",
        kind="variant",
        made_from="wnid",
        needs=(CLASSNAMES,),
        classes=200,
        counts=(0, 0, 7500),
        sources=(
            (
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
                "imagenet-adversarial/imagenet-a",
            ),
            (NAMES_LINK, "imagenet-adversarial/classnames.txt"),
        ),
    ),
    Row(
        name="ImageNetR",
        config="imagenet_r",
        folder="imagenet-rendition",
        images="imagenet-r",
        kind="variant",
        made_from="wnid",
        needs=(CLASSNAMES,),
        classes=200,
        counts=(0, 0, 30_000),
        sources=(
            (
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                "imagenet-rendition/imagenet-r",
            ),
            (NAMES_LINK, "imagenet-rendition/classnames.txt"),
        ),
    ),
)

CATALOG: dict[str, Row] = {row.name: row for row in _ROWS}
