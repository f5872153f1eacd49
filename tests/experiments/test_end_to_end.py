"""A small experiment with real trainers on the mini suite: runs, tables, figure, gradients."""

import io
import json
import shlex
import shutil
from contextlib import redirect_stdout

import pytest

from npt.experiments import state
from npt.experiments.__main__ import main
from npt.experiments.reading import load_experiment
from npt.experiments.running import one, pool
from npt.results import readable

pytestmark = pytest.mark.slow
EXPERIMENT = """
trainers:
  ZeroshotCLIP: {config: configs/trainers/ZeroshotCLIP/tiny.yaml, train: false}
  MaPLe: {config: configs/trainers/MaPLe/tiny.yaml}
  MaPLeNPT: {config: configs/trainers/MaPLe/tiny.yaml}
datasets: [mini_flowers]
ratios: [0.1]
shots: 4
evaluate: [val, test]
opts: {OPTIM.MAX_EPOCH: 1, DATALOADER.NUM_WORKERS: 0}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "small.yaml").write_text(EXPERIMENT)
    assert (
        main(["run", str(folder / "small.yaml"), "--out", str(folder / "out"), "--jobs", "2"]) == 0
    )
    return folder


def test_every_result_is_there(folder):
    runs = load_experiment(folder / "small.yaml").runs(folder / "out")
    assert len(runs) == 3 and all(state.is_complete(run) for run in runs)
    for run in runs:
        for evaluation in run.evaluations:
            result = json.loads((run.output(evaluation) / "result.json").read_text())
            assert set(result["results"]) == {"val", "test"}
            assert result["config"]["DATASET"]["SUBSAMPLE_CLASSES"] == evaluation.name
            assert (run.output(evaluation) / "log.txt").stat().st_size > 1000


def test_nothing_is_repeated(folder, capsys):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("result.json")}
    assert main(["run", str(folder / "small.yaml"), "--out", str(folder / "out")]) == 0
    assert "3 runs, 3 of them complete" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("result.json")}


@pytest.mark.long
def test_a_worker_gives_the_results_of_the_command_line(folder, tmp_path, python):
    """Earlier runs in a process do not change the results of later ones."""
    for run in load_experiment(folder / "small.yaml").runs(folder / "out"):
        record = json.loads((run.folder / "run.json").read_text())
        command = shlex.split(record["commands"]["base"])[1:]
        command[command.index("--output-dir") + 1] = str(tmp_path / run.label)
        assert python(*command).returncode == 0
        alone = json.loads((tmp_path / run.label / "result.json").read_text())["results"]["test"]
        among = readable(run.folder / "base")["results"]["test"]
        for name in ("accuracy", "lcd", "mid"):
            assert among[name] == pytest.approx(alone[name], abs=1e-5), (run.label, name)


def test_table_and_figure(folder, capsys):
    out = str(folder / "out")
    assert main(["table", out, "--split", "val"]) == 0
    assert main(["table", out]) == 0
    text = capsys.readouterr().out
    assert text.count("MaPLeNPT") == 2 and "harmonic mean" in text and "MID" in text
    assert main(["figure", out, "--labels", "ZeroshotCLIP", "MaPLeNPT"]) == 0
    assert (folder / "out" / "features.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    "pairs, word",
    [(["OPTIM.EPOCHS", "1"], "OPTIM.EPOCHS"), (["datasets", "mini_x"], "mini_x")],
)
def test_errors_are_reported_before_anything_runs(folder, tmp_path, capsys, pairs, word):
    assert main(["run", str(folder / "small.yaml"), "--out", str(tmp_path), *pairs]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and word in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("log.txt"))


def test_other_options_are_other_runs(folder, capsys):
    """They are beside the first ones, and tables tell them apart."""
    shutil.copytree(folder / "out", folder / "other")
    run = ["run", str(folder / "small.yaml"), "--out", str(folder / "other"), "trainers", "MaPLe"]
    assert main([*run, "OPTIM.MAX_EPOCH", "2"]) == 0
    assert "1 runs, 0 of them complete" in capsys.readouterr().out
    assert main(["table", str(folder / "other")]) == 0
    labels = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"MaPLe MAX_EPOCH=1", "MaPLe MAX_EPOCH=2", "MaPLeNPT"} <= set(labels)


BEST_VAL = """
trainers:
  CoOp: {config: configs/trainers/CoOp/tiny.yaml}
datasets: [mini_flowers]
shots: 2
evaluate: [val, test]
opts: {OPTIM.MAX_EPOCH: 3, DATALOADER.NUM_WORKERS: 0, TEST.FINAL_MODEL: best_val}
"""


@pytest.fixture(scope="module")
def best_val(tmp_path_factory):
    """A run whose training is interrupted after its first epoch, and the figures of a whole one."""
    folder = tmp_path_factory.mktemp("best_val")
    (folder / "best.yaml").write_text(BEST_VAL)
    (whole,) = load_experiment(folder / "best.yaml").runs(folder / "whole")
    with redirect_stdout(io.StringIO()):
        one.execute_run(whole)
    return folder, figures_of(whole)


def figures_of(run):
    """All figures of a run, without times."""
    found = {}
    for evaluation in run.evaluations:
        results = readable(run.output(evaluation))["results"]
        for split, figures in results.items():
            found[evaluation.name, split] = {k: v for k, v in figures.items() if k != "seconds"}
    return found


def test_a_half_trained_run_is_not_done(best_val, monkeypatch, capsys):
    from dassl.engine import SimpleTrainer

    folder, expected = best_val
    (run,) = load_experiment(folder / "best.yaml").runs(folder / "half")
    after_epoch = SimpleTrainer.after_epoch

    def killed(trainer):
        after_epoch(trainer)
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(SimpleTrainer, "after_epoch", killed)
        one.execute_run(run)
    assert "val" in readable(run.folder / "base")["results"]  # of the first epoch
    assert not state.is_complete(run)
    assert main(["table", str(folder / "half")]) == 2
    assert "no results" in capsys.readouterr().err
    one.execute_run(run)
    assert state.is_complete(run) and figures_of(run) == expected


@pytest.mark.parametrize(
    "name", ["run.json", "base/result.json", "new/result.json", "base/resume", "base/log.txt"]
)
@pytest.mark.parametrize("content", [None, b"{}"])
def test_a_run_whose_files_are_lost_or_damaged_is_done_again(best_val, tmp_path, name, content):
    folder, expected = best_val
    shutil.copytree(folder / "whole", tmp_path / "copy")
    (run,) = load_experiment(folder / "best.yaml").runs(tmp_path / "copy")
    path = run.folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if content:
        path.write_bytes(content)
    with redirect_stdout(io.StringIO()):
        one.execute_run(run)
    assert state.is_complete(run) and figures_of(run) == expected


@pytest.mark.parametrize("lost", ["new/result.json", "base/result.json"])
@pytest.mark.parametrize("name", ["model-best.pth.tar", "model.pth.tar-3"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_run_whose_model_is_damaged_is_trained_anew(
    best_val, tmp_path, capfd, damage, name, lost
):
    folder, expected = best_val
    shutil.copytree(folder / "whole", tmp_path / "copy")
    (run,) = load_experiment(folder / "best.yaml").runs(tmp_path / "copy")
    (run.folder / lost).unlink()
    (path,) = (run.folder / "base").glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    if damage == "delete":
        path.unlink()
    with redirect_stdout(io.StringIO()):
        one.execute_run(run)
    assert state.is_complete(run) and figures_of(run) == expected
    named = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(named) == (name == "model-best.pth.tar")  # the model that is kept
    assert all(name in line for line in named)


def test_a_folder_of_another_configuration_is_refused_by_a_run(best_val, tmp_path):
    """Folders of runs are not moved by hand; if one is, nothing in it is lost."""
    folder, _ = best_val
    (old,) = load_experiment(folder / "best.yaml").runs(tmp_path / "copy")
    other = load_experiment(folder / "best.yaml", ["OPTIM.LR", "0.1"])
    (run,) = other.runs(tmp_path / "copy")
    assert run.folder != old.folder
    shutil.copytree(folder / "whole", tmp_path / "copy")
    old.folder.parent.rename(run.folder.parent)
    (run.folder / "run.json").unlink()
    before = {p: p.read_bytes() for p in run.folder.rglob("*.*") if "log.txt" not in p.name}
    for _ in range(2):  # the first one does not claim the folder
        (outcome,) = pool.execute([run], 1)
        assert "OPTIM.LR" in outcome.error and outcome.error.endswith(pool.WAYS_OUT)
    assert before.items() <= {p: p.read_bytes() for p in before}.items()
    assert not (run.folder / "run.json").exists()


def test_gradients_of_each_term(capsys):
    argv = "gradients --batches 2 --trainer MaPLeNPT --config-file configs/trainers/MaPLe/tiny.yaml"
    argv += " --dataset-config-file configs/datasets/mini_flowers.yaml --seed 1"
    argv += " DATASET.NUM_SHOTS 2 DATALOADER.NUM_WORKERS 0 USE_CUDA False"
    assert main(argv.split()) == 0
    table, _, before = capsys.readouterr().out.partition("\n\n")
    assert "LCD" in before and "MID" in before
    rows = [line.split() for line in table.splitlines()[2:]]
    norm = {(row[0], " ".join(row[1:-4])): float(row[-3]) for row in rows}
    assert set(norm) == {("-", "L_CLIP")} | {
        (reduction, term)
        for reduction in ("mean", "class", "sum")
        for term in ("w1 L_LC", "w2 L_MI")
    }
    assert all(value > 0 for value in norm.values())
    mean, by_class, total = (norm[r, "w1 L_LC"] for r in ("mean", "class", "sum"))
    classes = total / by_class
    assert classes == pytest.approx(round(classes), rel=1e-3)  # sum / class = K
    assert by_class / mean == pytest.approx(classes - 1, rel=1e-3)  # class / mean = K - 1


def test_gradients_require_learned_parameters(capsys):
    argv = "gradients --trainer ZeroshotCLIP --config-file configs/trainers/ZeroshotCLIP/tiny.yaml"
    argv += " --dataset-config-file configs/datasets/mini_flowers.yaml USE_CUDA False"
    assert main(argv.split()) == 2
    assert "learns nothing" in capsys.readouterr().err
