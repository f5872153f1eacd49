"""The cached list of a large tree: up to date after any change, and optional."""

import json
import os
import time
from pathlib import Path

import layouts
import pytest

import npt  # noqa: F401  (makes `dassl` importable)
from npt.datasets import listing
from npt.datasets.listing import cache_files, remembered, scan
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
    """The class folders that were listed, in a list that grows."""
    folders = []
    images = listing._images

    def recording(folder, others):
        folders.append(folder.name)
        return images(folder, others)

    monkeypatch.setattr(listing, "_images", recording)
    return folders


def test_an_unchanged_tree_is_listed_once(tree, listed):
    assert remembered(tree, tree.parent) == CLASSES == scan(tree)
    listed.clear()
    assert remembered(tree, tree.parent) == CLASSES
    assert listed == []


def test_only_changed_folders_are_listed_again(tree, listed):
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


def test_a_folder_that_has_just_changed_is_listed_again(tree, listed):
    os.utime(tree / "cat")  # another file may be added within this clock tick
    remembered(tree, tree.parent)
    listed.clear()
    remembered(tree, tree.parent)
    assert listed == ["cat"]


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"folders": []}', '{"folders": {"ant": 1}}',
               '{"folders": {"ant": ["x", "y"]}}', "\x80",
               "[" * 200_000, '{"folders": {"ant": [0, "x"]}}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_damaged_cache_file_is_replaced(tree, damage):
    remembered(tree, tree.parent)
    file = cache_files(tree, tree.parent)[0]
    file.write_bytes(damage.encode("latin1"))
    assert remembered(tree, tree.parent) == CLASSES
    assert json.loads(file.read_text())["folders"].keys() == CLASSES.keys()


def test_one_flipped_bit_in_the_cache_file_changes_nothing(tree):
    """Such as in the name of an image, which would then be another image."""
    remembered(tree, tree.parent)
    file = cache_files(tree, tree.parent)[0]
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 29):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        assert remembered(tree, tree.parent) == CLASSES


def test_the_users_cache_is_used_if_the_data_folder_cannot_be_written(
    tree, listed, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = tmp_path / "home" / "train" / "ant" / "a.jpg"  # a file, so no file can be created in it
    assert remembered(tree, home) == CLASSES
    listed.clear()
    assert remembered(tree, home) == CLASSES
    assert listed == []
    assert len(list((tmp_path / "cache" / "npt").iterdir())) == 1


def test_without_a_writable_folder_the_tree_is_listed_each_time(tree, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "ant" / "a.jpg"))
    assert remembered(tree, tree / "ant" / "a.jpg") == CLASSES


def test_trees_of_different_roots_have_different_cache_files(tmp_path):
    trees = [tmp_path / root / part for root in ("one", "two") for part in ("train", "val")]
    files = {file for tree in trees for file in cache_files(tree, tree.parent)}
    assert len(files) == 8


def test_the_order_is_sorted_and_not_that_of_the_disk(tree, monkeypatch):
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: real(folder)[::-1])
    assert scan(tree) == CLASSES


def test_hidden_files_are_skipped_and_links_followed(tree):
    layouts.put_image(tree / ".hidden" / "x.jpg")
    (tree / "ant" / ".directory").write_text("")
    (tree / "eel").symlink_to(tree / "bee")
    assert scan(tree) == {**CLASSES, "eel": ["c.png"]}


def test_missing_and_empty_trees(tmp_path):
    with pytest.raises(NPTError, match="nowhere is missing"):
        scan(tmp_path / "nowhere")
    with pytest.raises(NPTError, match="has no folders"):
        scan(tmp_path)
