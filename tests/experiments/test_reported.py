"""The reported figures: what is read, and what does not agree, recomputed from the files."""

import re

import pytest
import yaml

pytest.importorskip("pandas")

from npt.experiments.report.reported import (
    AVERAGE,
    HM_OF_AVERAGES,
    MEAN_OF_HMS,
    load_reported,
)

KEYS = ("tau", "method", "average")


@pytest.fixture(scope="module")
def files(repository):
    folder = repository / "configs" / "experiments" / "paper" / "numbers"
    return {
        name: yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("tables", "published")
    }


@pytest.fixture(scope="module")
def reported():
    return load_reported()


def cells(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in KEYS}


def average(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def harmonic(base: float, new: float) -> float:
    return 2 / (1 / base + 1 / new)


# --------------------------------------------------------------------------- what is read
def test_every_cell_of_the_paper_is_found(files, reported):
    for table, content in files["tables"].items():
        for row in content["rows"]:
            for column, value in row.items():
                if column not in ("tau", "method"):
                    assert reported.cell(table, row["tau"], row["method"], column) == value


def test_the_tables_are_complete(files):
    sizes = {name: (len(x["rows"]), len(x["rows"][0])) for name, x in files["tables"].items()}
    assert sizes == {"table1": (13, 14), "table2": (8, 14), "table3": (4, 5), "table4": (8, 8)}
    assert all(len({*map(len, x["rows"])}) == 1 for x in files["tables"].values())


@pytest.mark.parametrize(
    "place",
    [
        ("table1", 0.25, "MaPLe", "eurosat"),
        ("table1", 0.05, "CLIP", "eurosat"),
        ("table1", 1.0, "CoOp", "eurosat"),
        ("table1", 1.0, "MaPLe", "mini_land"),
        ("table5", 1.0, "MaPLe", "eurosat"),
    ],
)
def test_what_the_paper_does_not_print(reported, place):
    assert reported.cell(*place) is None


def test_published_figures(files, reported):
    published = files["published"]
    for method, row in published["base_to_new"].items():
        for dataset, (base, new) in row.items():
            assert reported.baseline("base", method, dataset) == base
            assert reported.baseline("new", method, dataset) == new
            assert reported.baseline("table1", method, dataset) == pytest.approx(
                harmonic(base, new)
            )
    for table, section in (("table2", "cross_dataset"), ("table4", "domain_generalisation")):
        for method, row in published[section].items():
            for dataset, value in row.items():
                assert reported.baseline(table, method, dataset) == value
    assert reported.baseline("base", "MaPLe+NPT", "eurosat") is None


def test_the_papers_baselines_at_tau_1_are_the_published_runs(files, reported):
    compared = {}
    for row in files["tables"]["table1"]["rows"]:
        published = files["published"]["base_to_new"].get(row["method"])
        if row["tau"] == 1 and published:
            for dataset, value in cells(row).items():
                assert harmonic(*published[dataset]) == pytest.approx(value, abs=0.01)
            compared[row["method"]] = len(cells(row))
    assert sum(compared.values()) == 33
    assert reported.published_rows() == compared


# --------------------------------------------------------------------------- what does not agree
def recomputed(tables: dict) -> dict[tuple, tuple[float, float]]:
    """(table, tau, method, column) -> printed and recomputed, where they differ."""
    found, averages, sources = {}, {}, {}
    tasks = {"table1": "base_to_new", "table2": "cross_dataset", "table4": "domain_generalisation"}
    for table, task in tasks.items():
        for row in tables[table]["rows"]:
            place = (row["tau"], row["method"])
            values = list(cells(row).values())
            mean = average(values if table == "table1" else values[1:])
            averages[(task, *place)] = mean
            found[(table, *place, "average")] = (row["average"], mean)
            if table != "table1":
                sources[(table, *place)] = row["imagenet"]
    for row in tables["table3"]["rows"]:
        for task, value in cells(row).items():
            place = (row["tau"], row["method"])
            found[("table3", *place, task)] = (value, averages.get((task, *place), value))
    for (table, *place), value in sources.items():
        other = "table4" if table == "table2" else "table2"
        found[(table, *place, "imagenet")] = (value, sources[(other, *place)])
    return {place: pair for place, pair in found.items() if abs(pair[0] - pair[1]) > 0.015}


def test_disagreements_are_those_of_the_numbers(files, reported):
    expected = recomputed(files["tables"])
    found = {x.place: (x.printed, x.recomputed) for x in reported.disagreements()}
    assert set(found) == set(expected)
    for place, pair in expected.items():
        assert found[place] == pytest.approx(pair)
    assert {x[0] for x in expected} == {"table2", "table3", "table4"}  # none in table1


def test_the_sentences_have_the_numbers(reported):
    for x in reported.disagreements():
        numbers = [float(n) for n in re.findall(r"\d+\.\d+", x.sentence)]
        assert x.printed in numbers and x.ratio in numbers
        assert any(abs(n - x.recomputed) <= 0.0051 for n in numbers)
        assert x.method in x.sentence and x.sentence.endswith(".")


def test_the_averages_of_table_4_are_nearer_to_those_with_the_source(files, reported):
    odd = [x for x in reported.disagreements() if x.column == AVERAGE]
    assert [(x.table, x.ratio, x.method) for x in odd] == [
        ("table4", 0.05, "CoCoOp"),
        ("table4", 0.05, "CoCoOp+NPT"),
    ]
    rows = {(row["tau"], row["method"]): row for row in files["tables"]["table4"]["rows"]}
    for x in odd:
        every = average(cells(rows[x.ratio, x.method]).values())
        assert abs(every - x.printed) < 0.03 < abs(x.recomputed - x.printed)
        assert f"source included, {every:.2f}" in x.sentence


# --------------------------------------------------------------------------- quotes
def test_the_paper_is_quoted_with_its_averages(reported):
    columns = reported.columns("table1")
    quotes = reported.quotes("table1", 0.01, "MaPLe+NPT", columns)
    assert [*quotes] == [*columns, MEAN_OF_HMS]
    assert quotes["eurosat"].value == 58.48 and quotes[MEAN_OF_HMS].value == 71.85
    assert {x.label for x in quotes.values()} == {"paper"}


def test_zero_shot_figures_are_the_same_at_every_ratio(reported):
    columns = reported.columns("table1")
    one, other = (
        reported.quotes("table1", tau, name, columns)
        for tau, name in ((1.0, "CLIP"), (0.01, "CLIP (zero-shot)"))
    )
    assert {k: x.value for k, x in one.items()} == {k: x.value for k, x in other.items()}
    assert one[MEAN_OF_HMS].value == 71.58
    assert one["dtd"].source == "paper, Table 1"
    assert other["dtd"].source == "paper, Table 1 at tau 1"


def test_the_other_average_is_computed_from_what_was_published(files, reported):
    columns = reported.columns("table1")
    row = files["published"]["base_to_new"]["MaPLe"].values()
    expected = harmonic(average(x[0] for x in row), average(x[1] for x in row))
    quote = reported.quotes("table1", 1.0, "MaPLe", columns)[HM_OF_AVERAGES]
    assert quote.value == pytest.approx(expected) and quote.value == pytest.approx(78.55, abs=0.01)
    assert quote.label == "published" and quote.notes
    assert HM_OF_AVERAGES not in reported.quotes("table1", 0.05, "MaPLe", columns)
    assert HM_OF_AVERAGES not in reported.quotes("table1", 1.0, "MaPLe+NPT", columns)


def test_averages_over_other_data_sets_are_of_these_data_sets(reported):
    quotes = reported.quotes("table1", 0.05, "MaPLe", ["dtd", "eurosat"])
    assert quotes[MEAN_OF_HMS].value == pytest.approx((55.15 + 51.1) / 2)
    assert "averaged over the columns" in quotes[MEAN_OF_HMS].source
    quotes = reported.quotes("table2", 0.05, "MaPLe", ["imagenet", "dtd", "eurosat"])
    assert quotes[AVERAGE].value == pytest.approx((45.84 + 47.83) / 2)
    quotes = reported.quotes("table1", 0.05, "MaPLe", ["dtd", "mini_land"])
    assert [*quotes] == ["dtd"]  # and no average


def test_at_tau_1_transfers_quote_the_published_figures(reported):
    columns = reported.columns("table4")
    quotes = reported.quotes("table4", 1.0, "MaPLe", columns)
    assert {x.label for x in quotes.values()} == {"published"}
    assert quotes["imagenet"].value == 70.72
    assert quotes[AVERAGE].value == pytest.approx((64.07 + 49.15 + 50.9 + 76.98) / 4)
    assert reported.quotes("table4", 1.0, "MaPLe+NPT", columns) == {}


def test_nothing_is_quoted_for_another_source(reported):
    assert reported.quotes("table2", 0.05, "MaPLe", ["eurosat", "dtd", "ucf101"]) == {}


def test_a_disagreement_is_a_note_of_its_cell_only(reported):
    quotes = reported.quotes("table4", 0.05, "CoCoOp", reported.columns("table4"))
    noted = [column for column, quote in quotes.items() if quote.notes]
    assert noted == ["imagenet", AVERAGE]
    assert quotes[AVERAGE].value == 60.37  # as printed


@pytest.mark.parametrize(
    ("ratio", "method", "value"),
    [
        (0.25, "MaPLe", 71.38),
        (0.25, "MaPLe+NPT", 72.98),
        (0.0625, "MaPLe", 69.12),
        (0.06, "MaPLe+NPT", 71.76),
    ],
)
def test_the_secondary_source_is_named_as_one(reported, ratio, method, value):
    columns = reported.columns("table1")
    quotes = reported.quotes("table1", ratio, method, columns)
    assert [*quotes] == [MEAN_OF_HMS]
    quote = quotes[MEAN_OF_HMS]
    assert quote.value == value and quote.label == "secondary source"
    assert "secondary source" in quote.source and "secondary source" in quote.notes[0]
    assert reported.quotes("table1", ratio, method, columns[:5]) == {}
    assert reported.quotes("table1", 0.05, method, columns)[MEAN_OF_HMS].label == "paper"
