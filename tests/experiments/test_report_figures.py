"""The figures of the report show the numbers of their frame, and say what is missing."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

import matplotlib
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from npt.errors import NPTError
from npt.experiments.features import SplitFeatures
from npt.experiments.plan import Part
from npt.experiments.projections import pca
from npt.experiments.report import figures

pytestmark = pytest.mark.filterwarnings("error")
SEEDS = (1, 2, 3)


def rows_of(method, ratios, evaluations, seeds=SEEDS, source=None, random=None, **more):
    """Rows of a frame with random figures; evaluations: (part, data set)."""
    random = random or np.random.default_rng(0)
    trained = method != "CLIP"
    return [
        {
            "method": method,
            "ratio": ratio,
            "seed": seed,
            "trained": trained,
            "setting": "paper" if trained else "",
            "source": source or dataset,
            "part": part,
            "dataset": dataset,
            "accuracy": random.uniform(20, 90),
            "lcd_abs": random.uniform(0, 1),
            "mid_abs": random.uniform(0, 1),
            "train_counts": [16, 4, 1] if trained else None,
            "folder": "",
            **more,
        }
        for ratio, seed in itertools.product(ratios, seeds if trained else seeds[:1])
        for part, dataset in evaluations
    ]


def transfer(seeds=SEEDS):
    """CLIP, CoOp and MaPLe at tau 1, and again MaPLe, and MaPLe+NPT, at three ratios."""
    random = np.random.default_rng(1)
    evaluations = [("source", "net"), ("d", "d"), ("e", "e")]
    methods = [("CLIP", [1.0]), ("CoOp", [1.0]), ("MaPLe", [1.0, 0.1]), ("MaPLe+NPT", [1.0, 0.1])]
    rows = [
        row
        for method, ratios in methods
        for row in rows_of(method, ratios, evaluations, seeds, "net", random)
    ]
    return pd.DataFrame(rows + [r for r in rows if r["method"] == "MaPLe" and r["ratio"] == 1.0])


def base_to_new(methods=("MaPLe", "MaPLe+NPT"), seeds=SEEDS, datasets="de", **more):
    random = np.random.default_rng(2)
    evaluations = [(part, name) for name in datasets for part in ("base", "new")]
    return pd.DataFrame(
        [
            r
            for m in methods
            for r in rows_of(m, [1.0, 0.1], evaluations, seeds, None, random, **more)
        ]
    )


def grids(seeds=SEEDS):
    frames = {
        name: pd.concat(
            [
                base_to_new(["MaPLe+NPT"], seeds, **{f"TRAINER.NPT.{name.upper()}": x})
                for x in values
            ],
            ignore_index=True,
        )
        for name, values in (("w2", (2.0, 0.8)), ("w1", (0.3, 0.0, 1.0)))
    }
    random = np.random.default_rng(3)
    for frame in frames.values():
        frame["accuracy"] = random.uniform(20, 90, len(frame))
    return {**frames, "without": base_to_new(["MaPLe"], seeds)}


def without(frame, **where):
    """The frame without the figures of the rows that have these values."""
    lost = np.logical_and.reduce([frame[key] == value for key, value in where.items()])
    assert lost.any()
    frame = frame.copy()
    frame.loc[lost, ["accuracy", "lcd_abs", "mid_abs"]] = np.nan
    return frame


def cells(frame, value="accuracy", **where):
    """The values of some rows, each row once: (seeds, rows of a seed)."""
    for key, wanted in where.items():
        frame = frame[frame[key] == wanted]
    frame = frame.drop_duplicates(["seed", "part", "dataset"])
    return np.array([of_seed[value].to_numpy() for _, of_seed in frame.groupby("seed")])


def words(figure):
    """All words of a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda x: hasattr(x, "get_text")))


# --------------------------------------------------------------------------- files
@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.fig2(transfer()),
        lambda: figures.fig4(without(base_to_new(), dataset="d", method="MaPLe")),
        lambda: figures.fig5(grids()),
    ],
)
def test_the_same_numbers_give_the_same_bytes(draw, tmp_path, monkeypatch):
    names = {f"figure.{suffix}" for suffix in ("png", "pdf", "csv")}
    for k, zone in enumerate(("UTC-3", "UTC+8")):
        monkeypatch.setenv("TZ", zone)
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(10**9 * k))  # the date, if there were one
        figures.save(*draw(), tmp_path / str(k), "figure")
        assert {path.name for path in (tmp_path / str(k)).iterdir()} == names
    for name in names:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    assert (tmp_path / "0" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "0" / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_what_is_saved_is_what_was_returned(tmp_path):
    figure, data = figures.fig2(transfer())
    figures.save(figure, data, str(tmp_path / "new" / "folder"), "name")
    saved = pd.read_csv(tmp_path / "new" / "folder" / "name.csv")
    pd.testing.assert_frame_equal(saved, data, check_dtype=False, check_exact=False)


def test_the_style_of_others_stays_and_does_not_matter(tmp_path):
    before = {key: x for key, x in matplotlib.rcParams.items() if key != "backend"}
    figures.save(*figures.fig2(transfer()), tmp_path, "plain")
    assert before == {key: matplotlib.rcParams[key] for key in before}
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "pdf.fonttype": 3}):
        figures.save(*figures.fig2(transfer()), tmp_path, "dressed")
    for suffix in ("png", "pdf"):
        plain, dressed = (tmp_path / f"{name}.{suffix}" for name in ("plain", "dressed"))
        assert plain.read_bytes() == dressed.read_bytes()


def test_nothing_is_kept_in_pyplot(tmp_path):
    from matplotlib import pyplot

    figures.save(*figures.fig5(grids()), tmp_path, "figure")
    assert pyplot.get_fignums() == []


# --------------------------------------------------------------------------- figure 1
NAMES = ("CLIP", "MaPLe", "MaPLe+NPT")


@pytest.fixture
def folders(tmp_path):
    """The frame of complete runs with features, which have another plane in each."""
    trainers = {name: {"config": "c", "train": name != "CLIP"} for name in NAMES}
    rows = []
    for number, run in enumerate(Part(trainers, ("d",), ratios=(1.0, 0.5, 0.1)).runs(tmp_path)):
        for evaluation in run.evaluations:
            random = np.random.default_rng(number)
            text, image = random.normal(size=(5, 8)), random.normal(size=(50, 8))
            names = np.array([f"class {k}" for k in range(5)])
            features = SplitFeatures(text, image, np.repeat(np.arange(5), 10), names)
            features.save(run.output(evaluation) / "features.npz")
            test = {"accuracy": 50.0 + number, "lcd_abs": 0.1 * number, "mid_abs": 0.02 * number}
            result = {"results": {"test": test}}
            (run.output(evaluation) / "result.json").write_text(json.dumps(result))
        (run.folder / "run.json").write_text(json.dumps(run.record()))
        more = {**test, "folder": str(run.folder), "seed": 1}
        ratios = [run.ratio] if run.train else [1.0, 0.5, 0.1]
        rows += rows_of(run.method, ratios, [("base", "d"), ("new", "d")], (1,), **more)
    return pd.DataFrame(rows)


PANELS = [
    "CLIP, without training",
    "MaPLe, τ = 1 (16 to 1 images a class)",
    "MaPLe, τ = 0.1 (16 to 1 images a class)",
    "MaPLe+NPT, τ = 0.1 (16 to 1 images a class)",
]


def test_figure_1_has_four_panels_with_the_features_of_their_runs(folders, tmp_path):
    figure, data = figures.fig1(folders)
    assert list(dict.fromkeys(data["panel"])) == PANELS
    shown = [("CLIP", 1.0), ("MaPLe", 1.0), ("MaPLe", 0.1), ("MaPLe+NPT", 0.1)]
    for panel, (method, ratio) in zip(PANELS, shown, strict=True):
        rows = folders[(folders["method"] == method) & (folders["ratio"] == ratio)]
        points = data[data["panel"] == panel]
        for name, column in (("accuracy", "accuracy"), ("LCD", "lcd_abs"), ("MID", "mid_abs")):
            assert set(points[name]) == set(rows[column])
        assert f"\n{rows['accuracy'].iloc[0]:.1f}%  LCD" in words(figure)
        features = SplitFeatures.load(Path(rows["folder"].iloc[0]) / "new" / "features.npz")
        text, images = pca(features, range(5))  # up to the turn of the plane
        for kind, expected in (("text", text), ("image", np.concatenate(images))):
            found = points.loc[points["kind"] == kind, ["x", "y"]].to_numpy()
            assert found @ found.T == pytest.approx(expected @ expected.T)
    assert "d, new classes, seed 1" in words(figure)
    figures.save(figure, data, tmp_path / "report", "fig1")


@pytest.mark.parametrize("gone", ["number", "row", "folder"])
def test_figure_1_without_a_run_has_an_empty_panel(folders, gone):
    lost = (folders["method"] == "MaPLe") & (folders["ratio"] == 0.1)
    if gone == "number":
        folders.loc[lost, "accuracy"] = np.nan
    elif gone == "row":
        folders = folders[~lost]
    else:
        folders.loc[lost, "folder"] = "nowhere"
    figure, data = figures.fig1(folders)
    kinds = {panel: set(points["kind"]) for panel, points in data.groupby("panel")}
    (missing,) = [panel for panel, found in kinds.items() if found == {"missing"}]
    assert missing.startswith("MaPLe, τ = 0.1") and len(kinds) == 4
    assert words(figure).count("missing") == 1


def test_figure_1_of_one_ratio_shows_no_run_twice(folders):
    _, data = figures.fig1(folders[folders["ratio"] == 0.1])
    assert list(dict.fromkeys(data["panel"])) == [PANELS[0], *PANELS[2:]]


@pytest.mark.parametrize("draw", [figures.fig1, figures.fig4, lambda x: figures.fig5({"w1": x})])
def test_without_an_npt_form_there_is_no_figure(draw):
    with pytest.raises(NPTError, match=r"\+NPT.*CLIP, MaPLe"):
        draw(base_to_new(["CLIP", "MaPLe"]))


def test_the_pair_is_that_of_maple_or_else_the_first_one():
    def pair(*labels):
        return figures.method_pair(pd.DataFrame({"method": labels}))

    assert pair("CoCoOp", "CoCoOp+NPT", "MaPLe+NPT", "MaPLe") == ("MaPLe", "MaPLe+NPT")
    assert pair("B+NPT", "A", "A+NPT", "MaPLe", "MaPLe+LC") == ("A", "A+NPT")


# --------------------------------------------------------------------------- figure 2
COLUMNS = ("accuracy", "lcd_abs", "mid_abs")


@pytest.mark.parametrize("seeds", [SEEDS, (4,)])
def test_figure_2_has_the_averages_over_the_targets(seeds):
    frame = transfer(seeds)
    figure, data = figures.fig2(frame)
    points = [("CLIP", 1.0), ("CoOp", 1.0), ("MaPLe", 1.0), ("MaPLe", 0.1)]
    points += [("MaPLe+NPT", 1.0), ("MaPLe+NPT", 0.1)]
    assert list(zip(data["method"], data["ratio"], strict=True)) == points
    targets = frame[frame["part"] != "source"]
    for _, point in data.iterrows():
        for column in COLUMNS:
            values = cells(targets, column, method=point["method"], ratio=point["ratio"])
            assert point[column] == pytest.approx(values.mean())
            expected = values.mean(axis=1).std() if len(values) > 1 else np.nan
            assert point[f"{column}_std"] == pytest.approx(expected, nan_ok=True)
        assert point["seeds"] == len(values) and point["missing"] == 0
    for measure, heading in (("lcd_abs", "LCD"), ("mid_abs", "MID")):
        rank = spearmanr(data[measure], data["accuracy"]).statistic
        assert f"{heading}: Spearman's rank correlation ${rank:.2f}$ (6 points)" in words(figure)
    assert "Left out" not in words(figure)
    assert ("3 seeds" if len(seeds) > 1 else "1 seed") in words(figure)
    assert "average of 2 data sets" in words(figure) and "τ = 0.1 (16 to 1 images" in words(figure)


def test_figure_2_draws_its_data():
    figure, data = figures.fig2(transfer())
    for ax, measure in zip(figure.axes, ("lcd_abs", "mid_abs"), strict=True):
        drawn = np.concatenate([bars[0].get_xydata() for bars in ax.containers])
        assert drawn == pytest.approx(data[[measure, "accuracy"]].to_numpy())
        assert [bars[0].get_linestyle() for bars in ax.containers] == ["None", "None", "-", "-"]
        assert sorted(t.get_text() for t in ax.texts) == ["0.1", "0.1", "1", "1"]


def test_figure_2_leaves_out_and_names_what_is_not_complete():
    frame = without(transfer(), method="MaPLe", ratio=0.1, seed=2, part="e")
    frame = without(frame, method="CoOp")
    frame.loc[(frame["method"] == "MaPLe+NPT") & (frame["part"] == "d"), "mid_abs"] = np.nan
    figure, data = figures.fig2(frame)
    full = figures.fig2(transfer())[1]
    gone = (data["method"].isin(["CoOp", "MaPLe+NPT"])) | (
        (data["method"] == "MaPLe") & (data["ratio"] == 0.1)
    )
    assert data.loc[gone, list(COLUMNS)].isna().all(axis=None)
    pd.testing.assert_frame_equal(data[~gone], full[~gone])
    note = "Left out, evaluations are missing: CoOp τ = 1 (6 of 6), MaPLe τ = 0.1 (1 of 6), "
    note += "MaPLe+NPT τ = 1 (3 of 6), MaPLe+NPT τ = 0.1 (3 of 6)."
    assert note in words(figure).replace("\n", " ")
    assert "(2 points)" in words(figure)


@pytest.mark.parametrize("columns", [COLUMNS, ()])
def test_figures_without_any_result_say_so(columns, tmp_path):
    """Also if no result has ever had a measure: then the frame does not have its column."""
    frame = transfer().assign(**{key: np.nan for key in COLUMNS}, train_counts=None)
    frame = frame.drop(columns=[key for key in COLUMNS[1:] if key not in columns])
    figure, data = figures.fig2(frame)
    assert data["accuracy"].isna().all() and "undefined (0 points)" in words(figure)
    figures.save(figure, data, tmp_path, "fig2")
    for draw in (figures.fig4, lambda x: figures.fig5({"w1": x.assign(**{"TRAINER.NPT.W1": 0.3})})):
        empty = base_to_new().assign(accuracy=np.nan, train_counts=None)
        figure, data = draw(empty)
        assert "missing" in words(figure)
        figures.save(figure, data, tmp_path, "figure")


def test_settings_of_other_papers_are_noted():
    frame = transfer()
    frame.loc[(frame["ratio"] == 1) & (frame["method"] == "MaPLe"), "setting"] = "published"
    assert "of the method's own paper: MaPLe τ = 1." in words(figures.fig2(frame)[0])
    assert "own paper" not in words(figures.fig2(transfer())[0])


# --------------------------------------------------------------------------- figure 4
@pytest.mark.parametrize("seeds", [SEEDS, (4,)])
def test_figure_4_has_the_gains_of_pairs(seeds):
    frame = base_to_new(seeds=seeds).sample(frac=1, random_state=0)  # in any order
    figure, data = figures.fig4(frame)
    assert len(data) == 2 * 2 * 3
    for _, bar in data.iterrows():
        where = {"ratio": bar["ratio"], "part": bar["part"]}
        if bar["dataset"] != "average":
            where["dataset"] = bar["dataset"]
        ours, theirs = (
            cells(frame.sort_values("dataset"), method=m, **where) for m in ("MaPLe+NPT", "MaPLe")
        )
        assert bar["gain"] == pytest.approx((ours - theirs).mean())
        expected = (ours - theirs).mean(axis=1).std() if len(seeds) > 1 else np.nan
        assert bar["gain_std"] == pytest.approx(expected, nan_ok=True)
        assert bar["seeds"] == len(seeds)
    heights = [p.get_height() for ax in figure.axes for p in ax.patches]
    assert sorted(heights) == pytest.approx(sorted(data["gain"]))


def test_figure_4_leaves_gaps():
    frame = without(base_to_new(), method="MaPLe", ratio=0.1, part="new", dataset="e", seed=2)
    figure, data = figures.fig4(frame)
    gaps = data[data["gain"].isna()]
    assert list(zip(gaps["ratio"], gaps["part"], gaps["dataset"], strict=True)) == [
        (0.1, "new", "e"),
        (0.1, "new", "average"),
    ]
    assert words(figure).count("missing") == 2
    full = figures.fig4(base_to_new())[1]
    pd.testing.assert_frame_equal(data.drop(gaps.index), full.drop(gaps.index))


def test_figure_4_needs_both_runs_of_a_seed():
    frame = base_to_new()
    half = frame[(frame["method"] == "MaPLe") | (frame["seed"] != 3)]  # a seed that one has not
    assert figures.fig4(half)[1]["gain"].isna().all()
    assert figures.fig4(frame[frame["method"] != "MaPLe"])[1]["gain"].isna().all()


def test_figure_4_keeps_the_order_of_the_frame_and_has_no_average_of_one_data_set():
    _, data = figures.fig4(base_to_new(datasets="zay"))
    assert list(data["dataset"].unique()) == ["z", "a", "y", "average"]
    assert list(data["ratio"].unique()) == [1.0, 0.1]
    assert list(figures.fig4(base_to_new(datasets="z"))[1]["dataset"].unique()) == ["z"]


# --------------------------------------------------------------------------- figure 5
def harmonic(base, new):
    return 2 / (1 / base + 1 / new)


@pytest.mark.parametrize("seeds", [SEEDS, (4,)])
def test_figure_5_has_the_averages_of_each_value(seeds):
    frames = grids(seeds)
    _, data = figures.fig5(frames)
    assert len(data) == 2 * (3 + 2 + 1)
    for _, point in data.iterrows():
        where = {"ratio": point["ratio"], "method": point["method"]}
        if pd.notna(point["value"]):
            where[f"TRAINER.NPT.{point['weight'].upper()}"] = point["value"]
        name = point["weight"] if pd.notna(point["weight"]) else "without"
        base, new = (cells(frames[name], part=part, **where) for part in ("base", "new"))
        by_seed = {"base": base.mean(axis=1), "new": new.mean(axis=1)}
        by_seed["hm"] = harmonic(by_seed["base"], by_seed["new"])
        assert point["base"] == pytest.approx(base.mean())
        assert point["new"] == pytest.approx(new.mean())
        assert point["hm"] == pytest.approx(harmonic(base.mean(), new.mean()))
        for part, values in by_seed.items():
            expected = values.std() if len(seeds) > 1 else np.nan
            assert point[f"{part}_std"] == pytest.approx(expected, nan_ok=True)
    panel = data[(data["weight"] == "w1") & (data["ratio"] == 1.0)]
    assert list(panel["value"]) == [0.0, 0.3, 1.0]
    assert set(data.loc[data["method"] == "MaPLe", "weight"].isna()) == {True}


def test_figure_5_draws_its_data_the_defaults_and_the_method_without_terms():
    frames = grids()
    figure, data = figures.fig5(frames)
    assert [ax.get_xlabel()[:2] for ax in figure.axes] == ["w1", "w2"] * 2
    for ax, (ratio, weight, default) in zip(
        figure.axes,
        [(r, w, d) for r in (1.0, 0.1) for w, d in (("w1", 0.3), ("w2", 0.8))],
        strict=True,
    ):
        of_ratio = data[data["ratio"] == ratio]
        points = of_ratio[of_ratio["weight"] == weight]
        for bars, part in zip(ax.containers, ("base", "new", "hm"), strict=True):
            assert bars[0].get_xydata() == pytest.approx(points[["value", part]].to_numpy())
        (dotted,) = [line for line in ax.lines if line.get_linestyle() == ":"]
        assert set(dotted.get_xdata()) == {default}
        dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
        across = {line.get_ydata()[0] for line in dashed if len(line.get_ydata())}
        levels = of_ratio.loc[of_ratio["method"] == "MaPLe", ["base", "new", "hm"]]
        assert across == set(levels.to_numpy()[0])


def test_figure_5_leaves_out_and_names_what_is_not_complete():
    frames = grids()
    frames["w1"] = without(frames["w1"], **{"TRAINER.NPT.W1": 0.3}, ratio=0.1, seed=1, dataset="d")
    frames["without"] = without(frames["without"], ratio=1.0, part="new")
    figure, data = figures.fig5(frames)
    gone = data["base"].isna()
    assert data.loc[gone, ["base", "new", "hm"]].isna().all(axis=None) and gone.sum() == 2
    note = "evaluations are missing: w1 = 0.3 (2 of 12), MaPLe (6 of 12)."
    assert note in words(figure)
    pd.testing.assert_frame_equal(data[~gone], figures.fig5(grids())[1][~gone])


def test_figure_5_without_the_method_without_terms_has_no_lines_across():
    frames = grids()
    del frames["without"]
    figure, data = figures.fig5(frames)
    assert set(data["method"]) == {"MaPLe+NPT"} and "MaPLe" not in words(figure).split("\n")
    assert not [x for ax in figure.axes for x in ax.lines if x.get_linestyle() == "--"]
    mixed = {**frames, "w1": pd.concat([frames["w1"], base_to_new(["MaPLe"])], ignore_index=True)}
    pd.testing.assert_frame_equal(figures.fig5(mixed)[1], figures.fig5(grids())[1])


# --------------------------------------------------------------------------- any gaps
@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 47)), st.integers(0, 2**32 - 1))
def test_no_average_is_of_fewer_runs_than_it_says(lost, order):
    """A bar is there if and only if both runs of each seed are, on all its data sets."""
    frame = base_to_new().sample(frac=1, random_state=order).reset_index(drop=True)
    frame.loc[sorted(lost), "accuracy"] = np.nan
    for _, bar in figures.fig4(frame)[1].iterrows():
        rows = frame[(frame["ratio"] == bar["ratio"]) & (frame["part"] == bar["part"])]
        if bar["dataset"] != "average":
            rows = rows[rows["dataset"] == bar["dataset"]]
        assert pd.notna(bar["gain"]) == rows["accuracy"].notna().all()


# --------------------------------------------------------------------------- controls of imbalance
def with_controls(frame):
    own = frame[(frame["method"] != "CLIP") & (frame["ratio"] < 1)]
    controls = own.assign(method=own["method"] + " (same budget)", train_counts=[[5, 5]] * len(own))
    return pd.concat([frame, controls], ignore_index=True)


@pytest.mark.parametrize(
    "draw, frame",
    [(figures.fig2, transfer()), (figures.fig4, base_to_new()), (figures.fig5, grids())],
)
def test_controls_are_not_drawn_and_change_nothing(draw, frame):
    more = {k: with_controls(x) for k, x in frame.items()} if isinstance(frame, dict) else None
    plain, other = draw(frame), draw(with_controls(frame) if more is None else more)
    pd.testing.assert_frame_equal(plain[1], other[1])
    assert words(plain[0]) == words(other[0])


@pytest.mark.parametrize("draw, make", [(figures.fig2, transfer), (figures.fig4, base_to_new)])
def test_the_exact_ratios_are_shown_as_they_are(draw, make):
    frame = make()
    frame = pd.concat([frame, frame[frame["ratio"] < 1].assign(ratio=0.0625)], ignore_index=True)
    text = words(draw(frame.replace({"ratio": {0.1: 0.25}}))[0])
    assert "τ = 0.25 (16 to 1 images a class)" in text and "τ = 0.0625" in text
