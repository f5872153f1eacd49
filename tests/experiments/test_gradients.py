"""The table of the gradient study; test_end_to_end.py computes one."""

from npt.experiments import gradients

ROW = {"reduction": "-", "term": "L_CLIP", "loss": 1.0, "gradient": 2.0, "at prompt vectors": 1.0}


def test_the_last_line_has_the_measures_with_values():
    line = "Before training, on the test images: "
    text = gradients.render([ROW], {"lcd_abs": 0.5, "mid_abs": 0.25, "nc1": 3.0})
    assert text.splitlines()[-1] == line + "LCD 0.5000, MID 0.2500"
    assert gradients.render([ROW], {"mid_abs": 0.25}).splitlines()[-1] == line + "MID 0.2500"
    assert line not in gradients.render([ROW], {"lcd_abs": None})
