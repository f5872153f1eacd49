"""The memory of a large tree: right whatever happens to the tree, and never in the way."""

import json
import os
import time
from pathlib import Path

import layouts
import pytest

import npt  # noqa: F401  (makes `dassl` importable)
from npt.datasets import listing
from npt.datasets.listing import kept_files, remembered, scan
from npt.errors import NPTError

CLASSES = {"ant": ["a.jpg", "b.JPEG"], "bee": ["c.png"], "cat": ["d.jpg"]}


@pytest.fixture
def tree(tmp_path):
    """home/train/<class>/<image>, last changed an hour ago."""
    for folder, files in CLASSES.items():
        for file in files:
            layouts.put_image(tmp_path / "home" / "train" / folder / file)
    for folder in CLASSES:
        age(tmp_path / "home" / "train" / folder)
    return tmp_path / "home" / "train"


def age(folder: Path, seconds: float = 3600):
    then = time.time() - seconds
    os.utime(folder, (then, then))


@pytest.fixture
def listed(monkeypatch):
    """The folders that were looked into."""
    looked = []
    images = listing._images

    def look(folder, others):
        looked.append(folder.name)
        return images(folder, others)

    monkeypatch.setattr(listing, "_images", look)
    return looked


def test_a_tree_is_listed_once(tree, listed):
    assert remembered(tree, tree.parent) == CLASSES == scan(tree)
    listed.clear()
    assert remembered(tree, tree.parent) == CLASSES
    assert listed == []


def test_only_what_changed_is_listed_again(tree, listed):
    remembered(tree, tree.parent)
    listed.clear()
    layouts.put_image(tree / "bee" / "new.jpg")
    age(tree / "bee", 60)
    assert remembered(tree, tree.parent)["bee"] == ["c.png", "new.jpg"]
    assert listed == ["bee"]
    listed.clear()
    (tree / "ant" / "a.jpg").rename(tree / "moved.jpg")
    age(tree / "ant", 30)
    layouts.put_image(tree / "dog" / "e.jpg")
    (tree / "cat" / "d.jpg").unlink()
    (tree / "cat").rmdir()
    found = remembered(tree, tree.parent)
    assert found == {"ant": ["b.JPEG"], "bee": ["c.png", "new.jpg"], "dog": ["e.jpg"]}
    assert sorted(listed) == ["ant", "dog"]


def test_a_folder_that_just_changed_is_not_trusted(tree, listed):
    os.utime(tree / "cat")  # another file may come within this tick of the clock
    remembered(tree, tree.parent)
    listed.clear()
    remembered(tree, tree.parent)
    assert listed == ["cat"]


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"folders": []}', '{"folders": {"ant": 1}}',
               '{"folders": {"ant": ["x", "y"]}}', "\x80"],
)  # fmt: skip
def test_a_damaged_memory_is_made_anew(tree, damage):
    remembered(tree, tree.parent)
    file = kept_files(tree, tree.parent)[0]
    file.write_bytes(damage.encode("latin1"))
    assert remembered(tree, tree.parent) == CLASSES
    assert json.loads(file.read_text())["folders"].keys() == CLASSES.keys()


def test_where_the_data_cannot_be_written_the_users_cache_is_used(
    tree, listed, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = tmp_path / "home" / "train" / "ant" / "a.jpg"  # a file: nothing can be written in it
    assert remembered(tree, home) == CLASSES
    listed.clear()
    assert remembered(tree, home) == CLASSES
    assert listed == []
    assert len(list((tmp_path / "cache" / "npt").iterdir())) == 1


def test_without_any_place_to_keep_it_the_tree_is_just_listed(tree, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "ant" / "a.jpg"))
    assert remembered(tree, tree / "ant" / "a.jpg") == CLASSES


def test_trees_of_other_roots_are_kept_apart(tmp_path):
    trees = [tmp_path / root / part for root in ("one", "two") for part in ("train", "val")]
    files = {file for tree in trees for file in kept_files(tree, tree.parent)}
    assert len(files) == 8


def test_order_is_that_of_the_names_and_not_of_the_disk(tree, monkeypatch):
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: real(folder)[::-1])
    assert scan(tree) == CLASSES


def test_hidden_files_are_passed_over_and_links_followed(tree):
    layouts.put_image(tree / ".hidden" / "x.jpg")
    (tree / "ant" / ".directory").write_text("")
    (tree / "eel").symlink_to(tree / "bee")
    assert scan(tree) == {**CLASSES, "eel": ["c.png"]}


def test_nothing_to_list(tmp_path):
    with pytest.raises(NPTError, match="nowhere is missing"):
        scan(tmp_path / "nowhere")
    with pytest.raises(NPTError, match="has no folders"):
        scan(tmp_path)
