"""The study of long tails: variants of methods, the choice on validation, tables and figures."""

import json

import numpy as np
import pandas as pd
import pytest

from npt.errors import NPTError
from npt.experiments.frame import frame_of
from npt.experiments.reading import Selection, check_part, labels_of, load_experiment
from npt.experiments.report import long_tail
from npt.experiments.report.long_tail import Variant, variants_of
from npt.experiments.reproduce import load

TRAINERS = {
    "CLIP": {"config": "z.yaml", "train": False},
    "CoOp": {"trainer": "CoOpNPT", "config": "c.yaml", "opts": {"TRAINER.NPT.W1": 0.0}},
    "MaPLe": {"trainer": "MaPLeNPT", "config": "m.yaml"},
}
VARIANTS = {
    "": {},
    "(same budget)": {"DATASET.IMBALANCE_TYPE": "balanced_budget"},
    "+ weights": {"TRAINER.NPT.CLASS_WEIGHT": "balanced"},
    "+ NPT": {"TRAINER.NPT.W1": 0.5},
    "+ NPT + weights": {"TRAINER.NPT.W1": 0.5, "TRAINER.NPT.CLASS_WEIGHT": "balanced"},
}
LABELS = ["", " (same budget)", " + weights", " + NPT", " + NPT + weights"]


def part(**more):
    fields = {"trainers": TRAINERS, "variants": VARIANTS, "datasets": ["a", "b", "c"]}
    fields |= {"ratios": [0.0625], "seeds": [1, 2], "evaluate": ["val", "test"], **more}
    return check_part(fields, "study.yaml")


# --------------------------------------------------------------------------- variants
def test_every_trainer_that_learns_is_run_with_every_variant():
    trainers = part().trainers
    assert list(trainers) == ["CLIP", *(f"{m}{x}" for m in ("CoOp", "MaPLe") for x in LABELS)]
    assert trainers["CLIP"] == TRAINERS["CLIP"]
    assert trainers["CoOp + weights"]["opts"] == {
        "TRAINER.NPT.W1": 0.0,
        "TRAINER.NPT.CLASS_WEIGHT": "balanced",
    }
    assert trainers["CoOp + NPT"]["opts"] == {"TRAINER.NPT.W1": 0.5}  # a variant's value counts


@pytest.mark.parametrize("wrong", [["+ NPT"], {"+ NPT": "W1"}])
def test_variants_that_are_no_mapping_are_refused(wrong):
    with pytest.raises(NPTError, match=r"variants in study\.yaml must be a mapping"):
        part(variants=wrong)


def test_keys_of_variants_cannot_be_given_for_every_run():
    with pytest.raises(NPTError, match=r"CLASS_WEIGHT cannot be given for every run"):
        part(opts={"TRAINER.NPT.CLASS_WEIGHT": "none"})


@pytest.mark.parametrize("suite", ["mini", "paper"])
def test_the_studies_of_both_suites_can_be_read(suite):
    study = load_experiment(f"configs/experiments/{suite}/long_tail.yaml")
    (found,) = study.parts.values()
    bases = {label.split(" ")[0] for label in found.trainers}
    assert bases == {"CoOp", "CoCoOp", "MaPLe"} and study.report == "long_tail"
    assert min(found.ratios) < 1 and len(found.trainers) % 3 == 0


# --------------------------------------------------------------------------- tables
ADDED = {"": 0.0, " (same budget)": 4.0, " + weights": 3.0, " + NPT": 1.0, " + NPT + weights": 3.5}


def write_runs(out, added=ADDED, classes=True):
    """Records in which a variant adds so much to base, twice that to new, and less on validation.

    The base of a data set and seed is the same for all variants; `weights` is best on validation.
    """
    study = part(trainers={"MaPLe": TRAINERS["MaPLe"]})
    for run in study.runs(out):
        gain = added[run.method.removeprefix("MaPLe")]
        level = 50 + 5 * "abc".index(run.dataset) + run.seed
        validation = 40.0 + (9.0 if run.method.endswith("MaPLe + weights") else gain)
        for evaluation in run.evaluations:
            twice = 2 if evaluation.name == "new" else 1
            figures = {"accuracy": level + twice * gain, "few": level, "ece": 5.0 - gain}
            figures |= {"lcd_abs": 0.5, "mid_abs": 0.25, "worst_class": 1.0}
            record = {
                "task": "training" if evaluation.name == "base" else "evaluation",
                "finished": True,
                "results": {"test": figures, "val": {"accuracy": validation}},
                "train_counts": [4, 1],
            }
            if classes:
                record["per_class"] = {
                    "test": [
                        {"class": f"{k}", "train_count": n, "accuracy": level + gain * k,
                         "lcd": 0.5 + gain / 10, "mid": 0.2}
                        for k, n in enumerate([4, 1])
                    ]
                }  # fmt: skip
            folder = run.output(evaluation)
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(record))
        (run.folder / "run.json").write_text(json.dumps(run.record()))
    return frame_of(study, out)


@pytest.fixture
def frame(tmp_path):
    return write_runs(tmp_path)


def cell(table, row, column, block=0):
    place = [x.key for x in table.columns].index(column)
    (found,) = (r for r in table.blocks[block].rows if r.label == row)
    return found.cells[place]


def test_methods_are_taken_apart():
    methods = ["CoOp", "MaPLe", "MaPLe (same budget)", "MaPLe + NPT + weights", "CLIP"]
    found = variants_of(pd.DataFrame({"method": methods}))
    assert found["CoOp"] == {"CoOp": Variant("CoOp", ())}
    assert [x.words for x in found["MaPLe"].values()] == [
        (),
        ("(same budget)",),
        ("NPT", "weights"),
    ]
    assert next(x.label for x in found["MaPLe"].values()) == "alone"


def test_levels_are_averages_over_data_sets_with_the_deviation_of_seeds(frame):
    table = long_tail.levels(frame, "MaPLe", variants_of(frame)["MaPLe"])
    found = cell(table, "NPT", "base").summary
    assert (found.mean, found.std, found.runs) == (pytest.approx(57.5), pytest.approx(0.5), 2)
    levels = np.array([51, 56, 61.0])
    harmonic = [2 * (x + 1) * (x + 2) / (2 * x + 3) for x in (levels, levels + 1)]
    assert cell(table, "NPT", "HM").summary.mean == pytest.approx(np.mean(harmonic))
    assert cell(table, "alone", "validation").text == "40.00 ± 0.00"
    assert cell(table, "alone", "LCD").text == "0.5000 ± 0.0000"


def test_differences_are_of_the_same_seeds_and_data_sets(frame):
    table = long_tail.differences(frame, "MaPLe", variants_of(frame)["MaPLe"])
    expected = {
        "NPT against alone": (1.0, 2.0),
        "NPT on top of weights": (0.5, 1.0),
        "weights against (same budget)": (-1.0, -2.0),
    }
    for row, (base, new) in expected.items():
        assert cell(table, row, "base").summary.mean == pytest.approx(base)
        assert cell(table, row, "new").summary.mean == pytest.approx(new)
    assert cell(table, "NPT against alone", "ECE base").text == "-1.00 ± 0.00†"
    assert cell(table, "NPT against alone", "few").text.startswith("0.00")
    labels = [row.label for row in table.blocks[0].rows]
    assert "(same budget) against alone" in labels and "alone against (same budget)" not in labels


def test_the_choice_looks_at_validation_only_and_leaves_the_control_out(frame):
    """On test images NPT + weights is the best, and the control better still."""
    rows = [row.label for row in long_tail.choice(frame, variants_of(frame)).blocks[0].rows]
    assert rows == ["weights", "NPT + weights", "NPT", "alone"]


def test_a_missing_run_is_a_gap_and_not_another_average(frame):
    gone = (frame["method"] == "MaPLe + NPT") & (frame["dataset"] == "b") & (frame["seed"] == 2)
    frame.loc[gone, "accuracy"] = np.nan
    table = long_tail.levels(frame, "MaPLe", variants_of(frame)["MaPLe"])
    found = cell(table, "NPT", "base")
    assert found.summary.mean == pytest.approx(57.0) and found.text.endswith("*")  # seed 1 alone
    every = frame["method"] == "MaPLe + NPT"
    frame.loc[every, "accuracy"] = np.nan
    table = long_tail.levels(frame, "MaPLe", variants_of(frame)["MaPLe"])
    assert cell(table, "NPT", "base").text == "–"  # noqa: RUF001


def test_only_complete_variants_are_ranked(frame):
    """`weights` would be the best, by the seed that is left."""
    gone = (frame["method"] == "MaPLe + weights") & (frame["seed"] == 2)
    frame.loc[gone, "validation"] = np.nan
    rows = long_tail.choice(frame, variants_of(frame)).blocks[0].rows
    assert [row.label for row in rows] == ["NPT + weights", "NPT", "alone", "weights"]
    assert rows[-1].cells[-1].text == "–" and rows[-1].cells[0].text.endswith("*")  # noqa: RUF001


def test_rounding_noise_is_not_marked(frame):
    frame.loc[frame["method"] == "MaPLe + NPT", "ece"] = 5.0 + 1e-7
    frame.loc[frame["method"] == "MaPLe", "ece"] = 5.0
    table = long_tail.differences(frame, "MaPLe", variants_of(frame)["MaPLe"])
    assert "†" not in cell(table, "NPT against alone", "ECE base").text


def test_latex_explains_its_marks(frame):
    text = long_tail.differences(frame, "MaPLe", variants_of(frame)["MaPLe"]).latex()
    assert "MaPLe &" in text and r"$^{\dagger}$" in text
    assert "half of the 95 \\% t interval" in text


def test_a_method_is_selected_with_its_variants():
    labels = [f"{m}{x}" for m in ("CoOp", "MaPLe", "MaPLe+NPT") for x in LABELS]
    assert labels_of(["MaPLe"], labels) == [f"MaPLe{x}" for x in LABELS]
    assert labels_of(["MaPLe + NPT", "CoOp + weights"], labels) == [
        *("MaPLe + NPT", "MaPLe + NPT + weights", "CoOp + weights"),
    ]
    study = Selection(methods=("MaPLe",), datasets=("mini_land",), ratios=(0.01,), seeds=(1,))
    (request,) = load(["long_tail"], "mini", study)
    (found,) = request.experiment.parts.values()
    assert len(found.trainers) == 19 and {x.split(" ")[0] for x in found.trainers} == {"MaPLe"}


def test_a_method_without_variants_is_a_sentence_and_not_a_figure(tmp_path):
    frame = write_runs(tmp_path)
    with pytest.raises(NPTError, match="variants of methods"):
        long_tail.draw_differences(frame[frame["method"] == "MaPLe"])


# --------------------------------------------------------------------------- figures
def test_the_figures_show_the_numbers_of_the_tables(frame):
    _, data = long_tail.draw_differences(frame)
    row = data[(data["variant"] == "NPT") & (data["figure"] == "new")].iloc[0]
    assert row["mean"] == pytest.approx(2.0)
    _, data = long_tail.draw_classes(frame)
    chosen = data[(data["variant"] == "NPT") & (data["figure"] == "accuracy")]
    change = dict(zip(chosen["images"], chosen["mean"], strict=True))
    assert change == {1.0: pytest.approx(1.0 - 4.0), 4.0: pytest.approx(0.0)}  # gain of class k: k
    lcd = data[(data["variant"] == "alone") & (data["figure"] == "lcd")]
    assert lcd["mean"].tolist() == pytest.approx([-0.4, -0.4])


def test_records_without_single_classes_are_named(tmp_path):
    frame = write_runs(tmp_path, classes=False)
    with pytest.raises(NPTError, match="single classes are not on record"):
        long_tail.draw_classes(frame)
