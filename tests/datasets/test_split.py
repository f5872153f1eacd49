"""Split files: reading, few-shot draws, class halves, and errors."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import npt  # noqa: F401  (makes `dassl` importable)
from dassl.config import get_cfg_default
from npt.datasets.base import PARTS, SplitDataset, check_classes, class_numbers, read_split
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


GOOD = {part: [[f"{part}_{k}.png", k, name] for k, name in enumerate(CLASSES)] for part in PARTS}
TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [('"train_1.png", 1', f'"train_1.png", {label}', "is not a split file")
     for label in ("Infinity", "-Infinity", "NaN", "1e400", "true", "1.5", "null", "[1]", '"one"',
                   "1" + "0" * 40, "9" * 4000, "9" * 5000)]
    + [('"train_1.png", 1', '"train_1.png", -1', "below 0"),
       ('"train_1.png", 1', '"train_1.png", 7', "has no training image"),
       ('"bee"', "5", "is not a text"),
       ('"bee"', '["bee"]', "is not a text"),
       ('"bee"', '"\\ud800"', r"The name \\ud800 of label 1"),
       ('"bee"', "null", "has no class name"),
       ('"train_1.png"', "5", "is not a text"),
       ('"train_1.png"', '"a\\u0000.png"', "NUL"),
       ('"train_1.png"', '"\\ud800.png"', "surrogates"),
       ('["train_1.png", 1, "bee"]', '"a1b"', "is not \\[path, label, class name]"),
       ('["train_1.png", 1, "bee"]', '{"a": 1, "b": 2, "c": 3}', "is not \\[path, label"),
       (json.dumps(GOOD["train"]), '{"a1b": 0}', "is not a list"),
       (json.dumps(GOOD["train"]), "[" * 200_000 + "]" * 200_000, "nested too deep"),
       (json.dumps(GOOD["train"]), '{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deep"),
       (TEXT, "5", "is not a split file"), (TEXT, '"train"', "is not a split file")],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_odd_entries_of_a_split_are_one_sentence(tmp_path, old, new, message):
    file = tmp_path / "split.json"
    assert old in TEXT
    file.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(NPTError, match=message) as error:
        check_classes(read_split(file), file)
    assert str(file) in str(error.value) and len(str(error.value)) < 600


def test_whole_numbers_in_other_forms_are_labels(tmp_path):
    file = tmp_path / "split.json"
    file.write_text(TEXT.replace(", 1, ", ", 1.0, ").replace(", 2, ", ', "2", '))
    assert [image.label for image in read_split(file)["train"]] == [0, 1, 2, 3, 4]


def test_bytes_that_are_no_text_and_folders_are_one_sentence(tmp_path):
    file = tmp_path / "split.json"
    file.write_bytes(b"\xff" + TEXT.encode())
    with pytest.raises(NPTError, match=r"split\.json is not a split file"):
        read_split(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(NPTError, match=r"split\.json is not a split file .*directory"):
        read_split(file)


@pytest.mark.parametrize("root", ["~nobody_of_this_name/x", "a\0b", "a\udc80b"])
def test_roots_that_cannot_be_folders_are_one_sentence(root):
    with pytest.raises(NPTError, match=r"DATASET\.ROOT.* cannot be used"):
        Animals(config(root))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@st.composite
def splits(draw):
    """The content of a split file, of which some parts are replaced by other values."""
    names = draw(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3))
    content = {
        part: [[f"{part}{k}.png", k, name] for k, name in enumerate(names)] for part in PARTS
    }
    for _ in range(draw(st.integers(0, 3))):
        part = draw(st.sampled_from(PARTS))
        rows, value = content[part], draw(values)
        place = draw(st.sampled_from(["entry", "row", "part"]))
        if place == "part" or not isinstance(rows, list) or not rows:
            content[part] = value
        elif place == "row" or not isinstance(rows[-1], list):
            rows[draw(st.integers(0, len(rows) - 1))] = value
        else:
            rows[-1][draw(st.integers(0, len(rows[-1]) - 1)) if rows[-1] else 0 :] = [value]
    return content


@settings(max_examples=200, deadline=None)
@given(splits())
def test_any_split_is_a_data_set_or_one_sentence(content):
    """If it is a data set, labels and names are those of the file."""
    with tempfile.TemporaryDirectory() as folder:
        animals = Path(folder) / "animals"
        (animals / "images").mkdir(parents=True)
        for part in PARTS:
            for k in range(3):
                (animals / "images" / f"{part}{k}.png").touch()
        (animals / "split.json").write_text(json.dumps(content))
        try:
            data = Animals(config(folder))
        except NPTError as error:
            assert str(error) and len(str(error)) < 1500
            return
        finally:
            shutil.rmtree(animals)
        for part, listed in zip(PARTS, (data.train_x, data.val, data.test), strict=True):
            found = [[Path(item.impath).name, item.label, item.classname] for item in listed]
            assert found == [[path, int(label), name] for path, label, name in content[part]]


def test_missing_files_are_named(root, tmp_path):
    with pytest.raises(NPTError, match=r"DATASET\.ROOT"):
        Animals(config(""))
    with pytest.raises(NPTError, match="animals"):
        Animals(config(tmp_path))
    (tmp_path / "animals").mkdir()
    with pytest.raises(NPTError, match=r"split\.json is missing"):
        Animals(config(tmp_path))
