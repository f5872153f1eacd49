"""`python -m npt.data check` on small copies of the layouts."""

import json
import re
import shutil

import layouts
import numpy as np
import pytest
from image_files import write_png
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
    assert re.search(r'Forest/0.jpg" cannot be read \(.*truncated', out)
    assert 'Forest/1.jpg" cannot be read (it is empty)' in out
    assert 'Forest/2.jpg" cannot be read (it is no image' in out


def saved(folder, name, seed=0, **options):
    """A picture of 40 x 40 pixels that depends on the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, **options)


@pytest.fixture
def mine(tmp_path):
    """A folder of one's own: two classes of 4 images in train and 3 in test."""
    for i in range(14):
        part, name = ("train" if i < 8 else "test"), ("ant", "bee")[i % 2]
        saved(tmp_path / "mine" / part / name, f"{i}.png", i)
    return tmp_path / "mine"


def checked(capsys, *arguments):
    code = main(["check", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_a_folder_of_ones_own_images(mine, capsys):
    for arguments in ([mine], ["CustomFolder", "--root", mine], ["--root", mine, "custom_folder"]):
        code, out = checked(capsys, *arguments)
        assert code == 0
        assert row(out, "CustomFolder")[1:6] == ["yes", "8", "0", "6", "2"]
    code, out = checked(capsys, mine, "--deep")
    assert code == 0 and row(out, "CustomFolder")[-1] == "0"
    assert "CustomFolder:" not in out  # nothing to remark


def test_class_folders_alone_are_split(mine, capsys):
    code, out = checked(capsys, mine / "train", "--deep")
    assert code == 0
    assert sum(map(int, row(out, "CustomFolder")[2:5])) == 8


def test_what_is_passed_over_is_said(mine, capsys):
    (mine / "train" / "ant" / "notes.txt").write_text("")
    code, out = checked(capsys, mine)
    assert code == 0 and "notes.txt" in out


def test_a_folder_that_cannot_be_used(mine, capsys):
    (mine / "train" / "wasp").mkdir()
    code, out = checked(capsys, mine)
    assert code == 1 and "wasp" in out


def test_deep_names_images_that_cannot_be_read(mine, capsys):
    (mine / "test" / "bee" / "9.png").write_bytes(b"<html>404</html>")
    dark = np.full((40, 40), 900, np.uint16)
    Image.fromarray(dark).save(mine / "train" / "ant" / "0.png")
    write_png(mine / "train" / "ant" / "2.png", np.dstack([dark] * 3), 2)
    code, out = checked(capsys, mine, "--deep")
    assert code == 1 and row(out, "CustomFolder")[-1] == "3"
    assert re.search(r'ant/2.png" cannot be read \(its largest value is 900 of 65535', out)
    assert re.search(r'bee/9.png" cannot be read \(it is a web page\)', out)
    assert re.search(r'ant/0.png" cannot be read \(its largest value is 900 of 65535', out)


def test_deep_says_which_images_are_scaled_turned_or_tiny(mine, capsys):
    Image.fromarray(np.full((40, 40), 30_000, np.uint16)).save(mine / "train" / "ant" / "deep.png")
    Image.new("RGB", (1, 1)).save(mine / "train" / "ant" / "dot.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(mine / "train" / "ant", "phone.jpg", 50, exif=exif)
    code, out = checked(capsys, mine, "--deep")
    assert code == 0
    assert re.search(r"1 image with more than 8 bits a channel, which are scaled: .*deep.png", out)
    assert re.search(r"1 image with a rotation in EXIF; rotations are applied: .*phone", out)
    assert re.search(r"1 image of fewer than 32 pixels in width or height: .*dot.png", out)


def test_deep_finds_a_picture_in_two_parts(mine, capsys):
    shutil.copy(mine / "train" / "ant" / "0.png", mine / "test" / "ant" / "again.png")
    saved(mine / "test" / "bee", "saved again.tif", 1)  # as train/bee/1.png, in another format
    code, out = checked(capsys, mine, "--deep")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "pictures in both" in line]
    assert "2 pictures in both train and test" in line and "several classes" not in out
    for name in ("ant/0.png", "ant/again.png", "bee/1.png", "bee/saved again.tif"):
        assert name in line


def test_deep_finds_a_picture_in_two_classes(mine, capsys):
    saved(mine / "train" / "bee", "copy.png", 0)  # as train/ant/0.png
    saved(mine / "train" / "ant", "harmless.png", 2)  # as train/ant/2.png, the same class
    code, out = checked(capsys, mine, "--deep")
    assert code == 0 and "in both" not in out
    assert re.search(r"1 picture in several classes: .*ant/0.png = .*bee/copy.png", out)


def test_val_in_place_of_a_missing_test_is_no_copy(mine, capsys):
    (mine / "test").rename(mine / "val")
    code, out = checked(capsys, mine, "--deep")
    assert code == 0 and "in both" not in out
    assert row(out, "CustomFolder")[2:5] == ["8", "6", "6"]


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
        (["check"], "check needs --root"),
        (["check", "eurosat"], "eurosat is not a folder: give --root"),
        (["check", "a", "b"], "check needs --root"),
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
