"""One CSV row for each run of any output folder."""

import json

import fake_runs
import pandas as pd
import pytest

from npt.errors import NPTError
from npt.experiments.__main__ import main
from npt.experiments.collect import collect

# The lines of a log of the CoOp family that say something about a run.
LOG = """***************
** Arguments **
***************
backbone: 
eval_only: {eval_only}
model_dir: {model_dir}
output_dir: output/x
************
** Config **
************
DATALOADER:
  TRAIN_X:
    BATCH_SIZE: 4
DATASET:
  NAME: EuroSAT
  NUM_SHOTS: 16
  SUBSAMPLE_CLASSES: {classes}
INPUT:
  PIXEL_MEAN: [0.48, 0.45]
MODEL:
  BACKBONE:
    NAME: ViT-B/16
OPTIM:
  MAX_EPOCH: 5
SEED: 3
TRAINER:
  MAPLE:
    CTX_INIT: a photo of a
  NAME: MaPLe
Collecting env info ...
NAME: not a config
{body}
"""
TRAINED = """epoch [5/5] batch [20/20] time 0.1
{end}
Evaluate on the *test* set
=> result
* total: 4,200
* correct: 3,900
* accuracy: {accuracy}%
* error: 7.1%
* macro_f1: 92.8%
Elapsed: 0:00:30
"""


def put(folder, name="log.txt", body=TRAINED, end="Finished training", accuracy=92.9, **head):
    folder.mkdir(parents=True, exist_ok=True)
    head = {"eval_only": False, "model_dir": "", "classes": "base", **head}
    text = LOG.format(body=body.format(end=end, accuracy=accuracy), **head)
    (folder / name).write_text(text)


@pytest.mark.parametrize("end", ["Finish training", "Finished training"])
def test_a_log_of_a_training(tmp_path, end):
    put(tmp_path / "output/seed3", end=end)
    (row,) = collect(tmp_path).to_dict("records")
    expected = {
        "folder": "output/seed3",
        "task": "training",
        "finished": True,
        "trainer": "MaPLe",
        "backbone": "ViT-B/16",
        "dataset": "EuroSAT",
        "classes": "base",
        "shots": 16,
        "seed": 3,
        "epochs": 5,
        "accuracy": 92.9,
        "macro_f1": 92.8,
    }
    assert expected.items() <= row.items()


def test_a_log_of_a_test_names_the_model(tmp_path):
    put(tmp_path / "seed3", eval_only=True, model_dir="output/base", classes="new", end="")
    (row,) = collect(tmp_path).to_dict("records")
    assert (row["task"], row["model"], row["classes"]) == ("evaluation", "output/base", "new")
    assert row["accuracy"] == 92.9


def test_what_has_not_ended_has_no_row(tmp_path):
    put(tmp_path / "a", end="")
    put(tmp_path / "b")
    assert list(collect(tmp_path)["folder"]) == ["b"]
    (tmp_path / "b/log.txt").unlink()
    with pytest.raises(NPTError, match="neither a result"):
        collect(tmp_path)


def test_the_last_log_with_a_result_counts(tmp_path):
    put(tmp_path / "a", accuracy=80.0)
    put(tmp_path / "a", "log.txt-2026-01-02-03-04-05", accuracy=81.0)
    put(tmp_path / "a", "log.txt-2026-01-03-03-04-05", end="")
    assert list(collect(tmp_path)["accuracy"]) == [81.0]


def test_our_records_come_before_logs(tmp_path, capsys):
    (run,) = fake_runs.runs(tmp_path / "ours", seeds=1, evaluate=("val", "test"))
    fake_runs.write(run)
    result = run.folder / "base" / "result.json"
    content = json.loads(result.read_text())
    config = {"SEED": 7, "DATASET": {"IMBALANCE_TYPE": "step"}}
    content |= {"train_counts": [16, 4, 1], "train_seconds": 2.0, "config": config}
    content["results"]["test"] |= {"worst_class": 12.5, "ece": None}
    result.write_text(json.dumps(content))
    put(run.folder / "base", accuracy=1.0)
    put(tmp_path / "upstream" / "seed3")
    assert main(["collect", str(tmp_path), "--csv", str(tmp_path / "runs.csv")]) == 0
    assert "3 rows" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "runs.csv")
    base, new, upstream = frame.to_dict("records")
    assert (base["accuracy"], base["val_accuracy"], base["seed"]) == (50.0, 50.0, 7)
    sizes = ("largest_class", "smallest_class", "classes_with_one_image", "trained_classes")
    assert [base[key] for key in (*sizes, "images", "ratio_obtained")] == [16, 1, 1, 3, 21, 0.0625]
    assert base["imbalance_type"] == "step"
    assert base["worst_class"] == 12.5 and pd.isna(base["ece"])  # figures of any name
    assert new["task"] == "evaluation" and upstream["accuracy"] == 92.9


@pytest.mark.parametrize("where", ["nothing", "empty"])
def test_a_folder_without_runs_is_named(tmp_path, capsys, where):
    (tmp_path / "empty").mkdir()
    assert main(["collect", str(tmp_path / where)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / where) in error and error.count("\n") == 1
