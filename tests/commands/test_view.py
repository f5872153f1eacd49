"""`npt view`: the page of a run, in a browser."""

import json
import re
import shutil
from pathlib import Path

import pytest
from own_images import OWN, make_images, train
from PIL import Image

import npt
from npt.__main__ import main
from npt.errors import NPTError
from npt.pages.extra import report_extra
from npt.results import confusion_matrix
from npt.view import confusions, names, page, settings
from npt.view.gather import View, gather

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = {  # class folder -> class name
    "blue_sky": "<b>sky</b></script><script>alert(1)</script>",
    "green_leaf": "\"quoted\" & 'so' $x$ {{ 7 * 7 }}",
    "grey_stone": "猫 🐈 \\ %s",
    "orange": "كلمة عربية",
    "red_apple": "red round fruit " * 12 + "of 200",
    "violet": "violet-<img src=x onerror=alert(2)>",
}


def made(run: Path, *words: object) -> str:
    """The page of a run, which must succeed."""
    out = run / "view.html"
    assert main(["view", str(run), "--output", str(out), *map(str, words)]) == 0
    return out.read_text(encoding="utf-8")


def record_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def changed(run: Path, copy: Path, **entries: object) -> Path:
    """A copy of a run whose record has other entries."""
    shutil.copytree(run, copy)
    record = {**record_of(run), **entries}
    del record["sha256"]
    (copy / "result.json").write_text(json.dumps(record))
    return copy


def summary(text: str) -> str:
    """What the page says that it does not show."""
    found = re.search(r'<section class="said".*?</section>', text, re.S)
    return re.sub(r"\s+", " ", found[0]) if found else ""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = make_images(tmp_path_factory.mktemp("data") / "images")
    (folder / "classnames.json").write_text(json.dumps(HOSTILE), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    return train(tmp_path_factory.mktemp("out") / "a&b", "MaPLeNPT", "MaPLe", *OWN, images)


@pytest.fixture(scope="module")
def text(run):
    return made(run)


# --------------------------------------------------------------------------- the file
def test_the_page_needs_nothing_else(text):
    outside = re.findall(r'(?:src|href)="(?!#|data:)([^"]+)"|url\((?!#)([^)]+)\)', text)
    assert outside == [] and "@import" not in text
    assert "alert(1)</script>" not in text and "<b>sky" not in text and "<img src=x" not in text
    assert text.count("<script") == 1 and "{{ 7 * 7 }}" in text
    assert "Not shown" not in text
    assert len(text) < 3_000_000


def test_numbers_are_those_of_the_record(text, run):
    record = record_of(run)
    assert f"{record['results']['test']['accuracy']:.2f} %" in text
    assert f"{record['results']['test']['lcd_abs']:.4f}" in text
    for entry in record["per_class"]["test"]:
        assert f'data-value="{entry["accuracy"]}"' in text
    for name in ("LCD", "MID", "NC1", "L_LC", "Reliability at temperature 1", "t-SNE"):
        assert name in text
    assert "ETF: −0.200" in text.replace("ETF: -", "ETF: −")  # noqa: RUF001


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(text, run):
    assert made(run) == text


def test_pictures_are_the_mistakes_and_the_least_certain_hits(run, images):
    """As `predict` says them."""
    tested = gather(run).tested
    said = npt.load(run).predict(tested.files, 1)
    probabilities = [x.probabilities[0] for x in said]
    assert tested.probabilities[:, 0].tolist() == pytest.approx(probabilities, abs=1e-6)
    right = [
        HOSTILE[Path(f).parent.name] == x.best for f, x in zip(tested.files, said, strict=True)
    ]
    assert tested.hits.tolist() == right
    wrong = [i for i, hit in enumerate(right) if not hit]
    assert sorted(tested.mistakes(99)) == wrong
    order = [probabilities[i] for i in tested.mistakes(99)]
    assert order == sorted(order, reverse=True)
    order = [probabilities[i] for i in tested.uncertain(3)]
    assert order == sorted(p for p, hit in zip(probabilities, right, strict=True) if hit)[:3]


def test_the_command_is_that_of_the_run(run):
    words = settings.command(run)
    assert words.startswith("python train.py ") and "--trainer MaPLeNPT" in words
    assert words.endswith("OPTIM.MAX_EPOCH 2") and "--eval-only" not in words
    assert settings.command(run / "nowhere") == ""


# --------------------------------------------------------------------------- in a browser
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
def opened(request, browser, text, run):
    """The opened page; nothing may go wrong in it, and nothing may be fetched."""
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, fetched = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(dialog.message))
    opened.on("request", lambda request: fetched.append(request.url))
    opened.goto((run / "view.html").as_uri())
    yield opened
    opened.evaluate("document.querySelectorAll('details').forEach(x => { x.open = true })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()
    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []


def test_classes_are_shown_by_their_names_and_sorted(opened, run):
    table = opened.locator("#every-class")
    accuracy = {x["class"]: x["accuracy"] for x in record_of(run)["per_class"]["test"]}
    heading = table.locator("thead th", has_text="accuracy")
    for order in ("descending", "ascending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == order
        rows = table.locator("tbody tr").all()
        found = {row.locator("th").text_content(): row.locator("td").nth(2) for row in rows}
        values = {name: float(x.get_attribute("data-value")) for name, x in found.items()}
        assert values == accuracy
        assert list(values.values()) == sorted(values.values(), reverse=order == "descending")


def test_confusions_are_those_of_the_record(opened, run):
    matrix = confusion_matrix(record_of(run))
    cells = opened.locator(".matrix svg g").all()
    assert len(cells) == (matrix > 0).sum()
    assert sum(int(x.locator("text").text_content()) for x in cells) == matrix.sum()
    wrong = int(matrix.sum() - matrix.trace())
    pairs = opened.locator("#confused tbody tr").all()
    assert sum(int(row.locator("td").nth(1).text_content()) for row in pairs) == wrong


def test_pictures_are_loaded_and_described(opened):
    pictures = opened.locator(".pictures img")
    assert pictures.count() > 0
    loaded = "all => all.every(x => x.complete && x.naturalWidth > 0 && x.alt)"
    assert pictures.evaluate_all(loaded)
    assert re.search(r"taken for .+ with \d+\.\d", pictures.first.get_attribute("alt"))


def test_drawings_fit_and_have_words(opened):
    """On a phone as well: else their letters would be too small, or cut off."""
    found = opened.locator("[role=img]").evaluate_all(
        "all => all.map(x => [x.getAttribute('aria-label') || x.getAttribute('aria-labelledby')])"
    )
    assert len(found) >= 10 and all(words for (words,) in found)
    smallest = opened.locator(".plot svg text").evaluate_all(
        "all => Math.min(...all.map(x => x.getBoundingClientRect().height))"
    )
    assert smallest > 6
    assert opened.locator("th:not([scope])").count() == 0


def test_the_scheme_can_be_chosen(opened):
    colour = "getComputedStyle(document.body).backgroundColor"
    before = opened.evaluate(colour)
    opened.locator("#scheme").click()
    assert opened.evaluate(colour) != before


# --------------------------------------------------------------------------- parts that are missing
def test_without_the_images_the_page_is_made_of_the_record(run, text, tmp_path):
    config = record_of(run)["config"]
    config["DATASET"]["ROOT"] = str(tmp_path / "gone")
    copy = changed(run, tmp_path / "copy", config=config)
    found = made(copy)
    assert "Not shown: Images, features and reliability: " in summary(found)
    assert "gone is missing" in summary(found) and "<img" not in found
    assert "Cosines between the texts" in found and "Confusion matrix" in found
    assert "elsewhere is missing" in gather(copy, str(tmp_path / "elsewhere")).missing[0]


def test_another_place_of_the_images(run, images, tmp_path):
    config = record_of(run)["config"]
    config["DATASET"]["ROOT"] = str(tmp_path / "gone")
    copy = changed(run, tmp_path / "copy", config=config)
    found = made(copy, "--root", images)
    assert summary(found) == "" and "<img" in found


@pytest.mark.parametrize(
    "entries, said",
    [
        ({"trainer": "PromptSRC"}, "made by the trainer PromptSRC"),
        ({"config": {"TRAINER": {"NAME": "X", "THEIRS": {"A": 1}}}}, "does not fit npt"),
        ({"classnames": ["a", "b"]}, "Not shown"),
    ],
)
def test_runs_of_another_repository_or_version(run, tmp_path, entries, said):
    found = made(changed(run, tmp_path / "copy", **entries))
    assert said in summary(found) and "<img" not in found
    assert "Confusion matrix" in found


def test_a_training_that_has_not_ended(run, tmp_path):
    copy = changed(run, tmp_path / "copy", finished=False, results={}, per_class={}, confusion={})
    shutil.rmtree(copy / "MultiModalPromptLearner")
    found = made(copy)
    assert "The training has not ended" in summary(found) and "has no model" in summary(found)
    assert "This run has no test on record" in found and "LCD (" in found


def test_without_a_test_on_record_the_model_is_tested(run, tmp_path):
    record = record_of(run)
    copy = changed(run, tmp_path / "copy", results={}, per_class={}, confusion={})
    found = made(copy)
    assert f"{record['results']['test']['accuracy']:.2f} %" in found
    assert "Confusion matrix" in found and summary(found) == ""


def test_damaged_and_other_images_are_named(run, images, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    first = Path(gather(run).tested.files[0])
    (moved / first.relative_to(images)).write_bytes(b"no picture")
    notes = gather(run, str(moved)).notes
    assert any("1 of the test images cannot be read" in note for note in notes), notes
    for path in moved.rglob("*.*"):
        if path.suffix != ".json":
            Image.effect_noise((40, 40), 90).convert("RGB").save(path)
    notes = gather(run, str(moved)).notes
    assert any("its record says" in note for note in notes), notes
    (moved / "classnames.json").unlink()
    assert "other classes now" in gather(run, str(moved)).missing[0]


def test_wrong_folders_are_refused_in_a_sentence(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["view", str(folder)]) == 2
        assert "name the folder of a run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- other methods
@pytest.mark.slow
def test_zero_shot_clip(images, tmp_path):
    run = train(tmp_path / "zero", "ZeroshotCLIP", "ZeroshotCLIP", *OWN, images)
    found = made(run)
    assert "This run has no training on record" in found and "learned prompts" not in found
    assert summary(found) == "" and "hand-written prompts: mean" in found


@pytest.mark.slow
def test_cocoop(images, tmp_path):
    run = train(tmp_path / "cocoop", "CoCoOp", "CoCoOp", *OWN, images)
    found = made(run)
    assert "learned prompts (mean over the images)" in found and summary(found) == ""


def test_many_classes(tmp_path):
    """A thousand, of which some have no test images; the page is made of the record alone."""
    classes = [f"class {k}" for k in range(1000)]
    per_class = [
        {"class": name, "train_count": 1 + k % 16, "images": 50 * (k % 10 > 0), "lcd": None}
        | {"accuracy": k / 10 if k % 10 else None, "mid": None}
        for k, name in enumerate(classes)
    ]
    confusion = [[k, (7 * k) % 1000, 50] for k in range(1000) if k % 10]
    entries = {"classnames": classes, "per_class": {"test": per_class}}
    record = {"trainer": "X", "dataset": "Y", **entries, "confusion": {"test": confusion}}
    (tmp_path / "result.json").write_text(json.dumps(record))
    out = page.write(View(tmp_path, record), tmp_path / "view.html").read_text(encoding="utf-8")
    assert len(out) < 3_000_000
    assert f"{confusions.MOST} of 1000 classes" in out
    assert out.count("<tr>") > 1000


def test_one_class(tmp_path):
    entry = {"class": "only", "train_count": 3, "images": 2, "accuracy": 100.0}
    record = {"trainer": "X", "dataset": "Y", "classnames": ["only"], "config": {}}
    record |= {"per_class": {"test": [{**entry, "lcd": None, "mid": 0.5}]}}
    record |= {"confusion": {"test": [[0, 0, 2]]}, "results": {"test": {"accuracy": 100.0}}}
    (tmp_path / "result.json").write_text(json.dumps(record))
    out = page.write(View(tmp_path, record), tmp_path / "view.html").read_text(encoding="utf-8")
    assert "there is one class only" in out and "No image was taken for another class" in out


# --------------------------------------------------------------------------- names
def test_shortened_names_stay_apart():
    long = "a very long name of a class"
    assert names.shortened(["cat", f"{long} one", f"{long} two", "cat"], 12) == [
        "cat",
        "a very long…",
        "a very long… (2)",
        "cat (2)",
    ]


def test_files_are_below_the_folder_that_they_share():
    assert names.files(["/a/b/x.jpg", "/a/c/y\udcff.jpg"]) == ["b/x.jpg", "c/y�.jpg"]
    assert names.files([]) == []


def test_a_missing_package_is_named():
    words = r"need scikit-learn: pip install 'npt-clip\[report\]'"
    with pytest.raises(NPTError, match=words), report_extra():
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.manifold")
