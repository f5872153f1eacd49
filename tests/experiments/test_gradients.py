"""The table of the gradient study; test_end_to_end.py computes one."""

import pytest

from npt.experiments import gradients
from npt.flags import parse_args

ROW = {"reduction": "-", "term": "L_CLIP", "loss": 1.0, "gradient": 2.0, "at prompt vectors": 1.0}


def test_the_last_line_has_the_measures_with_values():
    line = "Before training, on the test images: "
    text = gradients.render([ROW], {"lcd_abs": 0.5, "mid_abs": 0.25, "nc1": 3.0})
    assert text.splitlines()[-1] == line + "LCD 0.5000, MID 0.2500"
    assert gradients.render([ROW], {"mid_abs": 0.25}).splitlines()[-1] == line + "MID 0.2500"
    assert line not in gradients.render([ROW], {"lcd_abs": None})


def test_ratios_are_within_an_epoch():
    rows = [
        {**ROW, "epoch": epoch, "term": term, "gradient": gradient}
        for epoch, term, gradient in [
            (0, "L_CLIP", 2.0),
            (0, "x", 1.0),
            (1, "L_CLIP", 4.0),
            (1, "x", 1.0),
        ]
    ]
    assert [row["ratio"] for row in gradients.with_ratios(rows)] == [1, 0.5, 1, 0.25]


def test_the_figure_of_a_course(tmp_path):
    rows = [
        {**ROW, "epoch": epoch, "term": term}
        for epoch in (0, 1) for term in ("L_CLIP", "w1 L_LC")
    ]  # fmt: skip
    gradients.plot(rows, tmp_path / "course.png")
    assert (tmp_path / "course.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_course_begins_with_the_study_and_has_the_terms_with_weights():
    flags = ["--trainer", "MaPLeNPT", "--config-file", "configs/trainers/MaPLe/tiny.yaml"]
    flags += ["--dataset-config-file", "configs/datasets/mini_flowers.yaml", "--seed", "1"]
    flags += ["DATASET.NUM_SHOTS", "1", "DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "2"]
    args = parse_args([*flags, "TRAINER.NPT.W2", "0", "TRAINER.NPT.W_ANCHOR", "0.1"])
    before, _ = gradients.study(args, 1)
    rows = gradients.course(args, 1)
    assert [row["epoch"] for row in rows] == [0] * 3 + [1] * 3 + [2] * 3
    names = {row["term"] for row in rows}
    assert names == {"L_CLIP", "w1 L_LC", "w_anchor L_anchor"}
    own = [row for row in before if row["reduction"] in ("-", "mean")]
    assert [{k: row[k] for k in own[0]} for row in rows[:3]] == own
    losses = [row["loss"] for row in rows if row["term"] == "L_CLIP"]
    assert len(set(losses)) == 3  # it trains
