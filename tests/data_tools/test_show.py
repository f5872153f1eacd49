"""`python -m npt.data show`: images per class, as a table and a picture."""

import layouts
import numpy as np
import pytest
from PIL import Image

import npt  # noqa: F401  (makes `dassl` importable)
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from npt.data import show as module
from npt.data.__main__ import main
from npt.imbalance import imbalanced_counts


@pytest.fixture
def show(tmp_path, capsys):
    def run(*arguments: str) -> tuple[int, list[list[str]], object]:
        picture = tmp_path / "pictures" / "classes.png"
        code = main(["show", *arguments, "--output", str(picture)])
        out = capsys.readouterr().out
        start = out.rfind("\n\n", 0, out.find("all images")) + 2
        lines = out[start:].splitlines()  # of the counts
        return code, [line.split() for line in lines], picture

    return run


SIZES = {"ant": 3, "bee": 24, "cat": 12}


@pytest.fixture
def folder(tmp_path):
    """A folder of images whose classes have different sizes, and a config for it."""
    root = tmp_path / "images"
    for part in ("train", "test"):
        for name, size in SIZES.items():
            for number in range(size):
                layouts.put_image(root / part / name / f"{number}.jpg")
    config = tmp_path / "mine.yaml"
    config.write_text(f"DATASET: {{NAME: CustomFolder, ROOT: {root}, IMBALANCE_RATIO: 0.25}}")
    return config


class Silent(DatasetBase):
    """A host's data set that does not say how many images its classes have."""

    def __init__(self, cfg):
        items = [
            Datum(__file__, label, classname=name)
            for label, (name, size) in enumerate(SIZES.items())
            for _ in range(size)
        ]
        drawn = self.generate_fewshot_dataset(items, num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=drawn, test=items[:3])


def numbers_of(lines):
    """The columns of the classes, without the label and the name."""
    rows = [line[2:] for line in lines if line and line[0].isdigit()]
    return [[float(x) for x in column] for column in zip(*rows, strict=True)]


def last_rows(lines):
    """First word -> the rest of the rows below the classes."""
    names = ("total", "largest", "smallest", "with", "ratio")
    return {line[0]: line[1:] for line in lines if line and line[0] in names}


def test_counts_before_and_after_imbalance(show):
    """MiniShapes has 24 training images of each of its 12 classes."""
    code, lines, picture = show("mini_shapes", "--ratios", "0.05", "--shots", "16")
    assert code == 0
    rows = [line for line in lines if line and line[0].isdigit()]
    number = len(rows)
    assert [int(row[-1]) for row in rows] == imbalanced_counts(16, 0.05, number)
    assert {row[-2] for row in rows} == {"16"} and {row[-3] for row in rows} == {"24"}
    total = next(line for line in lines if line and line[0] == "total")
    assert total[1:3] == [str(24 * number), str(16 * number)]
    with Image.open(picture) as image:
        assert image.width > 400


def test_base_classes_all_images_and_several_ratios(show):
    code, lines, _ = show(
        *("MiniShapes", "--classes", "base", "--shots", "-1", "--ratios", "0.5", "0.05")
    )
    assert code == 0
    rows = [line for line in lines if line and line[0].isdigit()]
    assert rows[0][-4:] == ["24", "24", "24", "24"]
    assert rows[-1][-4:] == ["24", "24", "12", "1"]


def test_long_tables_are_shortened_without_all(show, monkeypatch):
    monkeypatch.setattr(module, "EDGE", 3)
    short = show("MiniShapes", "--ratios", "0.1")[1]
    long = show("MiniShapes", "--ratios", "0.1", "--all")[1]
    assert any("(--all)" in line for line in short)
    assert len(long) > len(short) and not any("(--all)" in line for line in long)


def test_opts_sets_config_keys(show):
    code, lines, _ = show(
        *("mini_shapes", "--ratios", "0.01", "--opts", "DATASET.IMBALANCE_ORDER", "random")
    )
    rows = [int(line[-1]) for line in lines if line and line[0].isdigit()]
    assert code == 0
    assert rows != sorted(rows, reverse=True) and max(rows) == 16 and min(rows) == 1


def test_a_data_set_for_testing_only_is_an_error(tmp_path, capsys):
    layouts.build("ImageNetA", tmp_path)
    assert main(["show", "ImageNetA", "--root", str(tmp_path)]) == 2
    assert "ImageNetA has no training images" in capsys.readouterr().err


def test_the_last_rows_are_the_real_numbers(show):
    code, lines, _ = show("mini_shapes", "--ratios", "0.05", "--shots", "16")
    columns, found = numbers_of(lines), last_rows(lines)
    assert code == 0
    assert found["largest"] == ["24", "16", "16"] and found["smallest"] == ["24", "16", "1"]
    assert found["with"] == ["one", "image", "0", "0", str(columns[-1].count(1))]
    assert found["ratio"] == ["obtained", "1", "1", "0.0625"]
    assert found["total"] == [f"{sum(column):.0f}" for column in columns]


def test_the_type_of_imbalance_is_that_of_the_config(show, folder):
    everything = ("--shots", "12", "--opts", "DATASET.IMBALANCE_RATIO")
    drawn = [3, 12, 12]
    for kind, ratio, expected, heading in (
        ("exp", "0.25", [3, 6, 3], ["ratio", "0.25"]),
        ("step", "0.25", [3, 12, 3], ["step"]),
        ("natural", "1", [1, 12, 6], ["natural"]),
        ("balanced_budget", "0.25", [3, 4.5, 4.5], ["balanced_budget"]),
    ):
        code, lines, _ = show(str(folder), *everything, ratio, "DATASET.IMBALANCE_TYPE", kind)
        assert code == 0 and lines[0][-len(heading) :] == heading
        columns = numbers_of(lines)
        assert columns[:2] == [list(SIZES.values()), drawn] and len(columns) == 3
        assert columns[2] == pytest.approx(expected, abs=0.5 if kind == "balanced_budget" else 0)
        assert sum(columns[2]) == sum(expected)


def test_a_yaml_file_s_own_keys_count_unless_a_flag_is_given(show, folder):
    """Its ratio is 0.25, so that 16, 8 and 4 images are asked for by rank."""
    by_label, by_frequency = (
        numbers_of(show(str(folder), *more)[1])[2] for more in ([], ["--order", "frequency"])
    )
    assert by_label == [3, 8, 4] and by_frequency == [3, 16, 8]
    folder.write_text(folder.read_text().replace("0.25", "0.25, IMBALANCE_ORDER: frequency"))
    assert numbers_of(show(str(folder))[1])[2] == by_frequency


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ratios", "0.5"], "--ratios has no meaning"),
        ([], "IMBALANCE_RATIO is 0.25, but the type natural"),
    ],
)
def test_the_natural_type_takes_no_ratio(more, message, folder, capsys):
    code = main(["show", str(folder), *more, "--opts", "DATASET.IMBALANCE_TYPE", "natural"])
    assert code == 2 and message in capsys.readouterr().err


def test_the_images_of_a_data_set_that_does_not_say_them(show, capsys):
    DATASET_REGISTRY.register(Silent, force=True)
    code, lines, _ = show("Silent", "--shots", "6", "--ratios", "0.5")
    assert code == 0
    assert numbers_of(lines) == [[3, 24, 12], [3, 6, 6], [3, 4, 3]]
    assert main(["show", "Silent", "--opts", "DATASET.IMBALANCE_TYPE", "natural"]) == 2
    assert "Silent does not say how many images" in capsys.readouterr().err


def test_columns_of_the_remedies_in_the_config(show):
    opts = ("--opts", "TRAINER.NPT.CLASS_WEIGHT", "balanced", "TRAINER.NPT.LOGIT_ADJUST", "2.0")
    code, lines, _ = show("mini_shapes", "--ratios", "0.25", *opts)
    assert code == 0
    _, drawn, thinned, *remedies = numbers_of(lines)
    flat_shift, flat_weight, shift, weight = map(np.array, remedies)
    assert not flat_shift.any() and (flat_weight == 1).all() and set(drawn) == {16}
    n = np.array(thinned)
    assert shift == pytest.approx(2 * np.log(n / n.max()), rel=0.01)
    assert weight == pytest.approx(n.mean() / n, rel=0.01)
    assert "weight" in " ".join(map(" ".join, lines[:4]))


# --------------------------------------------------------------------------- class names
def test_a_folder_shows_what_clip_reads(tmp_path, capsys):
    """Prompt, tokens, images of each part, the nearest class; no picture, no matplotlib."""
    root = tmp_path / "images"
    for name, size in {"blue_sky": 10, "class_07": 4, "Blue sky": 4, "n01440764": 1}.items():
        for number in range(size):
            layouts.put_image(root / name / f"{number}.jpg")
    assert main(["show", str(root), "--backbone", "tiny"]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == 4
    sky = next(row for row in rows if "a photo of a blue sky." in row)
    assert sky.split("sky.")[1].split()[:4] == ["9", "5", "2", "3"]  # tokens, train, val, test
    assert "Blue sky (1.00)" in sky
    assert "same prompt" in said and "'class 07' (a number of a class)" in said
    assert "'n01440764' (an id of WordNet)" in said and "Picture" not in said


def test_names_are_shown_without_a_clip_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where no CLIP is
    layouts.put_image(tmp_path / "images" / "ant" / "1.jpg")
    layouts.put_image(tmp_path / "images" / "ant" / "2.jpg")
    assert main(["show", str(tmp_path / "images")]) == 0
    said = capsys.readouterr().out
    assert "a photo of a ant." in said and "--backbone" in said
