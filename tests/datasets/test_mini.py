"""The mini suite: identical on every machine, created atomically, with the documented classes."""

import errno
import multiprocessing
import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import npt  # noqa: F401  (makes `dassl` importable)
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from npt.datasets import mini
from npt.datasets.conditions import CONDITIONS, render
from npt.datasets.drawing import SIZE
from npt.datasets.worlds import WORLDS
from npt.errors import NPTError

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"
SMALL = "MiniLand"


@pytest.mark.parametrize("world", WORLDS)
def test_every_class_of_every_world_can_be_drawn(world):
    for name in list(WORLDS[world].classes)[:40]:
        picture, words = render(np.random.default_rng(0), world, name, {})
        again, _ = render(np.random.default_rng(0), world, name, {})
        assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
        assert np.array_equal(picture, again)
        assert picture.std() > 1  # not a plain colour
        for phrase in WORLDS[world].phrases:
            assert "{" not in phrase.format(name=name, **words)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_larger_amount_of_a_condition_changes_the_picture_more(condition):
    def distance(amount):
        amounts = {condition: (amount, amount)}
        plain, _ = render(np.random.default_rng(3), "shapes", "star", {})
        changed, _ = render(np.random.default_rng(3), "shapes", "star", amounts)
        return np.abs(plain.astype(int) - changed).mean()

    assert distance(0.25) > 0
    if condition != "negative":  # at an amount of 0.5, a negative is grey
        assert distance(0.25) < distance(1.0)


@pytest.mark.parametrize("name", mini.ROWS)
def test_every_data_set_is_registered_and_has_a_config(name):
    assert name in DATASET_REGISTRY.registered_names()
    assert name in (CONFIGS / f"{mini.folder_name(name)}.yaml").read_text()


def test_base_to_new_data_sets_have_ten_to_forty_classes():
    worlds = {world for row in mini.ROWS.values() for world, _ in row.classes}
    assert len(worlds) >= 4
    for name, row in mini.ROWS.items():
        if not name.startswith("MiniNet"):
            assert 10 <= len(row.classes) <= 40
        assert len(set(row.classes)) == len(row.classes)


def test_variants_have_the_classes_of_their_source():
    for name in ("MiniNetV2", "MiniNetSketch", "MiniNetA", "MiniNetR"):
        assert mini.ROWS[name].classes == mini.ROWS["MiniNet"].classes


def test_it_is_made_once_as_image_files_with_a_split(tmp_path, capsys):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = SMALL, str(tmp_path), 16
    data = build_dataset(cfg)
    assert "Making MiniLand" in capsys.readouterr().out
    row = mini.ROWS[SMALL]
    assert data.classnames == [name for _, name in row.classes]
    assert set(Counter(d.label for d in data.train_x).values()) == {16}
    assert set(Counter(d.label for d in data.test).values()) == {row.counts[2]}
    first = next(iter(mini.pictures(SMALL)))
    stored = tmp_path / "mini_land" / "images" / first[2].replace(" ", "_") / "train_00000.png"
    assert np.array_equal(np.asarray(Image.open(stored)), first[3])
    build_dataset(cfg)
    assert "Making MiniLand" not in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["mini_land"]


def test_without_a_root_it_is_made_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cfg = get_cfg_default()
    cfg.DATASET.NAME = SMALL
    build_dataset(cfg)
    assert (tmp_path / "npt" / f"mini-v{mini.VERSION}" / "mini_land" / "split.json").is_file()


def test_pictures_with_another_checksum_are_an_error_and_are_removed(tmp_path, monkeypatch):
    from dataclasses import replace

    other = replace(mini.ROWS[SMALL], sha256="0" * 64)
    monkeypatch.setitem(mini.ROWS, SMALL, other)
    with pytest.raises(NPTError, match="differ from version"):
        mini.make(SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_another_version_are_an_error(tmp_path):
    folder = mini.make(SMALL, tmp_path)
    (folder / mini.STAMP).write_text("another")
    with pytest.raises(NPTError, match="not MiniLand of this version"):
        mini.make(SMALL, tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    mini.make(SMALL, root)
    return root


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the root with the data set."""
    shutil.copytree(made, tmp_path / "root")
    return tmp_path / "root"


PICTURE = "images/forest/test_00100.png"


def replace_picture(folder):
    shutil.copyfile(folder / "images/beach/test_00030.png", folder / PICTURE)


def flip_a_bit(name):
    def flip(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip


DAMAGE = {
    "a replaced picture": (replace_picture, PICTURE),
    "a flipped bit in a picture": (flip_a_bit(PICTURE), PICTURE),
    "an empty picture": (lambda folder: (folder / PICTURE).write_bytes(b""), PICTURE),
    "a removed picture": (lambda folder: (folder / PICTURE).unlink(), PICTURE),
    "a changed split": (flip_a_bit("split.json"), "split.json"),
    "a removed split": (lambda folder: (folder / "split.json").unlink(), "split.json"),
    "a changed list of checksums": (flip_a_bit(mini.MANIFEST), "images/"),
    "an odd list of checksums": (lambda f: (f / mini.MANIFEST).write_bytes(b"\xff\0"), "images/"),
    "an empty list of checksums": (lambda f: (f / mini.MANIFEST).write_bytes(b""), "images/"),
    "an odd stamp": (lambda folder: (folder / mini.STAMP).write_bytes(b"\xff\0"), ""),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("old", [False, True])
def test_a_changed_file_is_named(copy, what, old):
    """old: made by a version that wrote no list of checksums"""
    damage, named = DAMAGE[what]
    folder = copy / "mini_land"
    damage(folder)
    if old:
        if "list of" in what:
            return
        (folder / mini.MANIFEST).unlink()
    with pytest.raises(NPTError, match=rf"{folder}/?{named}.*delete"):
        mini.make(SMALL, copy)


def test_a_folder_of_an_earlier_version_is_verified_once(copy):
    manifest = copy / "mini_land" / mini.MANIFEST
    content = manifest.read_bytes()
    manifest.unlink()
    mini.make(SMALL, copy)
    assert manifest.read_bytes() == content


def test_verifying_takes_no_time(made):
    start = time.process_time()
    mini.make(SMALL, made)
    assert time.process_time() - start < 0.2  # it is 0.02 on an idle machine


def test_the_list_of_checksums_is_for_sha256sum(made):
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet", mini.MANIFEST], cwd=made / "mini_land", check=False
    )
    assert done.returncode == 0


def test_what_a_killed_process_left_is_removed(tmp_path):
    left, busy = tmp_path / ".mini_land-left", tmp_path / ".mini_land-busy"
    left.mkdir()
    busy.mkdir()
    os.utime(left, (0, 0))
    mini.make(SMALL, tmp_path)
    assert not left.exists() and busy.exists()


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mini.Image.Image, "save", full)
    with pytest.raises(NPTError, match=r"MiniLand cannot be made in .*No space left"):
        mini.make(SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_can_make_it_at_the_same_time(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        folders = pool.starmap(mini.make, [(SMALL, tmp_path)] * 2)
    assert folders[0] == folders[1]
    assert [p.name for p in tmp_path.iterdir()] == ["mini_land"]


def test_a_root_that_cannot_be_written_is_an_error(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NPTError, match="writable --root"):
        mini.make(SMALL, file)


@pytest.mark.slow
@pytest.mark.parametrize("name", mini.ROWS)
def test_the_pictures_have_the_checksum_of_this_version(name, tmp_path):
    assert mini.make(name, tmp_path).is_dir()
