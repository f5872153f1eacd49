import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import fake_runs
import pytest

pytest.importorskip("pandas")

import pandas as pd

from npt.errors import NPTError
from npt.experiments import tables
from npt.experiments.__main__ import main
from npt.experiments.plan import Part

# (dataset, label, seed) -> (base, new)
ACCURACIES = {
    ("a", "Z", 1): (50.0, 60.0),
    ("a", "M", 1): (70.0, 60.0),
    ("a", "M", 2): (80.0, 40.0),
    ("b", "Z", 1): (30.0, 40.0),
    ("b", "M", 1): (50.0, 20.0),
    ("b", "M", 2): (60.0, 60.0),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trainers = {"Z": {"config": "z", "train": False}, "M": {"config": "m"}}
    runs = Part(trainers, ("a", "b"), seeds=(1, 2), ratios=(0.01,)).runs(tmp_path)
    assert len(runs) == len(ACCURACIES)
    for run in runs:
        run.folder.mkdir(parents=True)
        (run.folder / "run.json").write_text(json.dumps(run.record()))
        accuracies = ACCURACIES[run.dataset, run.label, run.seed]
        for evaluation, accuracy in zip(run.evaluations, accuracies, strict=True):
            run.output(evaluation).mkdir()
            figures = {"accuracy": accuracy, "lcd_abs": 0.1 * run.seed, "mid_abs": 0.5}
            if evaluation.name == "new":
                figures["lcd_abs"] = 9.0
            content = {
                "task": "training" if evaluation.name == "base" else "evaluation",
                "finished": True,
                "results": {"test": figures},
                "train_seconds": 2.0,
            }
            (run.output(evaluation) / "result.json").write_text(json.dumps(content))
    return tmp_path


def change_results(folder: Path, change: Callable[[dict, dict], None]) -> None:
    """Change every result.json with `change(run, content)`."""
    for path in folder.rglob("result.json"):
        run = json.loads((path.parents[1] / "run.json").read_text())
        content = json.loads(path.read_text())
        change(run, content)
        path.write_text(json.dumps(content))


def row(summary, dataset, label):
    found = summary[(summary["dataset"] == dataset) & (summary["label"] == label)]
    assert len(found) == 1
    return found.iloc[0]


def test_collect_is_tidy(folder):
    frame = tables.collect(folder)
    assert len(frame) == 2 * len(ACCURACIES)
    for _, r in frame.iterrows():
        expected = ACCURACIES[r["dataset"], r["label"], r["seed"]][r["part"] == "new"]
        assert r["accuracy"] == expected and r["split"] == "test" and r["ratio"] == 0.01
    assert list(dict.fromkeys(frame["label"])) == ["Z", "M"]  # as in the experiment


def test_mean_deviation_and_harmonic_mean_by_hand(folder):
    m = row(tables.summarise(tables.collect(folder)), "a", "M")
    assert m["base"] == pytest.approx(75.0)
    assert m["base_std"] == pytest.approx(5.0)
    assert m["new"] == pytest.approx(50.0)
    assert m["new_std"] == pytest.approx(10.0)
    assert m["hm"] == pytest.approx(2 * 75 * 50 / 125)  # of the means: 60
    first, second = 2 * 70 * 60 / 130, 2 * 80 * 40 / 120
    assert m["hm_std"] == pytest.approx(abs(first - second) / 2)
    assert m["lcd_abs"] == pytest.approx(0.15)  # of base, the new classes' 9.0 left out
    assert m["seeds"] == 2


def headings(folder, capsys) -> list[str]:
    """The columns of the first table after base, new and the harmonic mean."""
    assert main(["table", str(folder), "--style", "github"]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    return [word.strip() for word in line.strip("|").split("|")][4:]


def test_results_name_the_columns_beside_accuracies(folder, capsys):
    """A measure and a term (its mean over the last training epoch) with headings of their own."""

    def add(run, content):
        content["headings"] = {"lcd_abs": "LCD", "length": "text length", "loss_anchor": "anchor"}
        content["results"]["test"]["length"] = 2.0 * run["seed"]
        content["training"] = {"loss_anchor": 0.3 * run["seed"]} if run["train"] else {}

    change_results(folder, add)
    m = row(tables.summarise(tables.collect(folder)), "a", "M")
    assert m["length"] == pytest.approx(3.0)
    assert m["loss_anchor"] == pytest.approx(0.45)
    assert headings(folder, capsys) == ["LCD", "text length", "anchor"]
    assert main(["table", str(folder), "--style", "github"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line]
    last = {cells[1].strip(): cells[-2].strip() for cells in rows}
    assert (last["M"], last["Z"]) == ("0.4500", "-")  # Z is not trained


def test_results_without_headings_show_lcd_and_mid(folder, capsys):
    assert headings(folder, capsys) == ["LCD", "MID"]


def test_a_column_of_some_results_only(folder, capsys):
    """An experiment that was continued after a measure was added."""

    def add(run, content):
        if run["seed"] == 2:
            content["headings"] = {"lcd_abs": "LCD", "mid_abs": "MID", "length": "text length"}
            content["results"]["test"]["length"] = 4.0

    change_results(folder, add)
    assert headings(folder, capsys) == ["LCD", "MID", "text length"]
    m = row(tables.summarise(tables.collect(folder)), "a", "M")
    assert m["length"] == pytest.approx(4.0) and m["mid_abs"] == pytest.approx(0.5)


def test_measures_that_could_not_be_computed(folder, capsys):
    def remove(run, content):
        content["results"]["test"].update(lcd_abs=None, mid_abs=None)

    change_results(folder, remove)
    assert headings(folder, capsys) == ["LCD", "MID"]


def test_averages_over_data_sets(folder):
    summary = tables.summarise(tables.collect(folder))
    m = row(summary, "average", "M")
    assert m["base"] == pytest.approx((75 + 55) / 2)
    assert m["base_std"] == pytest.approx(5.0)  # seeds: 60, 70
    assert m["new"] == pytest.approx((50 + 40) / 2)
    assert m["new_std"] == pytest.approx(5.0)  # seeds: 40, 50
    assert m["hm"] == pytest.approx(2 * 65 * 45 / 110)
    per_seed = [2 * 60 * 40 / 100, 2 * 70 * 50 / 120]
    mean = sum(per_seed) / 2
    assert m["hm_std"] == pytest.approx(sqrt(sum((x - mean) ** 2 for x in per_seed) / 2))
    z = row(summary, "average", "Z")
    assert (z["base"], z["new"], z["seeds"]) == (40.0, 50.0, 1)


TYPE = "DATASET.IMBALANCE_TYPE"
EXP, EVEN = [16, 4, 1, 1], [6, 6, 5, 5]


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    """A method and its control on two data sets, at tau 1 and 0.05, as runs write them."""
    trainers = {"Z": {"config": "z", "train": False}, "M": {"config": "m"}}
    part = Part(trainers, ("a", "b"), ratios=(1.0, 0.05), control=True)
    for run in part.runs(tmp_path):
        control = run.label.endswith("(same budget)")
        fake_runs.write(run, 40.0 if control else 30.0)
        counts = EVEN if control else [16] * 4 if run.ratio == 1 else EXP
        for path in run.folder.rglob("result.json"):
            content = json.loads(path.read_text())
            # Dassl counts the images of CLIP, too, although nothing is trained on them.
            content["train_counts"] = counts[:3] if run.dataset == "b" else counts
            content["config"] = {"DATASET": {"IMBALANCE_TYPE": dict(run.opts).get(TYPE, "exp")}}
            path.write_text(json.dumps(content))
    return tmp_path


def blocks_of(text: str) -> dict[str, list[str]]:
    """The lines of each block of a rendered table, by its heading."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if ", tau " in line:
            lines = found.setdefault(line, [])
        elif line and not line.startswith("-"):
            lines.append(line)
    return found


def test_each_block_says_what_tau_really_was(typed, capsys):
    assert main(["table", str(typed)]) == 0
    blocks = blocks_of(capsys.readouterr().out)
    assert {heading: lines[0] for heading, lines in blocks.items()} == {
        "a, tau 1": "16 to 16 images a class, 0 of 4 classes with one, ratio obtained 1",
        "a, tau 0.05": "16 to 1 images a class, 2 of 4 classes with one, ratio obtained 0.0625; "
        "same budget: 6 to 5 images a class, 0 of 4 classes with one, ratio obtained 0.8333",
        "b, tau 1": "16 to 16 images a class, 0 of 3 classes with one, ratio obtained 1",
        "b, tau 0.05": "16 to 1 images a class, 1 of 3 classes with one, ratio obtained 0.0625; "
        "same budget: 6 to 5 images a class, 0 of 3 classes with one, ratio obtained 0.8333",
        "average, tau 1": "16 to 16 images a class, 0 of 3–4 classes with one, "  # noqa: RUF001
        "ratio obtained 1",
        "average, tau 0.05": "16 to 1 images a class, 1–2 of 3–4 classes with one, "  # noqa: RUF001
        "ratio obtained 0.0625; same budget: 6 to 5 images a class, 0 of 3–4 classes "  # noqa: RUF001
        "with one, ratio obtained 0.8333",
    }
    rows = {heading: [x.split("  ")[0] for x in lines[2:]] for heading, lines in blocks.items()}
    assert rows["a, tau 1"] == ["Z", "M"] and rows["a, tau 0.05"] == ["Z", "M", "M (same budget)"]


def test_the_csv_has_the_real_counts_and_the_type(typed, tmp_path):
    csv = tmp_path / "all.csv"
    assert main(["table", str(typed), "--csv", str(csv)]) == 0
    frame = pd.read_csv(csv)
    (one,) = frame[
        (frame["label"] == "M") & (frame["dataset"] == "a") & (frame["part"] == "new")
        & (frame["ratio"] == 0.05)
    ].to_dict("records")  # fmt: skip
    assert one.items() >= {
        "imbalance_type": "exp", "largest_class": 16, "smallest_class": 1,
        "classes_with_one_image": 2, "trained_classes": 4, "images": 22, "ratio_obtained": 1 / 16,
    }.items()  # fmt: skip
    controls = frame[frame["label"] == "M (same budget)"]
    assert set(controls["imbalance_type"]) == {"balanced_budget"} and len(controls) == 4
    assert frame[frame["label"] == "Z"]["images"].isna().all()  # it is not trained


def test_means_are_never_over_several_types(typed):
    """Also where labels do not tell runs apart."""
    frame = tables.collect(typed)
    summary = tables.summarise(frame, by=["trainer"])
    found = summary[(summary["dataset"] == "a") & (summary["ratio"] == 0.05)]
    assert dict(zip(found["imbalance_type"], found["base"], strict=True)) == {
        "exp": 30.0, "balanced_budget": 40.0
    }  # fmt: skip
    assert "balanced_budget" in tables.render(summary)
    table = tables.grid(frame, "accuracy", ["label"], "seed")
    assert 35.0 not in table.values


def test_a_table_of_one_type_only_says_so(tmp_path):
    """Also of runs whose label does not: by the configuration on record."""
    for run in fake_runs.runs(tmp_path, seeds=2, ratios=(1.0, 0.1)):
        fake_runs.write(run)
        for path in run.folder.rglob("result.json"):
            content = json.loads(path.read_text())
            content["config"] = {"DATASET": {"IMBALANCE_TYPE": "step"}}
            path.write_text(json.dumps(content))
    frame = tables.collect(tmp_path)
    found = frame[["ratio", "label"]].drop_duplicates().to_records(index=False).tolist()
    assert found == [(1.0, "Fake"), (0.1, "Fake (step)")]


def test_records_before_and_after_a_key_was_added_are_of_one_method(tmp_path):
    for run in fake_runs.runs(tmp_path, seeds=2, ratios=(0.1,)):
        fake_runs.write(run)
        for path in run.folder.rglob("result.json") if run.seed == 1 else ():
            content = json.loads(path.read_text())
            content["config"] = {"DATASET": {"IMBALANCE_TYPE": "exp"}}
            path.write_text(json.dumps(content))
    assert set(tables.collect(tmp_path)["label"]) == {"Fake"}


def test_no_average_where_a_data_set_is_missing(folder):
    frame = tables.collect(folder)
    frame = frame[~((frame["dataset"] == "b") & (frame["label"] == "M"))]
    summary = tables.summarise(frame)
    assert set(summary[summary["dataset"] == "average"]["label"]) == {"Z"}


def test_the_papers_average_row_comes_out():
    """MaPLe (Khattak et al. 2023, Table 3): base 82.28, new 75.14, HM 78.55."""
    assert tables.harmonic_mean(82.28, 75.14) == pytest.approx(78.55, abs=0.005)


def test_commands_print_tables_and_csv(folder, tmp_path, capsys):
    csv = tmp_path / "all.csv"
    assert main(["table", str(folder), "--style", "github", "--csv", str(csv)]) == 0
    text = capsys.readouterr().out
    assert "| M" in text and "75.00 ± 5.00" in text and "60.00 ±" in text
    assert text.index("a, tau 0.01") < text.index("b, tau 0.01") < text.index("average, tau 0.01")
    assert "| Z" in text and "50.00 |" in text  # one seed: no deviation
    assert len(csv.read_text().splitlines()) == 1 + 2 * len(ACCURACIES)


def test_grouping_by_a_grid_key(tmp_path):
    grid = {"TRAINER.NPT.W1": [0.1, 1.0]}
    runs = Part({"M": {"config": "m"}}, ("a",), seeds=(1, 2), grid=grid).runs(tmp_path)
    for k, run in enumerate(runs):
        (run.folder / "base").mkdir(parents=True)
        (run.folder / "run.json").write_text(json.dumps(run.record()))
        figures = {"accuracy": float(k), "lcd_abs": 0.0, "mid_abs": 0.0}
        result = json.dumps({"results": {"val": figures}})
        (run.folder / "base" / "result.json").write_text(result)
    frame = tables.collect(tmp_path)
    summary = tables.summarise(frame, by=["trainer", "TRAINER.NPT.W1"], split="val")
    assert list(summary["TRAINER.NPT.W1"]) == [0.1, 1.0]
    assert list(summary["base"]) == [1.0, 2.0]  # seeds 0 and 2, 1 and 3
    assert "hm" not in summary
    assert "0.1" in tables.render(summary)


def test_a_grid_shows_one_figure_of_every_setting(tmp_path, capsys):
    keys = {"TRAINER.NPT.W1": [0.1, 1.0], "TRAINER.NPT.W2": [0.0, 2.0]}
    trainers = {"P": {"config": "m", "grid": False}, "M": {"config": "m"}}
    runs = Part(trainers, ("a",), seeds=(1, 2), grid=keys).runs(tmp_path)
    for run in runs:
        (run.folder / "base").mkdir(parents=True)
        (run.folder / "run.json").write_text(json.dumps(run.record()))
        values = dict(run.params)
        figure = values.get("TRAINER.NPT.W1", 9) * 10 + values.get("TRAINER.NPT.W2", 9) + run.seed
        figures = {"accuracy": figure, "lcd_abs": 0.0, "mid_abs": 0.0}
        result = json.dumps({"results": {"test": figures}})
        (run.folder / "base" / "result.json").write_text(result)
    argv = ["grid", str(tmp_path), "--rows", "TRAINER.NPT.W1", "--column", "TRAINER.NPT.W2"]
    assert main(argv) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["ratio", "trainer", "W1", "W2", "0", "W2", "2"]
    assert [line[-2:] for line in lines[2:]] == [["2.50", "4.50"], ["11.50", "13.50"]]
    assert main([*argv, "--value", "colour"]) == 2


def test_messages_name_what_is_missing(folder, tmp_path, capsys):
    with pytest.raises(NPTError, match="no results"):
        tables.collect(tmp_path / "empty")
    assert main(["table", str(folder), "--by", "colour"]) == 2
    assert main(["table", str(folder), "--split", "val"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_grid_by_hand(tmp_path):
    """Means over seeds for each setting; runs outside the grid are left out."""
    trainers = {"MaPLe": {"config": "m", "grid": False}, "MaPLeNPT": {"config": "n"}}
    key, other = "TRAINER.NPT.W1", "TRAINER.NPT.W2"
    grid = {key: [0.1, 1.0], other: [0.0, 2.0]}
    runs = Part(trainers, ("a",), seeds=(1, 3), grid=grid).runs(tmp_path)
    for run in runs:
        params = dict(run.params)
        accuracy = 10 * run.seed + params.get(key, 99) + 100 * params.get(other, 99)
        for evaluation in run.evaluations:
            run.output(evaluation).mkdir(parents=True)
            content = {"results": {"test": {"accuracy": accuracy}}}
            (run.output(evaluation) / "result.json").write_text(json.dumps(content))
        (run.folder / "run.json").write_text(json.dumps(run.record()))
    frame = tables.collect(tmp_path)
    table = tables.grid(frame, "accuracy", [key], other)
    assert list(table.columns) == [0.0, 2.0]
    assert table.values.tolist() == [[20.1, 220.1], [21.0, 221.0]]
    text = tables.render_grid(table, digits=1)
    assert text.splitlines()[0].split() == ["ratio", "trainer", "W1", "W2", "0", "W2", "2"]
    assert text.splitlines()[-1].split() == ["1", "MaPLeNPT", "1", "21.0", "221.0"]
    for wrong in ({"value": "speed"}, {"rows": ["nothing"]}, {"split": "val"}):
        arguments = {"value": "accuracy", "rows": [key], "column": other, **wrong}
        with pytest.raises(NPTError):
            tables.grid(frame, **arguments)


@pytest.mark.parametrize("content", ["", "[]", "\0\0", "{", "{}", "[" * 200_000])
@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_damaged_record_is_named_and_the_rest_is_shown(folder, capsys, name, content):
    expected = len(tables.collect(folder))
    file = next(folder.rglob(name))
    file.write_text(content)
    assert main(["table", str(folder)]) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {file} ") and error.count("\n") == 1
    lost = 2 if name == "run.json" or file.parent.name == "base" else 1
    assert len(tables.collect(folder)) == expected - lost


def test_evaluations_beside_a_training_are_rows_of_their_own(folder, capsys):
    before = tables.collect(folder)
    base = next(path.parent for path in folder.rglob("base/result.json") if "/M-m-" in str(path))
    content = {"task": "evaluation", "results": {"test": {"accuracy": 12.0, "lcd_abs": 0.5}}}
    (base / "result-Other-new-12345678.json").write_text(json.dumps(content))
    (base / "result-Other-new-9abcdef0.json").write_text("[]")
    frame = tables.collect(folder)
    assert "result-Other-new-9abcdef0.json" in capsys.readouterr().err
    (more,) = frame[~frame["path"].isin(before["path"])].to_dict("records")
    assert (more["part"], more["accuracy"]) == ("result-Other-new-12345678", 12.0)
    assert tables.summarise(frame).equals(tables.summarise(before))


def test_a_training_that_has_not_ended_is_not_in_tables(folder):
    def stop(run, content):
        if run["seed"] == 2:
            content.update(task="training", finished=False)

    change_results(folder, stop)
    m = row(tables.summarise(tables.collect(folder)), "a", "M")
    assert (m["base"], m["new"], m["seeds"]) == (70.0, 60.0, 1)


@pytest.mark.parametrize(
    "value, rows, column, words",
    [
        ("accuracy", ["label"], "label", "must differ"),
        ("path", ["label"], "seed", "--value path: that column does not have numbers"),
        ("accuracy", ["seed"], "label", "--column label: that column does not have numbers"),
        ("accuracy", ["seed"], "ratio", "must differ"),
        ("accuracy", ["seed"], "part", "--column part: that column does not have numbers"),
    ],
)
def test_a_grid_of_columns_that_cannot_be_is_refused(tmp_path, value, rows, column, words):
    for run in fake_runs.runs(tmp_path, seeds=2):
        fake_runs.write(run)
    with pytest.raises(NPTError, match=words):
        tables.grid(tables.collect(tmp_path), value, rows, column)


def test_headings_that_equal_other_columns_do_no_harm(tmp_path):
    (run,) = fake_runs.runs(tmp_path, seeds=1)
    fake_runs.write(run)
    for file in tmp_path.rglob("result.json"):
        result = json.loads(file.read_text())
        result["headings"] = {"lcd_abs": "base", "mid_abs": "seeds"}
        file.write_text(json.dumps(result))
    text = tables.render(tables.summarise(tables.collect(tmp_path)))
    assert text.splitlines()[2].split().count("base") == 2 and "0.1000" in text


def test_headings_of_other_columns_are_left_out(tmp_path):
    (run,) = fake_runs.runs(tmp_path, seeds=1)
    fake_runs.write(run)
    names = ("label", "base", "base_std", "seeds", "accuracy", "lcd_abs", "mid_abs")

    def add(run, content):
        content["headings"] = dict.fromkeys(names, "LCD")
        content["results"]["test"].update(base=1.0, base_std=2.0, seeds=3.0)

    change_results(tmp_path, add)
    frame = tables.collect(tmp_path)
    summary = tables.summarise(frame)
    assert list(summary.attrs["headings"]) == ["lcd_abs", "mid_abs"]
    assert (summary["base"][0], summary["base_std"][0], summary["seeds"][0]) == (50.0, 0.0, 1)
    assert tables.render(summary).splitlines()[2].split().count("LCD") == 2
    assert list(tables.summarise(frame, by=["lcd_abs"]).attrs["headings"]) == ["mid_abs"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["table", "--csv", "{}/file/x.csv"], "x.csv cannot be written ("),
        (["table", "--by", "ratio"], "--by ratio: name each column once"),
        (["table", "--by", "label", "label"], "--by label label: name each column once"),
        (["grid", "--rows", "label", "--column", "label"], "must differ"),
        (["grid", "--rows", "label", "--column", "seed", "--value", "path"], "--value path"),
        (["grid", "--rows", "label", "--column", "seed", "--digits", "-1"], "--digits"),
    ],
)
def test_arguments_that_cannot_be_are_one_sentence(folder, capsys, argv, words):
    (folder / "file").touch()
    command, *options = (word.format(folder) for word in argv)
    assert main([command, str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
