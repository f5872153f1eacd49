"""A folder is one run: refused commands, records of their own, stopping and going on."""

import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch

from npt import cli, stopping
from npt.files import read_record

COMMAND = [
    *("--trainer", "CoCoOpNPT", "--config-file", "configs/trainers/CoCoOp/tiny.yaml"),
    *("--dataset-config-file", "configs/datasets/mini_flowers.yaml"),
]
PAIRS = {
    "DATASET.NUM_SHOTS": "1",
    "DATASET.SUBSAMPLE_CLASSES": "base",
    "DATALOADER.NUM_WORKERS": "0",
    "OPTIM.MAX_EPOCH": "2",
    "USE_CUDA": "False",
}


def command(folder: Path, *flags: object, **pairs: object) -> list[str]:
    """The arguments of a run in `folder`; OPTIM__LR stands for the key OPTIM.LR."""
    more = {key.replace("__", "."): value for key, value in pairs.items()}
    words = [word for pair in {**PAIRS, **more}.items() for word in pair]
    seed = () if "--seed" in flags else ("--seed", 1)
    return [str(x) for x in (*COMMAND, "--output-dir", folder, *seed, *flags, *words)]


def run(folder: Path, *flags: object, **pairs: object) -> int:
    try:
        return cli.main(command(folder, *flags, **pairs))
    except SystemExit as stop:
        return stop.code


def record(folder: Path) -> dict:
    return read_record(folder / "result.json")


def figures(folder: Path) -> dict:
    """What must be the same to the last bit whenever the same command has been run."""
    found = record(folder)
    results = {
        split: {name: value for name, value in values.items() if name != "seconds"}
        for split, values in found["results"].items()
    }
    others = {key: found[key] for key in ("training", "course", "train_counts")}
    return {"results": results, **others}


def weights(folder: Path) -> dict:
    return {
        path.name: torch.load(path, weights_only=True)["state_dict"]
        for path in sorted(folder.glob("*/model*.pth.tar*"))
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run. Tests that write use a copy."""
    folder = tmp_path_factory.mktemp("runs") / "D"
    assert run(folder) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "D"))


# --------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    "flags, pairs, words",
    [
        ((), {"OPTIM__LR": 0.1, "TRAINER__NPT__W1": 9}, ["OPTIM.LR", "0.1 here", "NPT.W1"]),
        ((), {"OPTIM__MAX_EPOCH": 3}, ["OPTIM.MAX_EPOCH 2 there, 3 here"]),
        (("--seed", 2), {"DATASET__NUM_SHOTS": 16}, ["SEED 1 there, 2 here", "NUM_SHOTS"]),
        (("--trainer", "CoCoOp"), {}, ["TRAINER.NAME"]),
        ((), {"DATASET__SUBSAMPLE_CLASSES": "new"}, ["SUBSAMPLE_CLASSES"]),
        ((), {"TEST__FINAL_MODEL": "best_val"}, ["TEST.FINAL_MODEL"]),
        ((), {"DATALOADER__TRAIN_X__DROP_LAST": False}, ["DROP_LAST"]),
    ],
)
def test_another_command_is_refused(finished, capsys, flags, pairs, words):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(finished, *flags, **pairs) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in [*words, "--output-dir", "--overwrite"]), said
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_what_changes_no_figure_may_differ(copy, capsys):
    keys = {"TRAIN__PRINT_FREQ": 3, "TRAIN__CHECKPOINT_FREQ": 1, "VERBOSE": False}
    before = figures(copy)
    assert run(copy, **keys) == 0
    assert "epoch [" not in capsys.readouterr().out
    assert figures(copy) == before


def test_checkpoints_say_whose_they_are(copy, capsys):
    """Also without the record of the folder, and of a run in another folder."""
    (copy / "result.json").unlink()
    assert run(copy, OPTIM__LR=0.1) == 2
    assert "OPTIM.LR 0.0035 there, 0.1 here" in capsys.readouterr().err
    other = copy.with_name("other")
    assert run(other, "--resume", copy, OPTIM__LR=0.1) == 2
    assert "OPTIM.LR 0.0035 there, 0.1 here" in capsys.readouterr().err


def test_other_data_are_refused(copy, capsys):
    found = record(copy)
    found["data"] = "0" * 64
    (copy / "result.json").write_text(json.dumps(found))
    assert run(copy) == 2
    assert "other images, classes" in capsys.readouterr().err


def test_overwrite_starts_anew(copy, finished, capsys):
    (copy / "notes.md").write_text("mine")
    assert run(copy, "--overwrite", OPTIM__LR=0.1) == 0
    assert "epoch [1/2]" in capsys.readouterr().out
    assert record(copy)["config"]["OPTIM"]["LR"] == 0.1
    assert figures(copy) != figures(finished)
    assert (copy / "notes.md").read_text() == "mine"
    assert len(list(copy.glob("log.txt*"))) == 1


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(copy, capsys):
    mine = ["results_mine.json", "prompt_learner/notes.txt", "clip/model.pth.tar", "log.txt.bak"]
    for name in mine:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("mine")
    before = {path for path in copy.rglob("*") if path.is_file()}
    assert run(copy, "--overwrite", "--trainer", "CoCoOpNTP") == 2  # before anything is deleted
    assert {path for path in copy.rglob("*") if path.is_file()} == before
    assert run(copy, "--overwrite", "--eval-only", "--model-dir", copy) == 2
    assert run(copy, "--overwrite", OPTIM__LR=0.1) == 0
    assert all((copy / name).read_text() == "mine" for name in mine)


def test_another_file_of_weights_under_the_same_name_is_refused(tmp_path, capsys):
    from npt.backbones.sources import TINY_FILE
    from npt.backbones.tiny import read_tiny

    weights, folder = tmp_path / "clip.pt", tmp_path / "D"
    state = read_tiny(TINY_FILE)
    torch.save(state, weights)
    assert run(folder, "--backbone", weights) == 0
    assert run(folder, "--backbone", weights) == 0
    torch.save({**state, "text_projection": state["text_projection"] * 1.01}, weights)
    assert run(folder, "--backbone", weights) == 2
    assert "other images, classes or weights files" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="another file under the name"):
        run(tmp_path / "E", "--backbone", weights, "--eval-only", "--model-dir", folder)


def test_a_run_in_another_folder_goes_on_in_its_own(undisturbed, tmp_path, monkeypatch):
    first, second, pairs = tmp_path / "R", tmp_path / "D", {"TEST__FINAL_MODEL": "best_val"}

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    for folder, flags, step in ((first, (), 3), (second, ("--resume", first), 0)):
        with monkeypatch.context() as patch:
            AtStep(patch, step, stop)
            assert run(folder, *flags, **pairs) == 75
    with monkeypatch.context() as patch:
        steps = AtStep(patch, 99, stop)
        assert run(second, "--resume", first, **pairs) == 0
        assert steps.seen == 1
    assert figures(second) == figures(undisturbed)
    assert same(weights(second), weights(undisturbed) | {})


# --------------------------------------------------------------------------- records of their own
def test_an_evaluation_needs_a_model(tmp_path, capsys):
    assert run(tmp_path / "D", "--eval-only") == 2
    assert "--model-dir" in capsys.readouterr().err


def test_an_evaluation_of_an_unfinished_training_is_a_warning(copy, tmp_path):
    from npt.files import write_record

    write_record(copy / "result.json", {**record(copy), "finished": False})
    with pytest.warns(UserWarning, match="has not ended"):
        assert run(tmp_path / "E", "--eval-only", "--model-dir", copy) == 0


def test_an_evaluation_does_not_take_the_place_of_a_damaged_record(copy, capsys):
    (copy / "result.json").write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(copy, "--eval-only", "--model-dir", copy) == 0
        assert run(copy) == 0
    assert record(copy)["finished"]


def test_training_and_every_evaluation_keep_their_record(copy, capsys):
    trained = (copy / "result.json").read_bytes()
    for classes in ("base", "new"):
        pairs = {"DATASET__SUBSAMPLE_CLASSES": classes}
        assert run(copy, "--eval-only", "--model-dir", copy, **pairs) == 0
    assert (copy / "result.json").read_bytes() == trained
    names = sorted(path.name for path in copy.glob("result-*.json"))
    assert [name.rpartition("-")[0] for name in names] == [
        "result-MiniFlowers-base",
        "result-MiniFlowers-new",
    ]
    base = read_record(copy / names[0])
    assert base["task"] == "evaluation" and base["model"]["folder"] == str(copy)
    of_training = json.loads(trained)["results"]["test"]
    assert base["results"]["test"]["accuracy"] == of_training["accuracy"]


def test_evaluations_of_different_models_are_not_mixed(copy, tmp_path):
    other, folder = Path(shutil.copytree(copy, tmp_path / "other")), tmp_path / "E"
    assert run(folder, "--eval-only", "--model-dir", copy, TEST__SPLIT="val") == 0
    assert run(folder, "--eval-only", "--model-dir", copy) == 0
    assert set(record(folder)["results"]) == {"val", "test"}  # two splits of the same model
    assert run(folder, "--eval-only", "--model-dir", other) == 0
    (second,) = folder.glob("result-*.json")
    assert set(read_record(second)["results"]) == {"test"}
    assert run(folder, DATASET__SUBSAMPLE_CLASSES="base") == 2  # a training there


def test_after_best_val_all_figures_are_of_the_model_that_is_kept(tmp_path):
    folder = tmp_path / "D"
    # the first epoch is the best on the validation images, as the rate is absurd after it
    pairs = {"TEST__FINAL_MODEL": "best_val", "OPTIM__LR": 3.0}
    assert run(folder, **pairs) == 0
    best = torch.load(folder / "prompt_learner" / "model-best.pth.tar", weights_only=True)
    assert best["epoch"] == 1
    kept = record(folder)["results"]["val"]["accuracy"]
    assert kept == pytest.approx(best["val_result"])
    check = tmp_path / "E"
    assert run(check, "--eval-only", "--model-dir", folder, TEST__SPLIT="val", **pairs) == 0
    assert record(check)["results"]["val"]["accuracy"] == kept


# --------------------------------------------------------------------------- stopping, going on
class AtStep:
    """Calls a function before training step `step`, counted over all epochs from 0."""

    def __init__(self, monkeypatch, step: int, action):
        from npt.trainers import CoCoOp

        self.seen, original = 0, CoCoOp.forward_backward

        def forward_backward(trainer, batch):
            self.seen += 1
            if self.seen == step + 1:
                action()
            return original(trainer, batch)

        monkeypatch.setattr(CoCoOp, "forward_backward", forward_backward)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "best"
    assert run(folder, TEST__FINAL_MODEL="best_val") == 0
    return folder


@pytest.mark.parametrize("name, code", [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
@pytest.mark.parametrize("step", [0, 2, 4])  # first, last of an epoch, in the middle
def test_stopped_by_a_signal_and_gone_on(
    undisturbed, tmp_path, monkeypatch, capsys, name, code, step
):
    folder, pairs = tmp_path / "D", {"TEST__FINAL_MODEL": "best_val"}
    with monkeypatch.context() as patch:
        steps = AtStep(patch, step, lambda: os.kill(os.getpid(), getattr(signal, name)))
        assert run(folder, **pairs) == code
        assert steps.seen == step + 1  # the step was finished, and no other was begun
    assert not record(folder)["finished"]
    assert name in capsys.readouterr().out
    assert run(folder, **pairs) == 0
    out = capsys.readouterr().out
    assert "will resume training" in out and "epoch [1/2] batch [1/3]" not in out
    assert figures(folder) == figures(undisturbed)
    assert same(weights(folder), weights(undisturbed))
    assert len(list((folder / "resume").iterdir())) == 2


def test_stopped_in_the_validation_of_an_epoch(undisturbed, tmp_path, monkeypatch):
    folder, pairs = tmp_path / "D", {"TEST__FINAL_MODEL": "best_val"}
    from dassl.evaluation import evaluator

    with monkeypatch.context() as patch:
        process = evaluator.Classification.process

        def stop(self, *args):
            os.kill(os.getpid(), signal.SIGTERM)
            return process(self, *args)

        patch.setattr(evaluator.Classification, "process", stop)
        assert run(folder, **pairs) == 75
    assert run(folder, **pairs) == 0
    assert figures(folder) == figures(undisturbed)
    assert same(weights(folder), weights(undisturbed))


def test_any_step_can_be_gone_on_from(undisturbed, tmp_path, monkeypatch):
    """The saves within an epoch: the process ends, in any way, some steps after the last one."""
    from dassl.engine import resume

    monkeypatch.setattr(resume, "SECONDS_BETWEEN_SAVES", 0.0)
    folder, pairs = tmp_path / "D", {"TEST__FINAL_MODEL": "best_val"}

    def end():
        raise KeyboardInterrupt

    for step in (1, 2, 2, 1):
        with monkeypatch.context() as patch:
            AtStep(patch, step, end)
            run(folder, **pairs)
    assert run(folder, **pairs) == 0
    assert figures(folder) == figures(undisturbed)
    assert same(weights(folder), weights(undisturbed))


def test_a_run_is_trained_when_its_training_has_ended(tmp_path, monkeypatch):
    folder, seen = tmp_path / "D", []
    AtStep(
        monkeypatch, 3, lambda: seen.append((record(folder)["finished"], record(folder)["results"]))
    )
    assert run(folder, TEST__FINAL_MODEL="best_val") == 0
    ((trained, results),) = seen
    assert not trained and set(results) == {"val"}
    assert record(folder)["finished"]


# --------------------------------------------------------------------------- damage
def test_a_damaged_checkpoint_is_refused_or_read_as_written(copy, capsys):
    """Any single bit: the run's figures, or a sentence that names the file."""
    path = next(copy.glob("prompt_learner/model.pth.tar-*"))
    shutil.rmtree(copy / "resume")
    content, before = path.read_bytes(), figures(copy)
    refused = 0
    for place in range(7, len(content), len(content) // 12):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        capsys.readouterr()
        folder = copy.with_name("E")
        code = run(folder, "--eval-only", "--model-dir", copy)
        if code == 2:
            refused += 1
            assert path.name in capsys.readouterr().err
        else:
            found = {k: v for k, v in figures(folder)["results"]["test"].items()}
            assert found == before["results"]["test"]
        shutil.rmtree(folder, ignore_errors=True)
    assert refused > 6


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None])
def test_resuming_falls_back_to_the_checkpoint_before(undisturbed, tmp_path, monkeypatch, damage):
    folder, pairs = tmp_path / "D", {"TEST__FINAL_MODEL": "best_val"}
    with monkeypatch.context() as patch:
        AtStep(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(folder, **pairs) == 75
    newest = sorted((folder / "resume").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100] if damage is None else damage)
    with pytest.warns(UserWarning, match=rf"{newest.name}.*Trying the checkpoint before"):
        assert run(folder, **pairs) == 0
    assert figures(folder) == figures(undisturbed)


def test_without_a_good_checkpoint_the_run_is_refused(copy, capsys):
    for path in [*copy.glob("resume/*"), *copy.glob("prompt_learner/model*")]:
        path.write_bytes(b"nonsense")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(copy) == 2
    assert "resume" in capsys.readouterr().err


def test_the_last_checkpoint_is_saved_again(copy, capsys):
    path = copy / "prompt_learner" / "model.pth.tar-2"
    before = weights(copy)
    path.write_bytes(path.read_bytes()[:1000])
    assert run(copy) == 0
    assert "epoch [" not in capsys.readouterr().out
    assert same(weights(copy), before)


def test_a_run_does_not_end_without_its_best_model(undisturbed, tmp_path, capsys):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "D"))
    for damage in (lambda path: path.write_bytes(b""), Path.unlink):
        damage(folder / "prompt_learner" / "model-best.pth.tar")
        assert run(folder, TEST__FINAL_MODEL="best_val") == 2
        assert "model-best.pth.tar" in capsys.readouterr().err


@pytest.mark.parametrize(
    "entries",
    [
        {"epoch": "1"}, {"epoch": 10**12}, {"batch": 10**15}, {"run": [1]}, {"run": {}},
        {"progress": [1]}, {"progress": {"seconds": "x"}}, {"models": {"prompt_learner": 5}},
    ],
)  # fmt: skip
def test_a_save_with_wrong_entries_is_not_used(undisturbed, tmp_path, entries):
    folder, pairs = Path(shutil.copytree(undisturbed, tmp_path / "D")), {}
    pairs["TEST__FINAL_MODEL"] = "best_val"
    newest = sorted((folder / "resume").iterdir())[-1]
    torch.save({**torch.load(newest, weights_only=True), **entries}, newest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = run(folder, **pairs)
    assert code == 2 or figures(folder) == figures(undisturbed)


@pytest.mark.parametrize("content", ["", "[]", "\0\0\0", '{"results": {', "[" * 200_000])
def test_a_damaged_record_is_named_and_replaced(copy, content):
    before = figures(copy)["results"]
    (copy / "result.json").write_text(content)
    with pytest.warns(UserWarning, match=r"result\.json"):
        assert run(copy) == 0
    assert figures(copy)["results"] == before


# --------------------------------------------------------------------------- finite
@pytest.mark.parametrize(
    "pairs", [{"OPTIM__LR": 1e38}, {"TRAINER__NPT__W1": 1e30}, {"OPTIM__WEIGHT_DECAY": 1e30}]
)
def test_numbers_that_are_not_finite_stop_the_run(tmp_path, capsys, pairs):
    folder = tmp_path / "D"
    assert run(folder, **pairs) == 2
    said = capsys.readouterr().err
    assert "infinite" in said and "epoch" in said and ".png" in said and "OPTIM.LR" in said
    assert record(folder)["results"] == {} and not record(folder)["finished"]
    assert not list(folder.glob("prompt_learner/model*"))


def test_a_checkpoint_with_nan_is_not_tested(copy, capsys):
    path = next(copy.glob("prompt_learner/model.pth.tar-*"))
    content = torch.load(path, weights_only=True)
    content["state_dict"]["ctx"][0, 0] = float("nan")
    torch.save(content, path)
    assert run(copy.with_name("E"), "--eval-only", "--model-dir", copy) == 2
    said = capsys.readouterr().err
    assert path.name in said and "ctx" in said and "diverged" in said


# --------------------------------------------------------------------------- one at a time
def test_a_second_run_in_the_folder_is_refused(tmp_path, monkeypatch, python):
    folder, seen = tmp_path / "D", []
    AtStep(monkeypatch, 1, lambda: seen.append(python("train.py", *command(folder))))
    assert run(folder) == 0
    assert seen[0].returncode == 2 and "another process is running in" in seen[0].stderr


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    import socket

    folder = tmp_path / "D"
    (folder / "resume").mkdir(parents=True)
    stale = folder / "resume" / f".x.pth.tar.{socket.gethostname()}~999999999-0123abcd.tmp"
    alive = folder / f".result.json.{socket.gethostname()}~{os.getpid()}-0123abcd.tmp"
    for path in (stale, alive):
        path.write_text("")
    assert run(folder) == 0
    assert not stale.exists() and alive.exists()


@pytest.mark.parametrize("number", [0, 2])
def test_a_folder_that_cannot_be_written_is_named_at_once(tmp_path, capsys, number):
    """A file is where the folder should be, at any depth."""
    place = tmp_path / "file"
    place.write_text("")
    assert run(place / "/".join("ab"[:number])) == 2
    assert str(place) in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capsys):
    import errno

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run(tmp_path / "D") == 2
    said = capsys.readouterr().err
    assert "result.json cannot be written (No space left on device)" in said


def test_signals_outside_of_the_training_end_the_program(monkeypatch, tmp_path):
    def build(cfg):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cli, "build", build)
    before = signal.getsignal(signal.SIGTERM)
    assert run(tmp_path / "D") == stopping.EXIT_STOPPED
    assert signal.getsignal(signal.SIGTERM) is before
