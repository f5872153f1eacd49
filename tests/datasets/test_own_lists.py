"""Lists, names and folders as people have them: what is read, and what the sentences name."""

import json
import os
import unicodedata
import warnings
from itertools import chain

import layouts
import pytest

import npt  # noqa: F401  (makes `dassl` importable)
from dassl.config import get_cfg_default
from dassl.data import data_manager
from npt.commands.predict import class_names
from npt.datasets.imagenet import read_classnames
from npt.datasets.spelling import Spelling
from npt.errors import NPTError
from npt.host import thinning
from npt.text_file import read_lines, read_text
from npt.yaml_file import read_yaml

NFD = unicodedata.normalize("NFD", "café")


def load(root, name="CustomFolder", **dataset):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.SEED = name, str(root), 1
    cfg.DATASET.update(dataset)
    return data_manager.build_dataset(cfg)


def sizes(data):
    return [len(part or ()) for part in (data.train_x, data.val, data.test)]


def put(root, *folders, number=4):
    for folder in folders:
        for k in range(number):
            layouts.put_image(root / folder / f"{k}.jpg")
    return root


# ---- text files
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_reader_takes_what_editors_save(tmp_path, encoding, end):
    file = tmp_path / "list.txt"
    file.write_bytes(f"n01440764 tench{end}n01443537 café{end}".encode(encoding))
    assert read_lines(file) == ["n01440764 tench", "n01443537 café"] == class_names(str(file))
    assert read_classnames(file) == {"n01440764": "tench", "n01443537": "café"}
    file.write_bytes(f"a: 1{end}b: é{end}".encode(encoding))
    assert read_yaml(file, "keys") == {"a": 1, "b": "é"}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be"])
def test_other_encodings_are_named(tmp_path, encoding):
    file = tmp_path / "classnames.txt"
    file.write_bytes("ant a\nbee café\n".encode(encoding))
    with pytest.raises(ValueError, match=r"UTF-16 without|line 2 is not in UTF-8; .*cp1252"):
        read_text(file)
    with pytest.raises(NPTError, match=r"classnames\.txt cannot be read .*save it as UTF-8"):
        load(put(tmp_path, "ant", "bee"))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_class_names_of_windows(tmp_path, encoding):
    put(tmp_path, "ant", "bee")
    (tmp_path / "classnames.txt").write_bytes("ant a café\r\nbee b\r\n".encode(encoding))
    assert load(tmp_path).classnames == ["a café", "b"]
    (tmp_path / "classnames.json").write_bytes('{"ant": "ä", "bee": "b"}'.encode(encoding))
    assert load(tmp_path).classnames == ["ä", "b"]


@pytest.mark.parametrize(
    ("folder", "line", "names"),
    [(NFD, "café a", ["a"]), ("café", f"{NFD} a", ["a"]), ("ant", "ANT a", ["a"]),
     ("ant", "\ufeffant a", ["a"])],
)  # fmt: skip
def test_folders_are_found_in_another_spelling(tmp_path, folder, line, names):
    put(tmp_path, folder)
    (tmp_path / "classnames.txt").write_text(line, encoding="utf-8")
    assert load(tmp_path).classnames == names


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [("classnames.txt", "ant a\nant b\nbee c", "ant has the names a and b"),
     ("classnames.json", '{"ant": "a", "ant": "b", "bee": "c"}', "key 'ant' twice"),
     ("classnames.txt", "ant a\x07b\nbee c", "control character"),
     ("classnames.txt", "ant _\nbee c", "has no class name")],
)  # fmt: skip
def test_names_that_cannot_be_meant(tmp_path, file, text, message):
    put(tmp_path, "ant", "bee")
    (tmp_path / file).write_text(text)
    with pytest.raises(NPTError, match=message):
        load(tmp_path)


# ---- split files
ROWS = {
    part: [[f"{name}/{part}.png", label, name] for label, name in enumerate(("Forest", "River"))]
    for part in ("train", "val", "test")
}


@pytest.fixture
def split(tmp_path):
    """Writes a split file of EuroSAT, from ROWS and changes, and loads it."""
    folder = tmp_path / "eurosat"
    for row in chain(*ROWS.values()):
        layouts.put_image(folder / "2750" / row[0])

    def write(change=lambda rows: None, encoding="utf-8"):
        rows = json.loads(json.dumps(ROWS))
        change(rows)
        text = json.dumps(rows)
        (folder / "split_zhou_EuroSAT.json").write_bytes(text.encode(encoding))
        return load(tmp_path, "EuroSAT")

    return write


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_split_file_of_any_editor(split, encoding):
    assert sizes(split(encoding=encoding)) == [2, 2, 2]


@pytest.mark.parametrize(
    "change",
    [lambda s: s.pop("val"), lambda s: s["val"].clear(), lambda s: s.update(val=None)],
)
def test_validation_images_are_optional(split, change):
    data = split(change)
    assert data.val is None and sizes(data) == [2, 0, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda s: s.update(test=[]), "lists no images under test"),
     (lambda s: s.update(test=None), "lists no images under test"),
     (lambda s: s.update(train=[]), "lists no images under train"),
     (lambda s: s.pop("train"), 'no list "train"'),
     (lambda s: s.update(valid=s.pop("val")), "no list \"val\", but a list 'valid'")],
)  # fmt: skip
def test_a_part_that_is_needed_is_named(split, change, message):
    with pytest.raises(NPTError, match=message):
        split(change)


def renamed(how):
    def change(rows):
        for row in chain(*rows.values()):
            row[0] = how(row[0])

    return change


@pytest.mark.parametrize(
    "how",
    [lambda p: p.replace("/", "\\"), lambda p: "./" + p, lambda p: ".\\" + p.replace("/", "\\"),
     lambda p: p.replace("/", "//"), lambda p: p.replace("/", "/.\\")],
)  # fmt: skip
def test_paths_of_windows(split, how):
    assert sizes(split(renamed(how))) == [2, 2, 2]


def test_an_image_under_two_spellings_of_its_path_is_one_image(split):
    with pytest.warns(UserWarning, match="1 images are in both train and test"):
        split(lambda s: s["test"].append(["Forest\\train.png", 0, "Forest"]))


def test_paths_in_another_spelling_are_found_and_said_once(split):
    with pytest.warns(UserWarning, match=r"6 images .* another spelling .*FOREST/TRAIN\.PNG"):
        assert sizes(split(renamed(str.upper))) == [2, 2, 2]


@pytest.mark.parametrize("start", ["C:\\data\\", "C:/", "/home/someone/", "\\\\server\\share\\"])
def test_full_paths_of_another_machine_are_named(split, start):
    with pytest.raises(NPTError, match="a full path, but there is no such file here"):
        split(renamed(lambda p: start + p))


@pytest.mark.parametrize("label", [0.5, "0.5", True, None, [1], "1_0", "٣", "x", ""])
def test_labels_are_never_cut(split, label):
    with pytest.raises(NPTError, match=r"the label .* is not a whole number"):
        split(lambda s: s["train"][1].__setitem__(1, label))


def test_spelling_does_not_guess(tmp_path):
    layouts.put_image(tmp_path / "a" / "X.png")
    layouts.put_image(tmp_path / "a" / "x.png")
    spelling = Spelling(tmp_path)
    assert spelling.find("A/x.png") == tmp_path / "a" / "x.png"
    assert spelling.find("a/x.PNG") is None and spelling.find("b/x.png") is None


# ---- folders
def test_what_systems_leave_is_passed_over_and_said_once(tmp_path, capsys):
    put(tmp_path, "ant", "bee", "__MACOSX/ant", "@eaDir", "ant/.ipynb_checkpoints", "bee/@eaDir")
    for name in ("Thumbs.db", "ant/desktop.ini", "ant/._0.jpg", "bee/.DS_Store", "bee/._1.jpg"):
        (tmp_path / name).write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(tmp_path)
    assert data.classnames == ["ant", "bee"] and sum(sizes(data)) == 8
    said = capsys.readouterr().out
    assert said.count("Passed over") == 1 and "@eaDir (2)" in said and "other names" in said


@pytest.mark.parametrize(
    ("folders", "message"),
    [(("my/ant", "my/bee"), r"only the folder my, .* set --root to .*/my\."),
     (("my/train/ant", "my/test/ant"), r"only the folder my, .* set --root to .*/my\."),
     (("x/ant", "y/bee"), r"x contains no image itself, .*ant with 4.* set --root to .*/x\."),
     (("ant/raw", "bee"), r"ant contains no image itself, .*raw with 4: move the images up"),
     (("train/ant", "val/ant", "valid/ant"), "both for val"),
     (("train/ant", "test/Ant"), "name of the training class ant in another spelling")],
)  # fmt: skip
def test_images_at_another_depth_say_what_to_do(tmp_path, folders, message):
    with pytest.raises(NPTError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(put(tmp_path, *folders))


@pytest.mark.parametrize(
    ("folder", "message"),
    [("ant/raw/old", "1 folders inside class folders .* such as ant/raw"),
     ("", r"4 images lie in .* itself, such as 0\.jpg")],
)  # fmt: skip
def test_images_outside_class_folders_are_said(tmp_path, folder, message):
    put(tmp_path, "ant", "bee", folder)
    with pytest.warns(UserWarning, match=message):
        assert sum(sizes(load(tmp_path))) == 8


def test_links_that_lead_nowhere_are_said(tmp_path):
    put(tmp_path, "ant", "bee")
    os.symlink(tmp_path / "gone", tmp_path / "cat")
    os.symlink(tmp_path / "bee", tmp_path / "dog")
    with pytest.warns(UserWarning, match="1 links .* such as cat"):
        assert load(tmp_path).classnames == ["ant", "bee", "dog"]
    os.symlink(tmp_path / "gone.jpg", tmp_path / "ant" / "z.jpg")
    with pytest.raises(NPTError, match=r"ant/z\.jpg is a link to .*gone\.jpg"):
        load(tmp_path)


@pytest.mark.parametrize("names", [("Train", "Valid", "TEST"), ("training", "dev", "testing")])
def test_parts_under_other_names(tmp_path, names):
    put(tmp_path, *(f"{name}/{folder}" for name in names for folder in ("ant", "bee")))
    assert sizes(load(tmp_path)) == [8, 8, 8]
    assert sizes(load(tmp_path, "CustomTest")) == [8, 0, 8]


def test_an_empty_folder_of_a_part(tmp_path):
    put(tmp_path, "train/ant", "val/ant")
    (tmp_path / "test").mkdir()
    with pytest.raises(NPTError, match=r"test has no folders.* remove it, and val/ is the test"):
        load(tmp_path)
    put(tmp_path, "test/ant")
    for file in (tmp_path / "val" / "ant").iterdir():
        file.unlink()
    (tmp_path / "val" / "ant").rmdir()
    with pytest.warns(UserWarning, match="val is empty: there are no validation images"):
        assert sizes(load(tmp_path)) == [4, 0, 4]


def test_spaces_around_the_name_of_a_folder_are_not_in_the_class_name(tmp_path):
    assert load(put(tmp_path, "ant ", "_bee")).classnames == ["bee", "ant"]


def test_the_new_half_of_one_class_says_why_it_is_empty(tmp_path):
    put(tmp_path, "ant")
    assert load(tmp_path, SUBSAMPLE_CLASSES="base").classnames == ["ant"]
    with pytest.raises(NPTError, match=r"SUBSAMPLE_CLASSES is new, .* only 1 class"):
        load(tmp_path, SUBSAMPLE_CLASSES="new")


@pytest.mark.parametrize("folders", [("ant", "bee"), ("test/ant", "test/bee")])
def test_every_image_of_a_custom_test_is_a_test_image(tmp_path, folders):
    data = load(put(tmp_path, *folders), "CustomTest", NUM_SHOTS=1)
    assert (
        data.classnames == ["ant", "bee"]
        and sizes(data) == [8, 0, 8]
        and thinning.tested_only(data)
    )
