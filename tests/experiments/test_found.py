"""The report of runs that no experiment has asked for."""

import json
import math

import pytest
import test_collect

from npt.experiments.__main__ import main
from npt.experiments.found import BASE_TO_NEW, TRANSFER, frames_found

CONFIG = {"TRAINER": {"NAME": "MaPLe"}, "SEED": 1, "DATASET": {}, "OPTIM": {"MAX_EPOCH": 5}}


def put(folder, accuracy, trainer="MaPLe", data="EuroSAT", classes="base", ratio=1.0, **more):
    """The record of a run, with `seed`, `model` (then it is an evaluation) and `epochs`."""
    config = {
        "TRAINER": {"NAME": trainer},
        "SEED": more.get("seed", 1),
        "DATASET": {"NAME": data, "SUBSAMPLE_CLASSES": classes, "IMBALANCE_RATIO": ratio},
        "OPTIM": {"MAX_EPOCH": more.get("epochs", 5)},
    }
    tests = "model" in more or trainer == "ZeroshotCLIP"
    record = {
        "task": "evaluation" if tests else "training",
        "finished": more.get("finished", True),
        "config": config,
        "model": {"folder": str(more["model"])} if "model" in more else None,
        "train_counts": None if tests else [16, 2, 1],
        "results": {"test": {"accuracy": accuracy}},
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def family(tmp_path):
    """The family's tree: base-to-new of two trainers at two ratios, and zero-shot."""
    out = tmp_path / "output"
    for number, (trainer, ratio) in enumerate(
        [("MaPLe", 1.0), ("MaPLe", 0.05), ("MaPLeNPT", 1.0), ("MaPLeNPT", 0.05)]
    ):
        base = put(out / f"base/{number}", 80.0 + number, trainer, ratio=ratio)
        # Scripts of the family do not give the test the ratio of the training.
        put(out / f"new/{number}", 60.0 + number, trainer, classes="new", model=base)
    put(out / "zero/base", 50.0, "ZeroshotCLIP")
    put(out / "zero/new", 55.0, "ZeroshotCLIP", classes="new")
    return out


def values(frame):
    keys = ["method", "ratio", "part"]
    return {tuple(row[k] for k in keys): row["accuracy"] for row in frame.to_dict("records")}


def test_base_to_new(family):
    frames = frames_found(family)
    assert list(frames) == [BASE_TO_NEW]
    assert values(frames[BASE_TO_NEW]) == {
        ("MaPLe", 1.0, "base"): 80, ("MaPLe", 1.0, "new"): 60,
        ("MaPLe", 0.05, "base"): 81, ("MaPLe", 0.05, "new"): 61,
        ("MaPLe+NPT", 1.0, "base"): 82, ("MaPLe+NPT", 1.0, "new"): 62,
        ("MaPLe+NPT", 0.05, "base"): 83, ("MaPLe+NPT", 0.05, "new"): 63,
        ("CLIP", 1.0, "base"): 50, ("CLIP", 1.0, "new"): 55,
        ("CLIP", 0.05, "base"): 50, ("CLIP", 0.05, "new"): 55,
    }  # fmt: skip
    assert set(frames[BASE_TO_NEW]["source"]) == {"eurosat"}


def test_the_report_has_the_papers_figures_beside_it(family):
    assert main(["report", str(family)]) == 0
    text = (family / "report/README.md").read_text()
    assert (
        "paper" in text and "MaPLe+NPT against MaPLe" in text and "60.03" in text
    )  # CLIP, EuroSAT


def test_a_moved_tree(family, tmp_path):
    before = values(frames_found(family)[BASE_TO_NEW])
    moved = family.rename(tmp_path / "elsewhere")
    # The models are named by their old absolute paths.
    (tmp_path / "output").mkdir()
    assert values(frames_found(moved)[BASE_TO_NEW]) == before


def test_what_is_missing_is_expected(family):
    for path in (family / "new/3").iterdir():
        path.unlink()
    put(family / "base/5", 70.0, seed=2)
    frame = frames_found(family)[BASE_TO_NEW]
    assert math.isnan(values(frame[frame["seed"] == 1])["MaPLe+NPT", 0.05, "new"])
    assert len(frame[frame["seed"] == 2]) == 8  # two methods, two ratios, base and new
    assert frame[frame["seed"] == 2]["accuracy"].count() == 1


def test_trainings_that_have_not_ended_do_not_count(family):
    put(family / "base/5", 70.0, seed=2, finished=False)
    assert frames_found(family)[BASE_TO_NEW]["seed"].unique().tolist() == [1]


def test_transfers(tmp_path):
    source = put(tmp_path / "a", 70.0, data="ImageNet", classes="all")
    put(tmp_path / "b", 40.0, data="DescribableTextures", classes="all", model=source)
    put(tmp_path / "c", 45.0, data="MyOwn", classes="all", model=source)
    frame = frames_found(tmp_path)[TRANSFER]
    parts = {row["part"]: (row["source"], row["accuracy"]) for row in frame.to_dict("records")}
    expected = {"source": 70.0, "dtd": 40.0, "MyOwn": 45.0}
    assert parts == {part: ("imagenet", accuracy) for part, accuracy in expected.items()}
    assert main(["report", str(tmp_path)]) == 0


def test_runs_with_other_settings_are_other_methods(tmp_path):
    put(tmp_path / "a", 70.0)
    put(tmp_path / "b", 75.0, epochs=50)
    frame = frames_found(tmp_path)[BASE_TO_NEW]
    assert {row["method"]: row["accuracy"] for row in frame.to_dict("records")} == {
        "MaPLe MAX_EPOCH=5": 70.0,
        "MaPLe MAX_EPOCH=50": 75.0,
    }


def test_other_types_of_imbalance_are_other_methods(tmp_path):
    """Beside records that lack the key, and by themselves; not at tau 1."""
    kinds = [(None, 0.05), ("exp", 0.25), ("step", 0.05), ("step", 1.0), ("balanced_budget", 0.05)]
    for number, (kind, ratio) in enumerate(kinds):
        folder = put(tmp_path / str(number), 60.0 + number, ratio=ratio)
        record = json.loads((folder / "result.json").read_text())
        record["config"]["DATASET"] |= {"IMBALANCE_TYPE": kind} if kind else {}
        (folder / "result.json").write_text(json.dumps(record))
    found = values(frames_found(tmp_path)[BASE_TO_NEW])
    assert {key[:2]: x for key, x in found.items() if not math.isnan(x)} == {
        ("MaPLe", 0.05): 60.0,
        ("MaPLe", 0.25): 61.0,
        ("MaPLe (step)", 0.05): 62.0,
        ("MaPLe", 1.0): 63.0,
        ("MaPLe (same budget)", 0.05): 64.0,
    }
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report/README.md").read_text()
    assert "| MaPLe against MaPLe (same budget), base " in text
    for number, words in ((0, "paper"), (2, "MaPLe (step)")):  # the paper has exp only
        assert main(["report", str(tmp_path / str(number))]) == 0
        text = (tmp_path / str(number) / "report/README.md").read_text()
        assert words in text.split("##")[2] and ("| paper " in text) == (words == "paper")


def test_logs_of_other_repositories(tmp_path):
    test_collect.put(tmp_path / "base2new/train_base/eurosat/seed3")
    model = "output/base2new/train_base/eurosat/seed3"
    new = {"eval_only": True, "model_dir": model, "classes": "new", "end": "", "accuracy": 70.0}
    test_collect.put(tmp_path / "base2new/test_new/eurosat/seed3", **new)
    found = values(frames_found(tmp_path)[BASE_TO_NEW])
    assert found == {("MaPLe", 1.0, "base"): 92.9, ("MaPLe", 1.0, "new"): 70.0}
    assert main(["report", str(tmp_path)]) == 0


def test_weights_that_were_not_default_are_not_mixed_in(tmp_path):
    """Also where only one key of the trainer differs, and the seed is the same."""
    for number, weight in enumerate((0.3, 1.0)):
        folder = put(tmp_path / str(number), 60.0 + number, "MaPLeNPT")
        record = json.loads((folder / "result.json").read_text())
        record["config"]["TRAINER"]["NPT"] = {"W1": weight}
        (folder / "result.json").write_text(json.dumps(record))
    frame = frames_found(tmp_path)[BASE_TO_NEW]
    assert {row["method"]: row["accuracy"] for row in frame.to_dict("records")} == {
        "MaPLe+NPT W1=0.3": 60.0,
        "MaPLe+NPT W1=1.0": 61.0,
    }


def test_a_test_has_the_label_of_its_training(tmp_path):
    """Not its own keys, which scripts of the family do not give it."""
    for epochs in (1, 2):
        base = put(tmp_path / f"base{epochs}", 60.0 + epochs, epochs=epochs)
        put(tmp_path / f"new{epochs}", 50.0 + epochs, classes="new", model=base)
    frame = frames_found(tmp_path)[BASE_TO_NEW]
    assert values(frame) == {
        ("MaPLe MAX_EPOCH=1", 1.0, "base"): 61.0,
        ("MaPLe MAX_EPOCH=1", 1.0, "new"): 51.0,
        ("MaPLe MAX_EPOCH=2", 1.0, "base"): 62.0,
        ("MaPLe MAX_EPOCH=2", 1.0, "new"): 52.0,
    }


def test_a_run_that_is_there_twice_is_named(tmp_path, capsys):
    put(tmp_path / "a", 60.0)
    put(tmp_path / "b", 61.0)
    frame = frames_found(tmp_path)[BASE_TO_NEW]
    assert values(frame) == {("MaPLe", 1.0, "base"): 61.0}
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path / 'a'} does not count")
