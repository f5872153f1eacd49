"""CustomFolder: folders of images in any layout, with any balance and names."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import layouts
import pytest
import yaml

import npt  # noqa: F401  (makes `dassl` importable)
from dassl.config import get_cfg_default
from dassl.data import data_manager
from npt.datasets.folder import CustomFolder
from npt.datasets.splits import divided
from npt.errors import NPTError

SIZES = {"bus": 20, "fire_engine": 10, "tram": 5}


def put(folder, sizes, start=0):
    for name, count in sizes.items():
        for k in range(start, start + count):
            layouts.put_image(folder / name / f"{k}.jpg")


def load(root, **dataset):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.SEED = "CustomFolder", str(root), 1
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    cfg.freeze()
    return data_manager.build_dataset(cfg)


def counts(items):
    return [n for _, n in sorted(Counter(item.label for item in items or []).items())]


def names_of(items):
    return {Path(item.impath).relative_to(Path(item.impath).parents[1]) for item in items}


@pytest.fixture
def tree(tmp_path):
    put(tmp_path, SIZES)
    return tmp_path


@pytest.fixture
def parts(tmp_path):
    for part, share in (("train", 1), ("val", 5), ("test", 2)):
        put(tmp_path / part, {name: size // share for name, size in SIZES.items()})
    return tmp_path


def test_class_folders_alone_are_split_within_each_class(tree):
    data = load(tree)
    assert data.classnames == ["bus", "fire engine", "tram"]
    assert counts(data.train_x) == [10, 5, 2]  # round(5 / 2) is 2
    assert counts(data.val) == [4, 2, 1]
    assert counts(data.test) == [6, 3, 2]
    assert data.class_frequency == {0: 10, 1: 5, 2: 2}
    every = [*data.train_x, *data.val, *data.test]
    assert len({item.impath for item in every}) == 35
    folders = ["bus", "fire_engine", "tram"]
    assert all(Path(item.impath).parent.name == folders[item.label] for item in every)


def test_the_split_is_the_same_in_every_run_and_folder(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    put(other, dict(reversed(SIZES.items())))
    one, two = load(tree), load(other, NUM_SHOTS=1)
    assert names_of(one.test) == names_of(two.test)


def test_a_new_image_changes_the_split_of_few_others(tree):
    before = load(tree).test
    layouts.put_image(tree / "bus" / "new.jpg")
    assert len(names_of(before) - names_of(load(tree).test)) <= 2


def test_train_val_and_test_folders(parts):
    data = load(parts)
    assert counts(data.train_x) == [20, 10, 5]
    assert counts(data.val) == [4, 2, 1]
    assert counts(data.test) == [10, 5, 2]
    assert all("/val/" in item.impath for item in data.val)


def test_without_a_test_folder_val_is_the_test_set(parts):
    for file in sorted((parts / "test").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (parts / "test").rmdir()
    data = load(parts)
    assert counts(data.test) == counts(data.val) == [4, 2, 1]


def test_without_a_val_folder_there_is_no_validation_set(tmp_path):
    put(tmp_path / "train", SIZES)
    put(tmp_path / "test", SIZES)
    assert load(tmp_path).val is None


def test_a_class_may_be_named_train(tmp_path):
    put(tmp_path, {"train": 10, "tram": 10})
    assert load(tmp_path).classnames == ["train", "tram"]


@pytest.mark.parametrize("name", ["images", "notes"])
def test_another_folder_beside_the_parts_is_an_error(parts, name):
    put(parts / name, SIZES)
    with pytest.raises(NPTError, match=rf"/{name} is beside train/"):
        load(parts)


def test_parts_need_class_folders(tmp_path):
    put(tmp_path, {"train": 10, "test": 10})
    with pytest.raises(NPTError, match="has no folders: sort the images"):
        load(tmp_path)


def test_shots_base_and_new(tree):
    data = load(tree, NUM_SHOTS=3, SUBSAMPLE_CLASSES="base")
    assert data.classnames == ["bus", "fire engine"]
    assert counts(data.train_x) == [3, 3] and counts(data.val) == [3, 2]
    assert load(tree, SUBSAMPLE_CLASSES="new").classnames == ["tram"]


def test_its_config_ranks_classes_by_their_natural_frequency(parts, repository):
    file = repository / "configs" / "datasets" / "custom_folder.yaml"
    config = yaml.safe_load(file.read_text())["DATASET"]
    assert config.pop("NAME") == "CustomFolder"
    put(parts / "train", {"tram": 40}, start=5)  # the sizes are now 20, 10 and 45
    data = load(parts, IMBALANCE_RATIO=0.04, **config)
    # 45, 45 * 0.2 = 9 and 45 * 0.04 = 1.8 images, by descending natural size
    assert counts(data.train_x) == [9, 1, 45]
    assert data.classnames == ["bus", "fire engine", "tram"]


@pytest.mark.parametrize("number", range(1, 41))
def test_every_class_has_training_images_and_with_two_images_test_images(number):
    from npt.datasets.base import Image

    lists = divided([Image(f"{k}.jpg", 0, "x") for k in range(number)])
    train, val, test = (len(lists[part]) for part in ("train", "val", "test"))
    assert train + val + test == number and train >= 1 and (test >= 1) == (number >= 2)
    if number >= 4:  # rounded as in CoOp
        assert (train, val) == (round(number * 0.5), round(number * 0.2))


# --------------------------------------------------------------------------- names
def test_names_from_a_text_file(tree):
    (tree / "classnames.txt").write_text(
        "bus city bus\nfire_engine\tfire truck\ntram tram car\nbicycle not here\n"
    )
    assert load(tree).classnames == ["city bus", "fire truck", "tram car"]


def test_names_from_a_json_file(tree):
    table = {"tram": "tram car", "bus": "city bus", "fire_engine": "fire_truck"}
    (tree / "classnames.json").write_text(json.dumps(table))
    assert load(tree).classnames == ["city bus", "fire_truck", "tram car"]


def test_folder_names_with_spaces(tmp_path):
    put(tmp_path, {"red fox": 4, "red": 4})
    (tmp_path / "classnames.txt").write_text("red a colour\nred fox an animal\n")
    assert load(tmp_path).classnames == ["a colour", "an animal"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [("classnames.txt", "bus a bus\ntram a tram", "no name for the class folder fire_engine"),
     ("classnames.txt", "bus\nfire_engine x\ntram y", "has no name for the class folder bus"),
     ("classnames.json", '{"bus": ""}', "has no name for the class folder bus"),
     ("classnames.json", '["bus"]', "cannot be read"),
     ("classnames.json", "{", "cannot be read"),
     ("classnames.json", "[" * 200_000, "cannot be read .*nested too deep"),
     ("classnames.json", '{"bus": 5, "tram": "t"}', "has no name for the class folder bus")],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_invalid_name_files(tree, file, text, message):
    (tree / file).write_text(text)
    with pytest.raises(NPTError, match=message) as error:
        load(tree)
    assert file in str(error.value)


# --------------------------------------------------------------------------- errors
def test_no_folder(tmp_path):
    with pytest.raises(NPTError, match=r"CustomFolder needs DATASET\.ROOT"):
        load("")
    with pytest.raises(NPTError, match="nowhere is missing"):
        load(tmp_path / "nowhere")
    with pytest.raises(NPTError, match="has no folders"):
        load(tmp_path)


def test_an_empty_class_and_a_class_without_training_images(parts):
    (parts / "train" / "van").mkdir()
    with pytest.raises(NPTError, match="train/van contains no image"):
        load(parts)
    (parts / "train" / "van").rmdir()
    layouts.put_image(parts / "test" / "van" / "1.jpg")
    with pytest.raises(NPTError, match="test/van is not among the training classes"):
        load(parts)


def test_no_test_images(tmp_path):
    put(tmp_path / "train", SIZES)
    with pytest.raises(NPTError, match="no image for testing"):
        load(tmp_path)


def test_other_files_are_ignored_with_a_warning(tree):
    (tree / "bus" / "film.mp4").write_text("")
    (tree / "tram" / "list.csv").write_text("")
    with pytest.warns(UserWarning, match=r"^2 files in .* such as bus/film\.mp4"):
        lists = CustomFolder.lists(tree)
    assert sum(map(len, lists.values())) == 35


def test_names_of_undecodable_bytes(tree):
    """Images may have them; a class needs a name that CLIP can read."""
    odd = os.fsdecode(b"a\xff")
    shutil.copyfile(tree / "bus" / "0.jpg", tree / "bus" / f"{odd}.jpg")
    (tree / "bus" / odd).write_text("")
    with pytest.warns(UserWarning, match=r"such as bus/a\\udcff: they are ignored"):
        data = load(tree)
    everything = [*data.train_x, *data.val, *data.test]
    assert sum(odd in Path(item.impath).name for item in everything) == 1
    (tree / "bus" / odd).unlink()
    layouts.put_image(tree / odd / "1.jpg")
    with pytest.raises(NPTError, match=r"The name a\\udcff of label 0 .*rename the class"):
        load(tree)


def test_a_folder_with_the_name_of_an_image_is_an_error(tree):
    (tree / "bus" / "x.jpg").mkdir()
    with pytest.raises(NPTError, match=r"bus/x\.jpg, which is a folder"):
        load(tree)


def test_a_name_that_is_not_text_is_an_error(tree):
    (tree / "classnames.txt").write_bytes(b"bus \xff\n")
    with pytest.raises(NPTError, match=r"classnames\.txt cannot be read"):
        load(tree)
