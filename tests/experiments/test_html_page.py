"""The page of a report, in a browser: `report --html`."""

import csv
import json
import re
import shutil

import fake_runs
import pytest
import test_collect

from npt.experiments.__main__ import main
from npt.experiments.plan import Part
from npt.experiments.report.html import _number

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
CLASSES = ["<b>bold</b>", "\"quoted\" & 'so'", "</script><script>alert(1)</script>", "猫 $x$ \\"]
CLASSES += ["عربي", "a " * 60]
METHODS = {  # trainer -> its label
    "ZeroshotCLIP": "CLIP",
    "A<i>": "A<i>",
    "A<i>NPT": "A<i>+NPT",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of runs with hostile names, of which one is missing."""
    out = tmp_path_factory.mktemp("out")
    trainers = {x: {"config": "c", "train": x != "ZeroshotCLIP"} for x in METHODS}
    part = Part(trainers, ("one", "two"), seeds=(1, 2), ratios=(1.0, 0.1))
    for number, run in enumerate(part.runs(out)):
        if run.dataset == "two" and run.method == "A<i>" and run.ratio == 0.1:
            continue
        fake_runs.write(run, 40 + 1.25 * number)
        (run.folder / "run.json").write_text(json.dumps(run.record()))
        for path in run.folder.rglob("result.json"):
            record = json.loads(path.read_text())
            record["config"] = {
                "TRAINER": {"NAME": run.method},
                "DATASET": {
                    "NAME": run.dataset,
                    "SUBSAMPLE_CLASSES": path.parent.name,
                    "IMBALANCE_RATIO": run.ratio,
                },
                "SEED": run.seed,
            }
            if record["task"] == "evaluation":
                record["model"] = {"folder": str(run.folder / "base")}
            elif not run.train:
                record["task"] = "evaluation"
            record["per_class"] = {
                "test": [
                    {"class": name, "train_count": 2**k if k else run.seed, "images": 9}
                    | {"accuracy": 10.0 * k + number}
                    for k, name in enumerate(CLASSES)
                ]
            }
            epochs = [{"epoch": k, "loss": 1.0, "lcd": 1 / k, "nc1": None} for k in (1, 2, 3)]
            record["course"] = epochs if run.train else []
            record["environment"] = {"node": "node<7>", "gpu": None, "commit": "abc123"}
            record["versions"] = {"npt": "0"}
            path.write_text(json.dumps(record))
    assert main(["report", str(out), "--html"]) == 0
    return out


def test_the_same_runs_give_the_same_page(folder):
    page = folder / "report" / "index.html"
    before = page.read_bytes()
    assert main(["report", str(folder), "--html"]) == 0
    assert page.read_bytes() == before


def test_the_page_needs_nothing_else(folder):
    text = (folder / "report" / "index.html").read_text(encoding="utf-8")
    outside = re.findall(r'(?:src|href)="(?!#|data:)([^"]+)"|url\((?!#)([^)]+)\)', text)
    assert outside == [] and "@import" not in text
    assert "alert(1)</script>" not in text and "<b>bold" not in text


def test_without_runs_there_is_a_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--html"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "report").exists()


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("there is no chromium, in which the page is opened")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide", "phone"])
def page(request, browser, folder):
    """The opened page; nothing may go wrong in it, and nothing may be fetched."""
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, fetched = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: fetched.append(request.url))
    opened.goto((folder / "report" / "index.html").as_uri())
    yield opened
    opened.evaluate("document.querySelectorAll('details').forEach(x => { x.open = true })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()
    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []


def column(page, table, heading):
    """The cells of a column by the names of the rows, from top to bottom."""
    names = page.locator(table).locator("thead th").all_text_contents()
    place = names.index(heading) if heading else 0
    rows = page.locator(table).locator("tbody tr").all()
    return {row.locator("th").text_content(): row.locator("th, td").nth(place) for row in rows}


def test_numbers_are_those_of_the_csv_file(page, folder):
    with next((folder / "report").glob("table1.csv")).open(encoding="utf-8") as file:
        cells = [x for x in csv.DictReader(file) if float(x["ratio"]) == 1]
    wanted = {x["method"]: float(x["mean"]) for x in cells if x["column"] == "one"}
    shown = column(page, "figure.table table >> nth=0", "one")
    assert {name: float(x.get_attribute("data-value")) for name, x in shown.items()} == wanted
    assert set(wanted) == set(METHODS.values())
    assert all(f"{wanted[name]:.2f}" in x.text_content() for name, x in shown.items())


def test_a_table_is_sorted(page):
    for ratio, missing in ((0, 0), (1, 1)):
        table = f"figure.table table >> nth={ratio}"
        heading = page.locator(table).locator("thead th", has_text="two").first
        for order in ("descending", "ascending"):
            heading.locator("button").click()
            assert heading.get_attribute("aria-sort") == order
            values = [x.get_attribute("data-value") for x in column(page, table, "two").values()]
            there = [float(x) for x in values if x is not None]
            assert there == sorted(there, reverse=order == "descending")
            assert values[len(there) :] == [None] * missing
    first = page.locator(table).locator("thead th").first
    first.locator("button").press("Enter")  # with the keyboard
    assert list(column(page, table, "")) == sorted(METHODS.values())


def test_classes_are_shown_when_they_are_asked_for(page):
    details = page.locator("details.classes").first
    assert details.locator("table").count() == 0
    details.locator("summary").click()
    details.locator("select").select_option(label="one, base classes, τ = 0.1")
    found = column(page, "details.classes table", "A<i>+NPT")
    assert list(found) == CLASSES
    counts = column(page, "details.classes table", "training images")
    # The seeds do not agree on the first one.
    assert [x.text_content() for x in counts.values()] == ["–", "2", "4", "8", "16", "32"]  # noqa: RUF001
    assert all(re.fullmatch(r"\d+\.\d", x.text_content()) for x in found.values())


def test_the_scheme_can_be_chosen(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.locator("#scheme").click()
    assert page.evaluate(colour) != before
    page.locator("#scheme").click()
    assert page.evaluate(colour) == before


def test_runs_say_where_they_were_made(page):
    page.locator("#runs summary").first.click()
    row = page.locator("#runs tbody tr").first.text_content()
    assert "node<7>" in row and "abc123" in row and "train.py" in row


def test_methods_without_all_records_are_left_out_by_name(page):
    """Else their means would be of other data sets than those beside them."""
    drawn = page.locator("details", has_text="Over training").first.locator("figure.plot")
    assert drawn.locator("svg").count() == 2
    for number in range(2):
        words = drawn.nth(number).locator("figcaption").text_content()
        assert "left out, not on record for every run: A<i> τ = 0.1" in words
        lines = drawn.nth(number).locator("svg").text_content()
        assert "A<i>+NPT" in lines


def test_gains_are_of_complete_figures(page):
    table = "table.gains >> nth=1"  # at the ratio with missing runs
    found = {x: column(page, table, x)["A<i>+NPT − A<i>"] for x in ("one", "two")}  # noqa: RUF001
    assert "missing" in (found["two"].get_attribute("class") or "")
    assert float(found["one"].get_attribute("data-value")) == pytest.approx(
        float(found["one"].text_content()), abs=0.005
    )


@pytest.mark.parametrize(
    "text, number",
    [("<0.001", 0.001), ("0.034", 0.034), ("-1.20", -1.2), ("−1.2 ± 3", -1.2), ("–", None)],  # noqa: RUF001
)
def test_texts_are_sorted_by_the_number_they_begin_with(text, number):
    assert _number(text) == number


def test_records_that_say_nothing_of_a_course(folder, tmp_path):
    """As those of an earlier version."""
    shutil.copytree(folder, tmp_path / "old")
    for path in (tmp_path / "old").rglob("result.json"):
        record = json.loads(path.read_text())
        del record["course"], record["environment"], record["per_class"]
        path.write_text(json.dumps(record))
    assert main(["report", str(tmp_path / "old"), "--html"]) == 0
    text = (tmp_path / "old/report/index.html").read_text(encoding="utf-8")
    assert "Not drawn: LCD, MID and NC over training: left out" in text


def test_logs_of_another_repository(tmp_path):
    test_collect.put(tmp_path / "train_base/eurosat/seed3", accuracy=92.5)
    model = {"eval_only": True, "model_dir": "train_base/eurosat/seed3"}
    test_collect.put(tmp_path / "test_new/eurosat/seed3", accuracy=70.25, classes="new", **model)
    assert main(["report", str(tmp_path), "--html"]) == 0
    text = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "EuroSAT, MaPLe, τ = 1, seed 3" in text
    assert f"{2 / (1 / 92.5 + 1 / 70.25):.2f}" in text
