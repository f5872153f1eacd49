"""`python -m npt.data show`: images per class, as a table and a picture."""

import layouts
import pytest
from PIL import Image

from npt.data import show as module
from npt.data.__main__ import main
from npt.imbalance import imbalanced_counts


@pytest.fixture
def show(tmp_path, capsys):
    def run(*arguments: str) -> tuple[int, list[list[str]], object]:
        picture = tmp_path / "pictures" / "classes.png"
        code = main(["show", *arguments, "--output", str(picture)])
        lines = capsys.readouterr().out.splitlines()
        return code, [line.split() for line in lines], picture

    return run


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
