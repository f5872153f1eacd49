"""A small experiment with real trainers on the mini suite: runs, tables, figure, gradients."""

import json
import shlex

import pytest

from npt.experiments import runner
from npt.experiments.__main__ import main
from npt.experiments.plan import load_experiment
from npt.results import read_results

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
    assert len(runs) == 3 and all(runner.is_complete(run) for run in runs)
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


def test_a_worker_gives_the_results_of_the_command_line(folder, tmp_path, python):
    """Earlier runs in a process do not change the results of later ones."""
    for run in load_experiment(folder / "small.yaml").runs(folder / "out"):
        record = json.loads((run.folder / "run.json").read_text())
        command = shlex.split(record["commands"]["base"])[1:]
        command[command.index("--output-dir") + 1] = str(tmp_path / run.label)
        assert python(*command).returncode == 0
        alone = json.loads((tmp_path / run.label / "result.json").read_text())["results"]["test"]
        among = read_results(run.folder / "base")["test"]
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


def test_other_options_require_another_folder(folder, capsys):
    run = ["run", str(folder / "small.yaml"), "--out", str(folder / "out"), "OPTIM.MAX_EPOCH", "2"]
    assert main(run) == 2
    assert "OPTIM.MAX_EPOCH 1, now 2" in capsys.readouterr().err


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
