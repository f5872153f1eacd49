"""Tables of the report, from synthetic frames."""

import itertools
import math
import re
import warnings

import pytest

pytest.importorskip("pandas")
pytest.importorskip("scipy")

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from npt.errors import NPTError
from npt.experiments.report import latex, tables
from npt.experiments.report import table as of_table
from npt.experiments.report.reported import (
    AVERAGE,
    HM_OF_AVERAGES,
    MEAN_OF_HMS,
    load_reported,
)

ZERO = "CLIP (zero-shot)"
METHODS = (ZERO, "CoCoOp", "MaPLe", "CoCoOp+NPT", "MaPLe+NPT")
MINI = ("mini_land", "mini_flowers", "mini_flags")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def reported():
    return load_reported()


# --------------------------------------------------------------------------- synthetic frames
def number(*words) -> float:
    """An accuracy that depends on the words only."""
    return 40 + sum(map(ord, "".join(map(str, words)))) * 7919 % 4000 / 100


def frame_of(
    accuracy=number,
    datasets=MINI,
    methods=METHODS,
    ratios=(1.0, 0.05),
    seeds=(1, 2, 3),
    transfer=False,
):
    """A frame as `npt.experiments.frame` makes it; transfer: the first data set is the source."""
    rows = []
    for method, ratio, source in itertools.product(
        methods, ratios, datasets[:1] if transfer else datasets
    ):
        trained = method != ZERO
        parts = {"base": source, "new": source}
        if transfer:
            parts = {"source": source, **{target: target for target in datasets[1:]}}
        published = trained and ratio == 1 and not method.endswith("NPT")
        for seed, (part, dataset) in itertools.product(
            seeds if trained else seeds[:1], parts.items()
        ):
            place = (method, ratio if trained else 1.0, dataset, part, seed)
            rows.append(
                {
                    "method": method,
                    "ratio": ratio,
                    "seed": seed,
                    "trained": trained,
                    "setting": ("published" if published else "paper") if trained else "",
                    "source": source,
                    "part": part,
                    "dataset": dataset,
                    "accuracy": accuracy(*place),
                    "train_counts": [16, 4, 1, 1] if trained and ratio < 1 else None,
                }
            )
    return pd.DataFrame(rows)


def without(frame, **where):
    """The frame without the results of some rows."""
    chosen = np.logical_and.reduce([frame[key] == value for key, value in where.items()])
    return frame.assign(
        accuracy=frame["accuracy"].mask(chosen),
        train_counts=frame["train_counts"].mask(pd.Series(chosen, frame.index), None),
    )


def of_paper(reported, table):
    """The paper's figures as results: a frame of one seed."""
    columns = reported.columns(table)

    def accuracy(method, ratio, dataset, part, seed):
        return reported.cell(table, ratio, method, dataset)

    places = list(reported.tables[table])
    frames = [
        frame_of(accuracy, columns, [method], [ratio], [1], table != "table1")
        for ratio, method in places
    ]
    return pd.concat(frames, ignore_index=True)


def cell(table, ratio, method, column):
    found = table.cells()
    found = found[
        (found["ratio"] == ratio) & (found["method"] == method) & (found["column"] == column)
    ]
    assert len(found) == 1
    return found.iloc[0]


def lines_of(text: str, method: str, tau: str) -> list[list[str]]:
    """The lines of a method in the Markdown of a block, without those of intervals.

    The column that says what a line is is left out if it says nothing else.
    """
    block = text.split(f"**tau {tau}**")[1].split("**tau")[0]
    lines = [
        [word.strip() for word in line.strip("|").split("|")]
        for line in block.splitlines()
        if line.startswith("|")
    ]
    start = next(n for n, line in enumerate(lines) if line[0] == method)
    end = next((n for n, x in enumerate(lines) if n > start and x[0]), len(lines))
    found = [line for line in lines[start:end] if line[1] != of_table.INTERVAL]
    only_intervals = all(line[1] in ("", of_table.INTERVAL) for line in lines[2:])
    return [line[:1] + line[2:] for line in found] if only_intervals else found


def every_table(frame, transfer, reported=None):
    tasks = {
        "base_to_new": frame,
        "cross_dataset": transfer,
        "domain_generalisation": transfer,
    }
    yield tables.base_to_new(frame, reported)
    for figure in tables.APPENDIX:
        yield tables.appendix(frame, reported, figure)
    for name in ("table2", "table4"):
        yield tables.transfer(transfer, reported, name)
    yield tables.ablation(tasks, reported)
    for x in (frame, transfer):
        yield tables.train_counts(x, reported)
        yield tables.pairs(x, reported)
        yield tables.imbalance(x, reported)
        yield tables.settings(x, reported)


# --------------------------------------------------------------------------- the paper's numbers
def test_the_papers_numbers_give_the_papers_averages(reported):
    table = tables.base_to_new(of_paper(reported, "table1"), reported).cells()
    assert len(table) == 13 * 13
    printed = table[~table["column"].isin([HM_OF_AVERAGES])]
    assert printed["difference"].abs().max() < 0.011
    assert (printed["reported"].notna()).all()


@pytest.mark.parametrize("name", ["table2", "table4"])
def test_the_papers_transfers_give_the_papers_averages_or_a_footnote(reported, name):
    table = tables.transfer(of_paper(reported, name), reported, name)
    found = table.cells()
    odd = {x.place[1:3] for x in reported.disagreements() if x.place[::3] == (name, AVERAGE)}
    for _, row in found.iterrows():
        away = abs(row["difference"]) > 0.015
        assert away == (row["column"] == AVERAGE and (row["ratio"], row["method"]) in odd)
    text = table.markdown()
    for x in reported.disagreements():
        assert (x.sentence in text) == (x.table == name or x.column == "imagenet")


def test_the_ablation_agrees_with_tables_1_and_4_only(reported):
    frames = {
        task: of_paper(reported, table)
        for task, table in (
            ("base_to_new", "table1"),
            ("cross_dataset", "table2"),
            ("domain_generalisation", "table4"),
        )
    }
    table = tables.ablation(frames, reported)
    for method in ("MaPLe", "MaPLe+NPT"):
        for task in frames:
            away = abs(cell(table, 0.01, method, task)["difference"])
            assert (away > 0.3) == (task == "cross_dataset") and (away > 0.3 or away < 0.011)
    assert cell(table, 0.05, "MaPLe", "base_to_new")["mean"] == pytest.approx(71.12, abs=0.01)
    assert "Table 3 prints 63.99" in table.markdown()


def test_zero_shot_is_compared_at_every_tau(reported):
    frame = of_paper(reported, "table1")
    zero = frame[frame["method"] == "CLIP"].assign(trained=False)
    frame = pd.concat([zero, zero.assign(ratio=0.05), zero.assign(ratio=0.01), frame])
    table = tables.base_to_new(
        frame.drop_duplicates(["method", "ratio", "part", "dataset"]), reported
    )
    notes = {block.ratio: block.notes[0] for block in table.blocks}
    assert notes[0.01] == (
        f"Below CLIP in the {MEAN_OF_HMS}: here (71.59) CoCoOp 68.31, MaPLe 69.39 and CoCoOp+NPT "
        "70.77; in the reported figures (71.58) CoCoOp 68.31, MaPLe 69.38 and CoCoOp+NPT 70.77; "
        "the paper has no row CLIP at this tau."
    )
    assert "here (71.59) no method; in the reported figures (71.58) no method." in notes[1.0]
    assert notes[0.01] in table.markdown()


def test_a_method_at_the_level_of_zero_shot_is_not_below_it():
    (note,) = tables.base_to_new(frame_of(lambda *place: 70.0)).blocks[0].notes
    assert note == f"Below {ZERO} in the {MEAN_OF_HMS}: here (70.00) no method."


# --------------------------------------------------------------------------- Table 1
def test_cells_are_harmonic_means_of_the_means_over_seeds():
    frame = frame_of()
    table = tables.base_to_new(frame)
    hms, bases, news = [], [], []
    for dataset in MINI:
        part = frame[
            (frame["method"] == "MaPLe") & (frame["ratio"] == 0.05) & (frame["dataset"] == dataset)
        ]
        base, new = (part[part["part"] == name]["accuracy"].mean() for name in ("base", "new"))
        found = cell(table, 0.05, "MaPLe", dataset)
        assert found["mean"] == pytest.approx(2 * base * new / (base + new))
        assert (found["runs"], found["expected"]) == (3, 3) and found["std"] > 0
        hms.append(found["mean"])
        bases.append(base)
        news.append(new)
    base, new = np.mean(bases), np.mean(news)
    assert cell(table, 0.05, "MaPLe", MEAN_OF_HMS)["mean"] == pytest.approx(np.mean(hms))
    other = cell(table, 0.05, "MaPLe", HM_OF_AVERAGES)["mean"]
    assert other == pytest.approx(2 * base * new / (base + new))


def test_order_and_names_are_those_of_the_frame():
    methods, datasets = ("My method", "MaPLe", ZERO), ("zebras", "a_b", "eurosat")
    table = tables.base_to_new(frame_of(methods=methods, datasets=datasets, ratios=(0.05, 1.0)))
    found = table.cells()
    assert list(found["method"].unique()) == list(methods)
    assert list(found["ratio"].unique()) == [0.05, 1.0]
    assert list(found["column"].unique()) == [*datasets, MEAN_OF_HMS, HM_OF_AVERAGES]
    assert [column.heading for column in table.columns[:3]] == ["zebras", "a_b", "EuroSAT"]


def test_a_suite_without_reported_figures_shows_ours_only():
    text = tables.base_to_new(frame_of()).markdown()
    assert not re.search("paper|difference|reported|ours", text)
    assert len(lines_of(text, "MaPLe", "0.05")) == 1


def test_a_method_has_a_line_of_the_paper_and_one_of_the_difference(reported):
    frame = frame_of(datasets=("dtd", "eurosat"), ratios=(0.05,))
    table = tables.base_to_new(frame, reported)
    ours, paper, difference = lines_of(table.markdown(), "MaPLe", "0.05")
    assert (ours[1], paper[1], difference[1]) == ("ours", "paper", "difference")
    assert paper[2:4] == ["55.15", "51.10"]
    mean = cell(table, 0.05, "MaPLe", "dtd")["mean"]
    assert ours[2].startswith(f"{mean:.2f} ± ")
    assert difference[2] == f"{mean - 55.15:+.2f}"
    assert difference[-1] == paper[-1] == ""  # the paper's other average cannot be known


def test_a_method_has_a_line_of_its_interval():
    """Half of the t interval of the mean over seeds, with 2 degrees of freedom."""
    table = tables.base_to_new(frame_of())
    text = table.markdown().split("**tau 0.05**")[1]
    lines = [[x.strip() for x in line.strip("|").split("|")] for line in text.splitlines()]
    start = next(n for n, line in enumerate(lines) if line[0] == "MaPLe")
    assert lines[start + 1][:2] == ["", "95 %"]
    for place, name in enumerate(MINI, start=2):
        shown = cell(table, 0.05, "MaPLe", name)
        half = 4.302653 * shown["std"] * math.sqrt(3 / 2) / math.sqrt(3)
        assert lines[start + 1][place] == f"± {half:.2f}"
        assert (shown["ci95_high"] - shown["ci95_low"]) / 2 == pytest.approx(half, rel=1e-5)


def test_zero_shot_has_no_spread_and_the_papers_figure_at_every_tau(reported):
    text = tables.base_to_new(frame_of(datasets=("dtd", "eurosat")), reported).markdown()
    for tau in ("1", "0.05"):
        ours, paper, _ = lines_of(text, ZERO, tau)
        assert "±" not in " ".join(ours) and paper[2:4] == ["56.37", "60.03"]


def test_the_secondary_source_stands_at_its_taus_only(reported):
    frame = frame_of(datasets=reported.columns("table1"), ratios=(0.25, 0.0625, 0.1))
    text = tables.base_to_new(frame, reported).markdown()
    for tau, value in (("0.25", "71.38"), ("0.0625", "69.12")):
        _, second, difference = lines_of(text, "MaPLe", tau)
        assert second[1] == "secondary source" and second[-2].startswith(f"{value} [")
        assert difference[2] == "" and difference[-2]
    assert len(lines_of(text, "MaPLe", "0.1")) == 1
    assert "CPT (CVPR 2026) at tau 0.06: a secondary source" in text


def test_at_tau_1_it_is_said_whose_runs_are_compared(reported):
    table = tables.base_to_new(frame_of(datasets=("dtd", "eurosat")), reported)
    notes = {block.ratio: " ".join(block.notes) for block in table.blocks}
    assert "CLIP, CoCoOp and MaPLe at tau 1 are the published runs" in notes[1.0]
    assert "all 33 figures" in notes[1.0]
    assert "CoCoOp: published, MaPLe: published, CoCoOp+NPT: paper" in notes[1.0]
    assert "published" not in notes[0.05]
    assert "published" not in " ".join(tables.base_to_new(frame_of()).blocks[0].notes)


# --------------------------------------------------------------------------- missing results
def test_a_missing_seed_is_marked_and_so_is_every_average_that_rests_on_it():
    frame = without(frame_of(), method="MaPLe", ratio=0.05, dataset="mini_land", seed=2, part="new")
    table = tables.base_to_new(frame)
    for column in (*MINI, MEAN_OF_HMS, HM_OF_AVERAGES):
        runs = cell(table, 0.05, "MaPLe", column)["runs"]
        assert runs == (3 if column in MINI[1:] else 2)
    (line,) = lines_of(table.markdown(), "MaPLe", "0.05")
    assert [word.endswith("* 2/3") for word in line[1:]] == [True, False, False, True, True]
    assert "* from fewer runs than expected" in table.markdown()
    complete = tables.base_to_new(frame_of())
    assert "*" not in complete.markdown().replace("**", "")
    of_two = frame_of(seeds=(1, 3))  # the average is that of the seeds that are complete
    two = cell(tables.base_to_new(of_two), 0.05, "MaPLe", MEAN_OF_HMS)
    assert cell(table, 0.05, "MaPLe", MEAN_OF_HMS)["mean"] == pytest.approx(two["mean"])


def test_an_average_over_an_incomplete_row_is_not_taken():
    frame = without(frame_of(), method="MaPLe", ratio=0.05, dataset="mini_land")
    table = tables.base_to_new(frame)
    (line,) = lines_of(table.markdown(), "MaPLe", "0.05")
    assert line[1] == "–" and line[-2:] == ["– (2/3)", "– (2/3)"]  # noqa: RUF001
    assert "not known yet MaPLe" in table.markdown()
    assert math.isnan(cell(table, 0.05, "MaPLe", MEAN_OF_HMS)["mean"])
    assert "no average, since n of m data sets have a figure" in table.markdown()


def test_no_average_where_no_seed_is_complete():
    frame = frame_of()
    for seed, dataset in enumerate(MINI, start=1):
        frame = without(frame, method="MaPLe", ratio=0.05, dataset=dataset, seed=seed)
    (line,) = lines_of(tables.base_to_new(frame).markdown(), "MaPLe", "0.05")
    assert all(word.endswith("* 2/3") for word in line[1:4])
    assert line[-2:] == ["– (0/3 seeds)"] * 2  # noqa: RUF001


def test_a_row_that_the_frame_does_not_have_is_missing():
    frame = frame_of()
    frame = frame[(frame["method"] != "MaPLe") | (frame["dataset"] != "mini_land")]
    (line,) = lines_of(tables.base_to_new(frame).markdown(), "MaPLe", "0.05")
    assert "–" in line and line[-1] == "– (2/3)"  # noqa: RUF001


def test_one_seed_and_one_data_set():
    table = tables.base_to_new(frame_of(datasets=("mini_land",), seeds=(7,)))
    assert [column.key for column in table.columns] == ["mini_land"]  # no averages
    text = table.markdown()
    assert "±" not in text and "on mini_land: here (" in text
    found = table.cells()
    assert (
        found["mean"].notna().all() and found[["std", "ci95_low", "ci95_high"]].isna().all().all()
    )


def test_frames_without_any_result(reported):
    def nothing(*place):
        return None

    for datasets in (MINI, ("imagenet", "dtd", "eurosat")):
        frame, transfer = (frame_of(nothing, datasets, transfer=x) for x in (False, True))
        frame, transfer = (x.assign(train_counts=None) for x in (frame, transfer))
        for table in every_table(frame, transfer, reported):
            assert table.markdown() and table.latex()
            found = table.cells()
            counts = found["column"].isin([*tables.OF_COUNTS, *tables.TESTED])
            assert found["mean"][~counts].isna().all() and not found["runs"].any()
        assert "–" in tables.base_to_new(frame).markdown()  # noqa: RUF001


def test_frames_without_rows(reported):
    frame, transfer = frame_of().iloc[:0], frame_of(transfer=True).iloc[:0]
    for table in every_table(frame, transfer, reported):
        assert table.markdown().startswith("### ") and table.latex()
        assert list(table.cells().columns) == of_table.CSV


def test_two_runs_of_one_cell_are_not_averaged():
    frame = frame_of()
    with pytest.raises(NPTError, match="two runs"):
        tables.base_to_new(pd.concat([frame, frame.iloc[-1:]]))


# --------------------------------------------------------------------------- other tables
def test_the_appendix_has_base_and_new(reported):
    frame = frame_of(datasets=("dtd", "eurosat"))
    for figure, published in (("base", "80.36"), ("new", "59.18")):
        table = tables.appendix(frame, reported, figure)
        _, quoted, _ = lines_of(table.markdown(), "MaPLe", "1")
        assert quoted[1] == "published" and quoted[2] == published
        assert len(lines_of(table.markdown(), "MaPLe", "0.05")) == 1
        rows = frame[(frame["method"] == "MaPLe") & (frame["ratio"] == 1.0)]
        rows = rows[rows["part"] == figure]
        found = cell(table, 1.0, "MaPLe", AVERAGE)
        assert found["mean"] == pytest.approx(rows["accuracy"].mean())


def test_classes_with_few_images_are_of_the_trained_methods():
    frame = frame_of(ratios=(1.0, 0.05))
    few = np.where(frame["trained"] & (frame["ratio"] < 1), 50.0, np.nan)
    table = tables.appendix(frame.assign(few=few), None, "few")
    found = table.cells()
    assert ZERO not in set(found["method"]) and list(found["ratio"].unique()) == [1.0, 0.05]
    assert (found[found["ratio"] == 0.05]["mean"] == 50).all()
    assert found[found["ratio"] == 1.0]["mean"].isna().all()
    assert tables.appendix(frame, None, "many").cells()["mean"].isna().all()


def test_transfers_average_the_targets_only():
    frame = frame_of(transfer=True)
    table = tables.transfer(frame, None, "table2")
    assert [column.key for column in table.columns] == [*MINI, AVERAGE]
    rows = frame[(frame["method"] == "MaPLe") & (frame["ratio"] == 0.05)]
    expected = rows[rows["part"] != "source"]["accuracy"].mean()
    assert cell(table, 0.05, "MaPLe", AVERAGE)["mean"] == pytest.approx(expected)


def test_a_missing_source_does_not_touch_the_average():
    frame = without(frame_of(transfer=True), method="MaPLe", part="source")
    found = cell(tables.transfer(frame), 0.05, "MaPLe", AVERAGE)
    assert found["runs"] == 3 and not math.isnan(found["mean"])


def test_transfers_from_two_sources():
    one = frame_of(transfer=True)
    frame = pd.concat([one, one.replace({"source": {"mini_land": "mine"}})], ignore_index=True)
    frame["dataset"] = frame["dataset"].where(frame["part"] != "source", frame["source"])
    table = tables.transfer(frame)
    assert cell(table, 0.05, "MaPLe, from mine", "source")["runs"] == 3
    assert "from mine" in tables.pairs(frame).markdown()


def test_ablation_of_three_tasks():
    frame, transfer = frame_of(), frame_of(transfer=True)
    methods = frame["method"].isin(["MaPLe", "MaPLe+NPT"])
    frames = {"base_to_new": frame[methods], "cross_dataset": transfer}
    table = tables.ablation(frames)
    one = cell(tables.base_to_new(frame), 0.05, "MaPLe", MEAN_OF_HMS)
    other = cell(tables.transfer(transfer), 0.05, "MaPLe", AVERAGE)
    assert cell(table, 0.05, "MaPLe", "base_to_new")["mean"] == pytest.approx(one["mean"])
    assert cell(table, 0.05, "MaPLe", "cross_dataset")["mean"] == pytest.approx(other["mean"])
    assert math.isnan(cell(table, 0.05, "CoCoOp", "base_to_new")["mean"])


def test_what_was_trained_on():
    frame = frame_of(datasets=("mini_land", "eurosat"), ratios=(0.05,))
    other = (frame["seed"] == 2) & (frame["dataset"] == "eurosat") & frame["trained"]
    frame["train_counts"] = [
        [14, 3, 2, 2] if is_other else counts
        for is_other, counts in zip(other, frame["train_counts"], strict=True)
    ]
    frame = without(frame, dataset="mini_land", seed=3)
    text = tables.train_counts(frame).markdown()
    assert lines_of(text, "mini_land", "0.05") == [
        ["mini_land", "16", "1", "2", "4", "22", "0.0625", "0.05", "2/3"]
    ]
    assert lines_of(text, "EuroSAT", "0.05") == [
        ["EuroSAT", "14–16", "1–2", "0–2", "4", "21–22", "0.0625–0.1429", "0.05", "3"]  # noqa: RUF001
    ]


def test_pairs_are_of_the_seeds_that_both_have():
    frame = frame_of(ratios=(0.05,))
    frame = without(frame, method="MaPLe", dataset="mini_land", seed=1)
    frame = without(frame, method="MaPLe+NPT", dataset="mini_flags")
    table = tables.pairs(frame)
    label = "MaPLe+NPT against MaPLe, base"
    rows = frame[frame["part"] == "base"].set_index(["dataset", "seed", "method"])["accuracy"]
    wide = rows.unstack("method")
    expected = (wide["MaPLe+NPT"] - wide["MaPLe"]).groupby("dataset").mean().dropna()
    found = {
        column: cell(table, 0.05, label, column) for column in ("mean difference", *tables.TESTED)
    }
    assert found["mean difference"]["mean"] == pytest.approx(expected.mean())
    assert found["mean difference"]["text"].endswith("*")
    assert (found["runs"]["text"], found["left out"]["mean"]) == ("5/9", 1)
    assert found["data sets"]["mean"] == 2
    assert found["better"]["mean"] == (expected > 0).sum()
    assert {row.label for row in table.blocks[0].rows} == {
        f"{method}+NPT against {method}, {figure}"
        for method in ("MaPLe", "CoCoOp")
        for figure in ("harmonic mean", "base", "new")
    }


def test_no_test_with_one_data_set_or_without_differences():
    one = tables.pairs(frame_of(datasets=("mini_land",), ratios=(1.0,)))
    assert "no test, which needs two data sets with pairs; here: 1." in one.markdown()
    assert one.blocks[0].rows[0].cells[5].text == "–"  # noqa: RUF001
    same = tables.pairs(frame_of(lambda *place: 70.0, ratios=(1.0,)))
    assert [cell.text for cell in same.blocks[0].rows[0].cells] == [
        *("0.00", "0.00 to 0.00", "0", "0", "3", "–", "–", "9/9", "0"),  # noqa: RUF001
    ]
    assert "nan" not in (one.markdown() + same.markdown() + same.latex()).lower()


def test_without_an_npt_form_there_are_no_pairs():
    table = tables.pairs(frame_of(methods=(ZERO, "MaPLe")))
    assert table.blocks == () and "no method with +NPT" in table.markdown()


def test_settings():
    text = tables.settings(frame_of()).markdown()
    found = [[w.strip() for w in x.strip("|").split("|")] for x in text.splitlines() if "|" in x]
    assert found[0] == ["method", "tau 1", "tau 0.05"]
    assert found[2:] == [
        ["CoCoOp", "published", "paper"],
        ["MaPLe", "published", "paper"],
        ["CoCoOp+NPT", "paper", "paper"],
        ["MaPLe+NPT", "paper", "paper"],
    ]


# --------------------------------------------------------------------------- controls of imbalance
def with_controls(frame, better=5.0):
    """The frame with a control of each method, `better` than it, below tau 1."""
    own = frame[frame["trained"] & (frame["ratio"] < 1)]
    controls = own.assign(
        method=own["method"] + " (same budget)",
        accuracy=own["accuracy"] + better,
        train_counts=[[6, 6, 5, 5]] * len(own),
    )
    return pd.concat([frame, controls], ignore_index=True)


def test_rows_of_controls_change_no_other_row_and_have_no_reported_figures(reported):
    frames = [frame_of(datasets=("dtd", "eurosat"), transfer=x) for x in (False, True)]
    both = [with_controls(frame) for frame in frames]
    for plain, table in zip(
        every_table(*frames, reported), every_table(*both, reported), strict=True
    ):
        cells = table.cells()
        control = cells["method"].str.contains("(same budget)", regex=False)
        others = cells[~control].reset_index(drop=True)
        pd.testing.assert_frame_equal(others, plain.cells(), check_dtype=False)
        groups = table.name in ("table1_many", "table1_medium", "table1_few")
        assert control.any() != groups, table.name
        assert cells["reported"][control].isna().all() and not cells["source"][control].any()
        if table.name != "settings":
            assert set(cells["ratio"][control]) <= {0.05}
        for text in (table.markdown(), table.latex()):
            assert ("as many images in all" in text) == control.any()
        check_latex(table.latex())


def test_imbalance_as_such_is_against_the_control():
    frame = with_controls(frame_of(ratios=(1.0, 0.05)), better=2.5)
    table = tables.imbalance(frame)
    (block,) = table.blocks
    assert block.ratio == 0.05
    assert [row.label for row in block.rows] == [
        f"{method} against {method} (same budget), {figure}"
        for method in METHODS[1:]
        for figure in ("harmonic mean", "base", "new")
    ]
    found = cell(table, 0.05, "MaPLe against MaPLe (same budget), base", "mean difference")
    assert found["mean"] == pytest.approx(-2.5) and found["text"] == "-2.50"
    assert tables.imbalance(frame_of()).blocks == ()


def test_npt_is_compared_with_the_same_kind_of_training():
    labels = [
        row.label
        for block in tables.pairs(with_controls(frame_of(ratios=(0.05,)))).blocks
        for row in block.rows
        if row.label.endswith(" base")
    ]
    assert labels == [
        "CoCoOp+NPT against CoCoOp, base",
        "MaPLe+NPT against MaPLe, base",
        "CoCoOp+NPT (same budget) against CoCoOp (same budget), base",
        "MaPLe+NPT (same budget) against MaPLe (same budget), base",
    ]


def test_what_controls_were_trained_on_has_lines_of_its_own():
    frame = with_controls(frame_of(datasets=("eurosat",), ratios=(0.05,)))
    text = tables.train_counts(frame).markdown()
    assert lines_of(text, "EuroSAT", "0.05") == [
        ["EuroSAT", "16", "1", "2", "4", "22", "0.0625", "0.05", "3"]
    ]
    assert lines_of(text, "EuroSAT (same budget)", "0.05") == [
        ["EuroSAT (same budget)", "6", "5", "0", "4", "22", "0.8333", "0.05", "3"]
    ]


def test_trainings_on_base_and_on_all_classes_have_lines_of_their_own():
    one, other = frame_of(datasets=("imagenet",)), frame_of(datasets=("imagenet", "x"), transfer=1)
    other["train_counts"] = [x and [16] * 8 for x in other["train_counts"]]
    text = tables.train_counts(pd.concat([one, other], ignore_index=True)).markdown()
    for name, classes in (("ImageNet, base classes", "4"), ("ImageNet, all classes", "8")):
        assert lines_of(text, name, "0.05")[0][4] == classes


# --------------------------------------------------------------------------- forms
def test_the_csv_frame(reported):
    frame = frame_of(datasets=("dtd", "eurosat"), ratios=(0.05,))
    found = tables.base_to_new(frame, reported).cells()
    expected = "table ratio method column mean std ci95_low ci95_high runs expected"
    expected += " reported difference source text"
    assert list(found.columns) == expected.split()
    assert set(found["table"]) == {"table1"}
    quoted = found[found["reported"].notna()]
    assert (quoted["difference"] == quoted["mean"] - quoted["reported"]).all()
    assert ((found["source"] != "") == found["reported"].notna()).all()
    three = found[found["runs"] == 3]
    assert (three["ci95_low"] < three["mean"]).all() and (three["mean"] < three["ci95_high"]).all()


def tabular(text: str) -> list[str]:
    """The rows of the tabular."""
    inside = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    return [line for line in inside.splitlines() if line and line != r"\midrule"]


def check_latex(text: str):
    plain = re.sub(r"\\[{}&$]", "", text)
    depth = 0
    for letter in plain:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0 and plain.count("$") % 2 == 0
    assert len({re.sub(r"\\&", "", row).count("&") for row in tabular(text)}) == 1
    assert all(row.endswith(r" \\") for row in tabular(text))


def test_latex_of_every_table(reported):
    datasets = ("imagenet", "dtd", "mini_flowers")
    frame, transfer = (frame_of(datasets=datasets, transfer=x) for x in (False, True))
    frame = without(frame, method="MaPLe", seed=2, dataset="dtd")
    frame = without(frame, method="CoCoOp", dataset="dtd")
    for table in every_table(frame, transfer, reported):
        check_latex(table.latex())
        blocks = 1 + sum(block.ratio is not None for block in table.blocks)
        assert table.latex().count(r"\midrule") in (blocks - 1, blocks)
    text = tables.base_to_new(frame, reported).latex()
    head, *rows = tabular(text)
    assert r"$\tau$ & Method & ImageNet & DTD & mini\_flowers & Average & HM of averages" in head
    marked = next(row for row in rows if " MaPLe &" in row)
    assert marked.count("$^{*}$") == 3
    missing = next(row for row in rows if " CoCoOp &" in row)
    assert missing.count("& --") == 3


def test_the_short_names_of_the_paper(reported):
    frame = frame_of(datasets=reported.columns("table1"), ratios=(0.05,))
    head = tabular(tables.base_to_new(frame).latex())[0]
    assert head.removesuffix(r" & HM of averages \\") == (
        r"$\tau$ & Method & ImageNet & Caltech101 & OxfordPets & StanfordCars & Flowers102 & "
        "Food101 & FGVC Aircraft & SUN397 & DTD & EuroSAT & UCF101 & Average"
    )


@given(st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_name_can_be_written(method, dataset):
    table = tables.base_to_new(
        frame_of(methods=(method, method + "+NPT"), datasets=(dataset,), seeds=(1,), ratios=(1.0,))
    )
    check_latex(table.latex())
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_escapes():
    assert latex.escape("50 % & $x_1$ {a} #~^\\\nb") == (
        r"50 \% \& \$x\_1\$ \{a\} \#\textasciitilde{}\textasciicircum{}\textbackslash{} b"
    )


def test_numbers_have_two_digits_and_differences_a_sign(reported):
    frame = frame_of(lambda *place: 55.149, ("dtd", "eurosat"), ratios=(0.05,), seeds=(1,))
    _, _, difference = lines_of(tables.base_to_new(frame, reported).markdown(), "MaPLe", "0.05")
    assert difference[2:4] == ["0.00", "+4.05"]
