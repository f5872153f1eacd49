"""`npt train`, `test`, `predict` and `compare`, from a folder of images to a classifier."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from own_images import CLASSES, make_images
from PIL import Image

from npt.__main__ import main
from npt.commands.train import METHODS, schedule

ROOT = Path(__file__).parents[2]
TINY = ["--backbone", "tiny"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "my_images")


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Runs of `npt train`, made in their folder: MaPLe+NPT by default, and CoOp."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", str(images), *TINY, "OPTIM.MAX_EPOCH", "5"]) == 0
        words = ["--method", "coop", "--name", "second", *TINY, "OPTIM.MAX_EPOCH", "3"]
        assert main(["train", str(images), *words]) == 0
    return folder / "output"


@pytest.fixture(scope="module")
def run(runs):
    return runs / "my_images-maple-npt"


@pytest.fixture
def npt(capsys):
    """Run a command; returns exit code, output and what it says on stderr."""

    def call(*words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # of argparse
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def config(run):
    return json.loads((run / "result.json").read_text())["config"]


# --------------------------------------------------------------------------- train
def test_settings_suit_the_data(npt, images, runs, run, tmp_path, monkeypatch):
    """Few images: more epochs than published; unequal classes: a remedy; no GPU: float32."""
    monkeypatch.chdir(tmp_path)
    code, out, err = npt("train", images, *TINY, "--no-train")
    assert code == 0, err
    said = dict(re.findall(r"^  ([A-Z_.]+) (.+)$", out, re.MULTILINE))
    assert int(said["OPTIM.MAX_EPOCH"]) > 5
    found = config(run)
    assert found["OPTIM"]["MAX_EPOCH"] == 5  # what is asked for comes before what suits
    assert found["TRAINER"]["NPT"]["LOGIT_ADJUST"] == 1
    assert found["TRAINER"]["MAPLE"]["PREC"] == "fp32"
    assert found["DATALOADER"]["TRAIN_X"]["DROP_LAST"] is False
    second = config(runs / "second")
    assert second["TRAINER"]["NAME"] == "CoOp"
    assert second["DATALOADER"]["TRAIN_X"]["SAMPLER"] == "ClassBalancedSampler"


@pytest.mark.parametrize("images", [1, 3, 10, 80, 800, 8000, 100_000, 1_300_000])
@pytest.mark.parametrize("batch, epochs", [(1, 10), (4, 5), (32, 50)])
def test_the_schedule_has_enough_steps_and_not_too_many(images, batch, epochs):
    new_batch, new_epochs = schedule(images, batch, epochs)
    steps = new_epochs * -(-images // new_batch)
    assert new_epochs >= 2 and 1 <= new_batch <= max(32, batch)
    assert steps >= 100
    assert steps <= 6000 + images / new_batch or new_epochs == 2
    if 100 <= epochs * images / batch <= 6000:  # as published
        assert (new_batch, new_epochs) == (min(batch, images), epochs)


def test_the_command_line_of_train_py_is_shown(npt, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", images, "--method", "cocoop-npt", *TINY, "--no-train", "--seed", "3"]
    code, out, err = npt(*words, "TRAINER.NPT.W1", "0.5")
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("python train.py"))
    for part in ("--trainer CoCoOpNPT", "--seed 3", "TRAINER.NPT.W1 0.5", "--no-train"):
        assert part in line


def test_every_method_builds_and_so_does_a_config_file(npt, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for method in METHODS:
        code, _, err = npt("train", images, "--method", method, *TINY, "--no-train")
        assert code == 0, (method, err)
    file = "configs/trainers/MaPLe/tiny.yaml"
    words = ["--config-file", file, "--output-dir", "x", "--no-train", images]  # in any order
    code, out, err = npt("train", *words, "TRAINER.MAPLE.N_CTX", "3")
    assert code == 0 and "TRAINER.NPT.LOGIT_ADJUST 1" not in out, err
    assert "N_CTX: 3" in out and "LR: 0.0035" in out


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "ROOT"),
        (["nowhere", *TINY], "ROOT nowhere is not a folder"),
        (["IMAGES", "--method", "magic"], "magic"),
        (["IMAGES", *TINY, "--name", "a/b"], "--name"),
        (["IMAGES", *TINY, "OPTIM.EPOCHS", "3"], "OPTIM.EPOCHS"),
        (["IMAGES", *TINY, "OPTIM.MAX_EPOCH"], "OPTIM.MAX_EPOCH"),
        (["IMAGES", "--eval-only"], "--eval-only"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_sentence(
    npt, images, words, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = npt("train", *[images if word == "IMAGES" else word for word in words])
    assert code == 2 and said in err.splitlines()[-1] and "Traceback" not in err


def test_a_list_of_transforms_ends_before_what_suits_the_data(images):
    from npt.commands.train import build_parser, command
    from npt.flags import parse_args

    words = [str(images), *TINY, "--transforms", "random_flip", "normalize"]
    args = parse_args(command(build_parser().parse_intermixed_args(words)))
    assert args.transforms == ["random_flip", "normalize"]
    assert "OPTIM.MAX_EPOCH" in args.opts


@pytest.mark.parametrize("name", ["..", "a/b", "."])
def test_a_name_of_a_run_is_no_path(npt, images, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, _, err = npt("train", images, *TINY, "--name", name)
    assert code == 2 and "--name" in err and not list(tmp_path.iterdir())


def test_a_run_has_the_name_of_its_folder_however_it_is_named(images, monkeypatch):
    from npt.commands.train import build_parser, command

    monkeypatch.chdir(images)
    monkeypatch.setenv("HOME", str(images))
    for root in (".", "~", f"{images}/../{images.name}/"):
        words = command(build_parser().parse_intermixed_args([root, *TINY]))
        assert words[words.index("--output-dir") + 1] == f"output/{images.name}-maple-npt"


# --------------------------------------------------------------------------- test
def test_a_test_on_other_images_uses_them_all(npt, run, images, tmp_path):
    """Also of classes that the training did not have."""
    other = tmp_path / "other"
    for name in ("orange", "violet"):
        shutil.copytree(images / name, other / name)
    shutil.copytree(images / "blue_sky", other / "lake")
    code, out, err = npt("test", run, "--root", other, "--output-dir", tmp_path / "out")
    assert code == 0, err
    total = sum(CLASSES[name][1] for name in ("orange", "violet", "blue sky"))
    assert f"* total: {total}" in out
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["classnames"] == ["lake", "orange", "violet"]
    assert npt("compare", run, tmp_path / "out")[0] == 0


def test_a_test_again_gives_the_same_figures(npt, run, tmp_path):
    code, _, err = npt("test", run, "--output-dir", tmp_path / "again")
    assert code == 0, err
    found = [json.loads((x / "result.json").read_text()) for x in (run, tmp_path / "again")]
    figures = [{**record["results"]["test"], "seconds": None} for record in found]
    assert figures[0] == figures[1]


# --------------------------------------------------------------------------- predict
@pytest.fixture
def photos(images, tmp_path):
    """A folder with pictures, one deeper, and things that are none."""
    folder = tmp_path / "photos"
    shutil.copytree(images / "orange", folder / "more")
    shutil.copy(images / "violet" / "00.jpg", folder / 'a, "b" [1].jpg')
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_text("no picture")
    return folder


def test_folders_patterns_and_lists(npt, run, photos, monkeypatch):
    files = sorted(
        str(path) for path in photos.rglob("*.*") if path.suffix in (".jpg", ".png", ".webp")
    )
    files = [file for file in files if ".hidden" not in file]
    ways = [
        [photos],
        [photos / "more", photos / 'a, "b" [1].jpg'],
        [f"{photos}/more/*", f"{photos}/a*"],
        [f"{photos}/**/*.[jpw]*"],
    ]
    for words in ways:
        code, out, err = npt("predict", run, *words, "--format", "csv")
        assert code == 0, err
        assert sorted(row["image"] for row in csv.DictReader(io.StringIO(out))) == files, words
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(files) + "\n\n"))
    code, out, _ = npt("predict", run, "-", "--format", "jsonl")
    assert [json.loads(line)["image"] for line in out.splitlines()] == files


def test_links_are_followed_once_and_left_overs_passed_over(npt, run, photos, tmp_path):
    (photos / "__MACOSX").mkdir()
    (photos / "__MACOSX" / "x.jpg").write_text("no picture")
    (photos / "again").symlink_to(photos / "more")
    (photos / "more" / "up").symlink_to(photos)
    shutil.copytree(photos / "more", tmp_path / "away", ignore=lambda *_: ["up"])
    (photos / "linked").symlink_to(tmp_path / "away")
    expected = [photos / 'a, "b" [1].jpg', *photos.glob("more/*.*"), *photos.glob("linked/*.*")]
    code, out, err = npt("predict", run, photos, "--format", "csv")
    assert code == 0, err
    found = [row["image"] for row in csv.DictReader(io.StringIO(out))]
    assert sorted(found) == sorted(map(str, expected))


@pytest.mark.parametrize(
    "encode",
    [
        lambda names: "\r\n\r\n".join(names).encode("utf-8-sig"),
        lambda names: "\n".join(names).encode("utf-16"),
        lambda names: b"".join(name.encode() + b"\0" for name in names),
    ],
    ids=["Windows", "PowerShell", "find -print0"],
)
def test_lists_of_names_as_systems_write_them(encode):
    from npt.commands.predict import listed

    names = ["a b.jpg", "Gänse.jpg", " c.jpg"]
    assert listed(encode(names).decode("utf-8", "surrogateescape")) == names


def test_names_of_any_bytes_in_a_list():
    from npt.commands.predict import listed

    assert listed("caf\udce9.jpg\n") == ["caf\udce9.jpg"]


def test_the_three_formats_say_the_same(npt, run, photos):
    from npt.classifier import load

    expected = load(run).predict(sorted(photos.glob("more/*")), k=2)
    words = ["predict", run, photos / "more", "--top", "2"]
    rows = list(csv.DictReader(io.StringIO(npt(*words, "--format", "csv")[1])))
    assert list(rows[0]) == ["image", "class", "probability", "class_2", "probability_2"]
    entries = [json.loads(line) for line in npt(*words, "--format", "jsonl")[1].splitlines()]
    table = npt(*words)[1].splitlines()[2:]
    for row, entry, line, one in zip(rows, entries, table, expected, strict=True):
        assert [row["class"], row["class_2"]] == entry["classes"] == one.classes
        assert entry["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)
        assert float(row["probability"]) == pytest.approx(one.probabilities[0], rel=1e-4)
        assert f"{one.classes[0]} {100 * one.probabilities[0]:.1f}%" in line


def test_a_file_that_cannot_be_read_stops_no_other(npt, run, photos):
    damaged = photos / "damaged.jpg"
    damaged.write_bytes((photos / "more" / "00.jpg").read_bytes()[:300])
    gone = photos / "gone.jpg"
    code, out, err = npt("predict", run, gone, photos, photos / "notes.txt", "--format", "jsonl")
    assert code == 1
    assert len(out.splitlines()) == len(list(photos.glob("more/*"))) + 1
    for name in ("gone.jpg", "damaged.jpg", "notes.txt"):
        assert sum(name in line for line in err.splitlines()) == 1
    assert "3 of" in err.splitlines()[-1] and "Traceback" not in err


def test_the_threshold_marks_what_fits_no_class(npt, run, photos):
    words = ["predict", run, photos, "--top", "1"]
    sure = [
        json.loads(line)["probabilities"][0]
        for line in npt(*words, "--format", "jsonl")[1].splitlines()
    ]
    for threshold in (0, sorted(sure)[len(sure) // 2], 1):
        fits = [p >= threshold for p in sure]
        limited = [*words, "--threshold", threshold]
        entries = npt(*limited, "--format", "jsonl")[1].splitlines()
        assert [json.loads(line)["fits"] for line in entries] == fits
        rows = csv.DictReader(io.StringIO(npt(*limited, "--format", "csv")[1]))
        assert [row["fits"] == "yes" for row in rows] == fits
        lines = npt(*limited)[1].splitlines()[2:]
        assert ["(none)" not in line for line in lines] == fits


def test_new_class_names(npt, run, photos, tmp_path):
    names = ["a sunset", 'ocean, "deep"', "Gänseblümchen"]
    file = tmp_path / "classes.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(names).encode())  # as Windows saves it
    code, out, err = npt("predict", run, photos, "--classes", file, "--format", "csv", "--top", 9)
    assert code == 0, err
    for row in csv.DictReader(io.StringIO(out)):
        assert sorted(row[key] for key in ("class", "class_2", "class_3")) == sorted(names)


@pytest.mark.parametrize(
    "words, said",
    [
        (["RUN"], "IMAGES"),
        (["nowhere", "PHOTOS"], "nowhere"),
        (["RUN", "PHOTOS/none*.jpg"], "none*.jpg"),
        (["RUN", "EMPTY"], "no image"),
        (["RUN", "PHOTOS", "--top", "0"], "--top"),
        (["RUN", "PHOTOS", "--threshold", "50"], "--threshold"),
        (["RUN", "PHOTOS", "--classes", "EMPTY/gone.txt"], "gone.txt"),
        (["RUN", "PHOTOS", "--backbone", "no/clip.pt"], "no/clip.pt"),
        (["RUN", "PHOTOS", "--format", "xml"], "xml"),
    ],
)
def test_bad_input_of_predict_is_a_sentence(npt, run, photos, tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    places = {"RUN": run, "PHOTOS": photos, "EMPTY": tmp_path / "empty"}
    argv = [re.sub("RUN|PHOTOS|EMPTY", lambda m: str(places[m[0]]), word) for word in words]
    code, _, err = npt("predict", *argv)
    assert code == 2 and said in err.splitlines()[-1] and "Traceback" not in err


def test_large_folders_are_read_in_batches(npt, run, tmp_path):
    """More images than two batches, of which some cannot be read."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(230):
        if number % 50 == 7:
            (folder / f"{number:03d}.png").write_bytes(b"")
        else:
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03d}.png")
    code, out, err = npt("predict", run, folder, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and len(rows) == 225 and "5 of 230" in err
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)


# --------------------------------------------------------------------------- compare
def test_compare_shows_figures_settings_and_classes(npt, runs, run):
    code, out, err = npt("compare", run, runs / "second")
    assert code == 0, err
    for record in (run, runs / "second"):
        test = json.loads((record / "result.json").read_text())["results"]["test"]
        assert f"{test['accuracy']:.2f} ±" in out
    setting = next(line for line in out.splitlines() if line.startswith("OPTIM.MAX_EPOCH"))
    assert setting.split()[-1] == "3"
    for name in CLASSES:
        assert name in out
    assert "may not be of the same test images" not in out


def test_compare_names_a_run_without_a_test(npt, runs, run, tmp_path):
    from npt import files

    code, _, err = npt("compare", run, tmp_path)
    assert code == 2 and str(tmp_path) in err
    copy = shutil.copytree(run, tmp_path / "copy")
    record = json.loads((copy / "result.json").read_text())
    files.write_record(copy / "result.json", {**record, "results": {}})
    code, _, err = npt("compare", run, copy)
    assert code == 2 and "npt test" in err


# --------------------------------------------------------------------------- all verbs
def test_every_verb_has_help_with_an_example(npt):
    from npt.__main__ import VERBS

    for verb in VERBS:
        code, out, _ = npt(verb, "--help")
        assert code == 0 and f"npt {verb} " in out.replace("python -m npt.", "npt "), verb


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_verb(npt, shell):
    from npt.__main__ import VERBS

    pytest.importorskip("shtab")
    code, out, err = npt("completion", shell)
    assert code == 0, err
    for word in (*VERBS, "--threshold", "cocoop-npt"):
        assert word in out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize(
    "ending, code, said",
    [
        ("| true", 141, ""),
        ("> /dev/full", 2, "error: No space left on device"),
        (">&-", 0, ""),
        ("<&-", 0, ""),
    ],
)
def test_standard_streams_that_do_not_work(ending, code, said):
    line = (
        f"{shlex.join([sys.executable, '-m', 'npt', '--help'])} {ending}; exit ${{PIPESTATUS[0]}}"
    )
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, env=plain)
    assert done.returncode == code
    assert done.stderr.startswith(said) and len(done.stderr.splitlines()) == bool(said)


def test_an_interrupted_prediction_leaves_no_thread(run, images):
    """Threads that still decode while Python ends abort it."""
    from npt.classifier import load
    from npt.classifier.decoding import decoded

    before = set(threading.enumerate())
    batches = decoded([str(next(images.glob("*/*")))] * 500, load(run))
    next(batches)
    batches.close()
    assert set(threading.enumerate()) <= before


def test_compare_keeps_two_classes_of_one_name(npt, run, tmp_path):
    """As two folders may have one name: each has a row of its own."""
    from npt import files

    copy = shutil.copytree(run, tmp_path / "copy")
    record = json.loads((copy / "result.json").read_text())
    for entry in record["per_class"]["test"][:2]:
        entry["class"] = "twin"
    files.write_record(copy / "result.json", record)
    code, out, err = npt("compare", copy)
    assert code == 0, err
    assert sum(line.startswith("twin ") for line in out.splitlines()) == 2
