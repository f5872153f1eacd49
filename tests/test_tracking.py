"""TRAIN.WANDB: what a training sends to Weights & Biases, with a stand-in for its package."""

from __future__ import annotations

import json
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from trainer_kit import build, config, random_batches

from npt import tracking
from npt.errors import NPTError
from npt.files import read_record
from npt.session import remove_run

CLASSES = ["cat", "dog", "owl"]


class FakeRun:
    """Notes what it gets; `failing` names a method that raises."""

    def __init__(self, failing: str = "", **given) -> None:
        self.given, self.failing = given, failing
        self.rows: list[dict] = []
        self.axes: dict[str, str] = {}
        self.exit_code: int | None = None
        self.calls = 0

    def _called(self, name: str) -> None:
        self.calls += 1
        if name == self.failing:
            raise ConnectionError("the network is\ndown")

    def define_metric(self, name: str, step_metric: str) -> None:
        self._called("define_metric")
        self.axes[name] = step_metric

    def log(self, row: dict) -> None:
        self._called("log")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self._called("finish")
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """A module `wandb`; its `runs` are those that were started."""
    for name in ("WANDB_NAME", "WANDB_RUN_ID", "WANDB_DIR", *tracking.SETTINGS):
        monkeypatch.delenv(name, raising=False)
    fake = SimpleNamespace(runs=[], failing="")

    def init(**given):
        random.random()  # a library may use the generators
        torch.rand(1)
        if fake.failing == "init":
            raise ValueError("no API key")
        fake.runs.append(FakeRun(fake.failing, **given))
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    yield fake
    for name in tracking.SETTINGS:
        monkeypatch.delenv(name, raising=False)


def trained(folder, *pairs, project="shapes", epochs=2):
    """A trainer after its training in `folder`."""
    given = ("TRAIN.WANDB", project, "OPTIM.MAX_EPOCH", epochs, *pairs)
    cfg = config("CoOp", "tiny", *given, output=str(folder))
    torch.manual_seed(0)
    trainer = build(cfg, CLASSES, random_batches(len(CLASSES), count=3))
    trainer.train()
    return trainer


def figures(folder) -> dict:
    found = read_record(folder / "result.json")
    del found["results"]["test"]["seconds"]
    return {key: found[key] for key in ("results", "course", "training")}


def test_scalars_config_and_results_are_sent(wandb, tmp_path):
    trainer = trained(tmp_path)
    (run,) = wandb.runs
    assert run.given["project"] == "shapes" and run.given["dir"] == str(tmp_path)
    assert run.given["config"]["OPTIM"]["MAX_EPOCH"] == 2
    assert run.given["name"].startswith("CoOp ") and run.exit_code == 0
    assert run.axes == {"train/*": "train/step", "test/*": "test/step"}
    *steps, test = run.rows
    assert [row["train/step"] for row in steps] == list(range(6))
    assert {"train/loss", "train/acc", "train/lr"} <= set(steps[0])
    assert test["test/step"] == 1
    for name in ("accuracy", "lcd", "mid", "nc1"):
        assert test[f"test/{name}"] == pytest.approx(trainer.results["test"][name])
    json.dumps(run.rows)  # plain numbers


def test_a_training_is_the_same_with_it(wandb, tmp_path):
    trained(tmp_path / "with")
    trained(tmp_path / "without", project="")
    assert len(wandb.runs) == 1
    assert figures(tmp_path / "with") == figures(tmp_path / "without")


def test_the_id_is_kept_by_the_folder_until_it_is_emptied(wandb, tmp_path):
    trained(tmp_path, epochs=2)
    trained(tmp_path, epochs=2)
    remove_run(tmp_path)
    trained(tmp_path, epochs=2)
    first, second, third = (run.given for run in wandb.runs)
    assert first["id"] == second["id"] != third["id"] and first["resume"] == "allow"


def test_the_user_s_environment_comes_first(wandb, tmp_path, monkeypatch):
    mine = {"WANDB_NAME": "mine", "WANDB_RUN_ID": "abc", "WANDB_DIR": str(tmp_path / "w")}
    for name, value in {**mine, "WANDB_CONSOLE": "wrap"}.items():
        monkeypatch.setenv(name, value)
    trained(tmp_path / "run", epochs=1)
    given = wandb.runs[0].given
    assert [given[key] for key in ("name", "id", "dir")] == list(mine.values())
    assert tracking.os.environ["WANDB_CONSOLE"] == "wrap"


@pytest.mark.parametrize("failing", ["init", "define_metric", "log", "finish"])
def test_a_failure_costs_one_warning_and_no_figure(wandb, tmp_path, failing):
    trained(tmp_path / "without", project="")
    wandb.failing = failing
    with pytest.warns(UserWarning, match=r"TRAIN\.WANDB.* The training goes on without it") as seen:
        trained(tmp_path / "with")
    mine = [w for w in seen if "TRAIN.WANDB" in str(w.message)]
    assert len(mine) == 1 and "\n" not in str(mine[0].message)
    assert figures(tmp_path / "with") == figures(tmp_path / "without")


@pytest.mark.parametrize("module", [None, SimpleNamespace()], ids=["missing", "a folder wandb/"])
def test_without_wandb_a_sentence_says_how_to_get_it(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.warns(UserWarning, match="pip install wandb"):
        trained(tmp_path, epochs=1)
    assert read_record(tmp_path / "result.json")["finished"]


def test_an_error_of_the_training_ends_the_run_as_failed(wandb, tmp_path):
    cfg = config("CoOp", "tiny", "TRAIN.WANDB", "shapes", output=str(tmp_path))
    trainer = build(cfg, CLASSES)
    trainer.forward_backward = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert wandb.runs[0].exit_code == 1 and trainer._writer is None


@pytest.mark.parametrize("value", ["a/b", "x" * 129, "true", "FALSE", "50%"])
def test_names_that_no_project_can_have_are_refused(value):
    with pytest.raises(NPTError, match=r"TRAIN\.WANDB is .* must be the name of a project"):
        config("CoOp", "tiny", "TRAIN.WANDB", value)
