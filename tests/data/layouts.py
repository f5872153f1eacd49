"""Small copies of the fifteen data sets' layouts: real names of folders and files, tiny images.

Every data set has five classes (ImageNet-A and -R three). `build` makes the images and official
files of one and returns the truth: path below the images folder -> label.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Truth = dict[str, int]

WNIDS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead shark",
}
NAMES = {  # class names in order of their labels
    "ImageNet": list(WNIDS.values()),
    "Caltech101": ["face", "leopard", "airplane", "ant", "soccer_ball"],
    "OxfordPets": ["abyssinian", "american_bulldog", "american_pit_bull_terrier", "boxer", "pug"],
    "StanfordCars": [
        "2000 AM General Hummer SUV",
        "2012 Acura RL Sedan",
        "2012 Acura TL Sedan",
        "2008 Acura TL Type-S",
        "2012 Acura TSX Sedan",
    ],
    "OxfordFlowers": [
        "pink primrose",
        "hard-leaved pocket orchid",
        "canterbury bells",
        "sweet pea",
        "english marigold",
    ],
    "Food101": ["apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio", "beef_tartare"],
    "FGVCAircraft": ["707-320", "727-200", "A300B4", "BAE 146-200", "Challenger 600"],
    "SUN397": [
        "abbey",
        "airplane_cabin",
        "outdoor apartment_building",
        "indoor badminton_court",
        "platform train_station",
    ],
    "DescribableTextures": ["banded", "blotchy", "braided", "bubbly", "bumpy"],
    "EuroSAT": [
        "Annual Crop Land",
        "Forest",
        "Herbaceous Vegetation Land",
        "Highway or Road",
        "Sea or Lake",
    ],
    "UCF101": [
        "Apply_Eye_Makeup",
        "Apply_Lipstick",
        "Archery",
        "Handstand_Pushups",
        "Yo_Yo",
    ],
    "ImageNetV2": list(WNIDS.values()),
    "ImageNetSketch": list(WNIDS.values()),
    "ImageNetA": ["goldfish", "tiger shark", "hammerhead shark"],
    "ImageNetR": ["tench", "goldfish", "hammerhead shark"],
}
# Images a class in train, val and test when there is no split file.
MADE = {
    "ImageNet": (10, 4, 4),  # validation is the test set
    "Caltech101": (5, 2, 3),  # of 10: half, a fifth, the rest
    "OxfordPets": (8, 2, 4),  # of 10 for training: four fifths, one fifth; 4 for testing
    "StanfordCars": (8, 2, 4),
    "OxfordFlowers": (5, 2, 3),
    "Food101": (5, 2, 3),
    "FGVCAircraft": (6, 3, 4),  # three official lists
    "SUN397": (8, 2, 4),
    "DescribableTextures": (5, 2, 3),
    "EuroSAT": (5, 2, 3),
    "UCF101": (8, 2, 4),
    "ImageNetV2": (4, 0, 4),  # the test images stand for training images
    "ImageNetSketch": (4, 0, 4),
    "ImageNetA": (4, 0, 4),
    "ImageNetR": (4, 0, 4),
}


def put_image(file: Path) -> None:
    """A small image whose colour depends on its name; the format is that of the name."""
    colour = zlib.crc32(file.name.encode())
    picture = Image.new("RGB", (8, 6), tuple((colour >> s) & 255 for s in (0, 8, 16)))
    data = io.BytesIO()
    picture.save(data, "PNG" if file.suffix == ".png" else "JPEG")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.getvalue())


def put_text(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def tree(images: Path, folders: list[str], name: str, count: int = 10) -> Truth:
    """Folders of images called after `name`, in which {f} and {k} are filled in."""
    truth = {
        f"{folder}/{name.format(f=folder, k=k)}": label
        for label, folder in enumerate(folders)
        for k in range(1, count + 1)
    }
    for path in truth:
        put_image(images / path)
    return truth


def _imagenet(folder: Path) -> Truth:
    put_text(folder / "classnames.txt", (" ".join(pair) for pair in WNIDS.items()))
    truth = {}
    for part, count in (("train", 10), ("val", 4)):
        part_truth = tree(folder / "images" / part, list(WNIDS), "{f}_" + part + "{k}.JPEG", count)
        truth |= {f"{part}/{path}": label for path, label in part_truth.items()}
    return truth


def _variant(images: str, folders: list[str]) -> Callable[[Path], Truth]:
    def build(folder: Path) -> Truth:
        put_text(folder / "classnames.txt", (" ".join(pair) for pair in WNIDS.items()))
        truth = tree(folder / images, folders, "{k}.jpg", 4)
        put_text(folder / images / "README.txt", ["not a class"])
        return truth

    return build


def _folders(images: str, folders: list[str], name: str) -> Callable[[Path], Truth]:
    return lambda folder: tree(folder / images, folders, name)


def _caltech(folder: Path) -> Truth:
    images = folder / "101_ObjectCategories"
    tree(images, ["BACKGROUND_Google", "Faces_easy"], "image_{k:04d}.jpg", 3)
    classes = ["Faces", "Leopards", "airplanes", "ant", "soccer_ball"]
    return tree(images, classes, "image_{k:04d}.jpg")


def _pets(folder: Path) -> Truth:
    breeds = ["Abyssinian", "american_bulldog", "american_pit_bull_terrier", "boxer", "pug"]
    truth = {f"{b}_{k}.jpg": label for label, b in enumerate(breeds) for k in range(1, 15)}
    for path in truth:
        put_image(folder / "images" / path)
    lines = {p: f"{p[:-4]} {label + 1} 1 1" for p, label in truth.items()}
    for name, ks in (("trainval", range(1, 11)), ("test", range(11, 15))):
        chosen = [line for p, line in lines.items() if int(p[:-4].rpartition("_")[2]) in ks]
        put_text(folder / "annotations" / f"{name}.txt", chosen)
    return truth


def _cars(folder: Path) -> Truth:
    from scipy.io import savemat

    truth: Truth = {}
    meta = np.empty((1, 5), dtype=object)
    for label, name in enumerate(NAMES["StanfordCars"]):
        year, rest = name.split(" ", 1)
        meta[0, label] = f"{rest} {year}"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": meta})
    for part, file, count in (
        ("cars_train", "devkit/cars_train_annos.mat", 10),
        ("cars_test", "cars_test_annos_withlabels.mat", 4),
    ):
        rows = [(f"{n + 1:05d}.jpg", n % 5) for n in range(5 * count)]
        kind = [("bbox_x1", object), ("class", object), ("fname", object)]
        table = np.array([[(1, label + 1, name) for name, label in rows]], dtype=kind)
        savemat(folder / file, {"annotations": table})
        truth |= {f"{part}/{name}": label for name, label in rows}
    for path in truth:
        put_image(folder / path)
    return truth


def _flowers(folder: Path) -> Truth:
    from scipy.io import savemat

    truth = {f"image_{k:05d}.jpg": k % 5 for k in range(1, 51)}
    for path in truth:
        put_image(folder / "jpg" / path)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[v + 1 for v in truth.values()]])})
    names = {str(label + 1): name for label, name in enumerate(NAMES["OxfordFlowers"])}
    (folder / "cat_to_name.json").write_text(json.dumps(names))
    return truth


def _aircraft(folder: Path) -> Truth:
    names = NAMES["FGVCAircraft"]
    put_text(folder / "variants.txt", names)
    truth: Truth = {}
    for start, (part, count) in enumerate((("train", 6), ("val", 3), ("test", 4)), start=1):
        numbers = {f"{start}{k:06d}": k % 5 for k in range(5 * count)}
        lines = [f"{number} {names[label]}" for number, label in numbers.items()]
        put_text(folder / f"images_variant_{part}.txt", lines)
        truth |= {f"{number}.jpg": label for number, label in numbers.items()}
    for path in truth:
        put_image(folder / "images" / path)
    return truth


def _sun(folder: Path) -> Truth:
    scenes = [
        "/a/abbey",
        "/a/airplane_cabin",
        "/a/apartment_building/outdoor",
        "/b/badminton_court/indoor",
        "/t/train_station/platform",
    ]
    put_text(folder / "ClassName.txt", scenes)
    truth: Truth = {}
    for part, ks in (("Training_01", range(10)), ("Testing_01", range(10, 14))):
        lines = {f"{s}/sun_{k:04d}.jpg": label for label, s in enumerate(scenes) for k in ks}
        put_text(folder / f"{part}.txt", lines)
        truth |= {line[1:]: label for line, label in lines.items()}
    for path in truth:
        put_image(folder / "SUN397" / path)
    return truth


def _ucf(folder: Path) -> Truth:
    actions = ["ApplyEyeMakeup", "ApplyLipstick", "Archery", "HandstandPushups", "YoYo"]
    lists = folder / "ucfTrainTestlist"
    put_text(lists / "classInd.txt", (f"{n} {a}" for n, a in enumerate(actions, start=1)))
    truth: Truth = {}
    for part, ks in (("train", range(8, 18)), ("test", range(1, 5))):
        lines = []
        for label, action in enumerate(actions):
            for k in ks:
                video = f"v_{action}_g{k:02d}_c01"
                number = f" {label + 1}" if part == "train" else ""
                lines.append(f"{action}/{video}.avi{number}")
                truth[f"{NAMES['UCF101'][label]}/{video}.jpg"] = label
        put_text(lists / f"{part}list01.txt", lines)
    for path in truth:
        put_image(folder / "UCF-101-midframes" / path)
    return truth


BUILDERS: dict[str, tuple[str, Callable[[Path], Truth]]] = {  # folder below the root, builder
    "ImageNet": ("imagenet", _imagenet),
    "Caltech101": ("caltech-101", _caltech),
    "OxfordPets": ("oxford_pets", _pets),
    "StanfordCars": ("stanford_cars", _cars),
    "OxfordFlowers": ("oxford_flowers", _flowers),
    "Food101": ("food-101", _folders("images", NAMES["Food101"], "{k}.jpg")),
    "FGVCAircraft": ("fgvc_aircraft", _aircraft),
    "SUN397": ("sun397", _sun),
    "DescribableTextures": (
        "dtd",
        _folders("images", NAMES["DescribableTextures"], "{f}_{k:04d}.jpg"),
    ),
    "EuroSAT": (
        "eurosat",
        _folders(
            "2750",
            ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "SeaLake"],
            "{f}_{k}.jpg",
        ),
    ),
    "UCF101": ("ucf101", _ucf),
    "ImageNetV2": (
        "imagenetv2",
        _variant("imagenetv2-matched-frequency-format-val", [str(label) for label in range(5)]),
    ),
    "ImageNetSketch": ("imagenet-sketch", _variant("images", list(WNIDS))),
    "ImageNetA": (
        "imagenet-adversarial",
        _variant("imagenet-a", ["n01443537", "n01491361", "n01494475"]),
    ),
    "ImageNetR": (
        "imagenet-rendition",
        _variant("imagenet-r", ["n01440764", "n01443537", "n01494475"]),
    ),
}


def build(name: str, root: Path) -> Truth:
    """Makes the layout of a data set below `root`, without a split file."""
    folder, builder = BUILDERS[name]
    return builder(root / folder)


def put_split(name: str, root: Path, truth: Truth) -> dict[str, list[list]]:
    """Writes a split file like the literature's: 6 of a class to train, 2 validate, the rest test.

    Returns what it says.
    """
    split: dict[str, list[list]] = {"train": [], "val": [], "test": []}
    counts = [0] * len(NAMES[name])
    for path, label in truth.items():
        part = "train" if counts[label] < 6 else "val" if counts[label] < 8 else "test"
        counts[label] += 1
        split[part].append([path, label, NAMES[name][label]])
    file = root / BUILDERS[name][0] / f"split_zhou_{name}.json"
    file.write_text(json.dumps(split, indent=4))
    return split
