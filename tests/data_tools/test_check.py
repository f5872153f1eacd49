"""`python -m npt.data check` on small copies of the layouts."""

import json

import layouts
import pytest
from PIL import Image

from npt.data.__main__ import main

CLASSES = ("AnnualCrop", "River", "Forest")
PARTS = {"train": range(4), "val": range(4, 6), "test": range(6, 9)}


@pytest.fixture
def root(tmp_path):
    """A root with EuroSAT: three classes of 4, 2 and 3 images in train, val and test."""
    lists: dict[str, list] = {part: [] for part in PARTS}
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for part, numbers in PARTS.items():
            for k in numbers:
                Image.new("RGB", (8, 8), (10 * k, 0, 0)).save(folder / f"{k}.jpg")
                lists[part].append([f"{name}/{k}.jpg", label, name])
    split = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    split.write_text(json.dumps(lists))
    return tmp_path


@pytest.fixture
def check(root, capsys):
    def run(*arguments: str) -> tuple[int, str]:
        code = main(["check", "--root", str(root), *arguments])
        return code, capsys.readouterr().out

    return run


def row(out: str, name: str) -> list[str]:
    return next(line.split() for line in out.splitlines() if line.startswith(f"{name} "))


def test_a_complete_data_set(check):
    code, out = check("eurosat")
    assert code == 0
    assert row(out, "EuroSAT") == ["EuroSAT", "yes", "12", "6", "9", "3", "0", "yes"]
    assert "the published numbers are 13,500, 5,400, 8,100" in out  # this one is smaller


def test_without_names_all_data_sets_are_checked(check):
    code, out = check()
    assert code == 1
    assert row(out, "ImageNetA")[1] == "no" and row(out, "EuroSAT")[1] == "yes"
    assert "imagenet/images/train\n      comes from https://image-net.org/: the host" in out
    assert "python -m npt.data prepare Food101 --root" in out
    assert len([line for line in out.splitlines() if " no " in f"{line} "]) >= 14


def test_missing_images_are_counted_and_named(check, root):
    for k in (0, 7):
        (root / "eurosat" / "2750" / "River" / f"{k}.jpg").unlink()
    code, out = check("EuroSAT")
    assert code == 1
    assert row(out, "EuroSAT")[6] == "2"
    assert "River/0.jpg and 1 more" in out


def test_the_source_of_a_missing_split_file_is_shown(check, root):
    split = root / "eurosat" / "split_zhou_EuroSAT.json"
    split.unlink()
    code, out = check("EuroSAT")
    assert code == 1
    assert row(out, "EuroSAT")[-1] == "no"
    assert f"{split}\n      comes from https://" in out
    assert not split.exists()  # check does not make one


def test_a_corrupt_split_file(check, root):
    (root / "eurosat" / "split_zhou_EuroSAT.json").write_text('{"train": [')
    code, out = check("EuroSAT")
    assert code == 1 and "is not a split file" in out


def test_an_invalid_split_file(check, root):
    """A data set is incomplete if a run could not load its split."""
    split = root / "eurosat" / "split_zhou_EuroSAT.json"
    lists = json.loads(split.read_text())
    lists["train"] = [row for row in lists["train"] if row[1] != 1]
    split.write_text(json.dumps(lists))
    code, out = check("EuroSAT")
    assert code == 1
    assert f'Class 1 ("River") has no training image in {split}' in out


def test_imagenet_without_validation_images(check, root):
    layouts.build("ImageNet", root)
    (root / "imagenet" / "images" / "val").rename(root / "elsewhere")
    code, out = check("ImageNet")
    assert code == 1
    assert "imagenet/images/val\n      comes from https://image-net.org/: the host" in out
    assert "imagenet/images/train\n" not in out


def test_an_empty_folder(check, root):
    (root / "oxford_flowers" / "jpg").mkdir(parents=True)
    code, out = check("OxfordFlowers")
    assert code == 1 and "jpg is missing or empty" in out


def test_deep_finds_unreadable_images(check, root):
    """Truncated, empty, and not an image at all."""
    folder = root / "eurosat" / "2750" / "Forest"
    noise = Image.effect_noise((64, 64), 90)
    noise.save(folder / "0.jpg")
    (folder / "0.jpg").write_bytes((folder / "0.jpg").read_bytes()[:-500])
    (folder / "1.jpg").write_bytes(b"")
    (folder / "2.jpg").write_text("not an image")
    assert check("eurosat")[0] == 0
    code, out = check("--deep", "eurosat")
    assert code == 1
    assert row(out, "EuroSAT")[-1] == "3"
    assert "unreadable: " in out and "Forest/0.jpg and 2 more" in out


def test_too_few_images_without_a_list(check, root):
    folder = root / "imagenet-rendition" / "imagenet-r" / "n01443537"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "1.jpg")
    (root / "imagenet-rendition" / "classnames.txt").write_text("n01443537 goldfish\n")
    code, out = check("imagenet_r")
    assert code == 1
    assert row(out, "ImageNetR") == [
        "ImageNetR",
        "yes",
        "0",
        "0",
        "1",
        "1",
        "0",
        "(none",
        "needed)",
    ]
    assert "the number of images is wrong: the published numbers are 0, 0, 30,000" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["check", "--root", "absent"], "absent is not a folder"),
        (
            ["check", "--root", ".", "Mnist"],
            "there is no data set Mnist; the data sets are ImageNet",
        ),
        (["prepare", "EuroSAT"], "EuroSAT needs --root"),
        (["show", "Mnist"], "there is no data set Mnist"),
        (["show", "MiniShapes", "--ratios", "2"], "--ratios must be above 0"),
    ],
)
def test_wrong_arguments_are_an_error_of_one_sentence(arguments, words, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.parametrize("command", ["check", "prepare"])
def test_a_root_that_cannot_be_a_folder_is_one_sentence(command, capsys):
    assert main([command, "EuroSAT", "--root", "~nobody_of_this_name/x"]) == 2
    assert "--root) cannot be used" in capsys.readouterr().err
