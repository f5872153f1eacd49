"""Split files: reading, few-shot draws, class halves, and errors."""

import json
from collections import Counter

import pytest
from PIL import Image

import npt  # noqa: F401  (makes `dassl` importable)
from dassl.config import get_cfg_default
from npt.datasets.base import SplitDataset, class_numbers, read_split
from npt.errors import NPTError

CLASSES = ["ant", "bee", "cat", "dog", "eel"]  # an odd number: the base half is the larger


class Animals(SplitDataset):
    folder = "animals"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """20 + k training, 6 validation and 3 test images of the k-th of five classes."""
    root = tmp_path_factory.mktemp("data")
    images = root / "animals" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "one.png")
    split = {"train": [], "val": [], "test": []}
    for label, name in enumerate(CLASSES):
        for part, count in (("train", 20 + label), ("val", 6), ("test", 3)):
            for k in range(count):
                path = f"{name}_{part}_{k}.png"
                (images / path).symlink_to(images / "one.png")
                split[part].append([path, label, name])
    (root / "animals" / "split.json").write_text(json.dumps(split))
    return root


def config(root, **dataset):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME = str(root), "Animals"
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return cfg


def counts(items):
    return dict(Counter(item.label for item in items))


def test_few_shots_of_all_classes(root):
    data = Animals(config(root, NUM_SHOTS=16))
    assert counts(data.train_x) == dict.fromkeys(range(5), 16)
    assert counts(data.val) == dict.fromkeys(range(5), 4)
    assert counts(data.test) == dict.fromkeys(range(5), 3)
    assert data.classnames == CLASSES
    assert data.class_frequency == {k: 20 + k for k in range(5)}


def test_all_images_without_num_shots(root):
    data = Animals(config(root))
    assert counts(data.train_x) == {k: 20 + k for k in range(5)}
    assert counts(data.val) == dict.fromkeys(range(5), 6)


@pytest.mark.parametrize(
    ("which", "names", "frequency"),
    [("base", ["ant", "bee", "cat"], [20, 21, 22]), ("new", ["dog", "eel"], [23, 24])],
)
def test_base_and_new_classes_are_relabelled_from_zero(root, which, names, frequency):
    data = Animals(config(root, NUM_SHOTS=2, SUBSAMPLE_CLASSES=which))
    assert data.classnames == names
    assert data.num_classes == len(names)
    assert data.class_frequency == dict(enumerate(frequency))
    for part in (data.train_x, data.val, data.test):
        assert sorted(counts(part)) == list(range(len(names)))
        assert all(names[item.label] == item.classname for item in part)


def test_with_fewer_than_four_shots_validation_has_as_many(root):
    assert counts(Animals(config(root, NUM_SHOTS=1)).val) == dict.fromkeys(range(5), 1)


def test_all_classes_keep_their_labels():
    assert class_numbers([3, 1, 3], "all") == {1: 1, 3: 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not a split file"), ('{"train": []}', "is not a split file"),
     ('{"train": [["a.png", 0]], "val": [], "test": []}', "is not a split file"),
     ('{"train": [], "val": [], "test": []}', "lists no images under train")],
)  # fmt: skip
def test_a_broken_split_file_is_one_sentence(tmp_path, text, message):
    file = tmp_path / "split.json"
    file.write_text(text)
    with pytest.raises(NPTError, match=message) as error:
        read_split(file)
    assert str(file) in str(error.value)


def test_missing_files_are_named(root, tmp_path):
    with pytest.raises(NPTError, match=r"DATASET\.ROOT"):
        Animals(config(""))
    with pytest.raises(NPTError, match="animals"):
        Animals(config(tmp_path))
    (tmp_path / "animals").mkdir()
    with pytest.raises(NPTError, match=r"split\.json is missing"):
        Animals(config(tmp_path))
