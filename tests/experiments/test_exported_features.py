"""`features`: the features of runs as files for others' programs."""

import csv
import json
import shutil

import numpy as np
import pytest

from npt.cli import main as train
from npt.experiments.__main__ import main
from npt.experiments.features import SplitFeatures, unique
from npt.experiments.plan import Part

CLASSES = ["a <b>", 'tab\there "and" quotes', "línea\nnueva", "猫"]


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture
def folder(tmp_path):
    """Two complete runs with features in memory."""
    trainers = {'Z "é<\\': {"config": "z", "train": False}, "A": {"config": "a"}}
    for run in Part(trainers, ("d",), ratios=(0.5,)).runs(tmp_path):
        for evaluation in run.evaluations:
            random = np.random.default_rng(len(run.label))
            labels, files = np.arange(8) % 4, np.array([f"im\t{i}.jpg" for i in range(8)])
            arrays = random.normal(size=(4, 5)), random.normal(size=(8, 5)).astype(np.float32)
            given = SplitFeatures(*arrays, labels, np.array(CLASSES), files)
            given.save(run.output(evaluation) / "features.npz")
            result = {"results": {"test": {"accuracy": 50.0}}}
            (run.output(evaluation) / "result.json").write_text(json.dumps(result))
        (run.folder / "run.json").write_text(json.dumps(run.record()))
    return tmp_path


def test_what_is_written_is_what_was_kept(folder, capsys):
    assert main(["features", str(folder)]) == 0
    said = capsys.readouterr().out
    written = sorted((folder / "features").glob("*/features.npz"))
    assert len(written) == 4 and all(str(path.parent) in said for path in written)
    for path in written:
        part = path.parent.name.split("-")[1]
        method = "A" if "-A-" in path.parent.name else "Z"
        (kept,) = folder.glob(f"d/*/*/*/{method}*/seed*/{part}/*.npz")
        given, found = SplitFeatures.load(kept), SplitFeatures.load(path)
        assert all(np.array_equal(getattr(given, x), getattr(found, x)) for x in vars(given))
        rows = np.array(table(path.with_name("tensors.tsv")), dtype=float)
        assert rows == pytest.approx(np.concatenate([given.text, given.image]), rel=1e-7)
        head, *about = table(path.with_name("metadata.tsv"))
        assert head == ["kind", "class", "file"] and len(about) == len(rows)
        assert about[1] == ["text", 'tab here "and" quotes', ""] and about[2][1] == "línea nueva"
        assert about[4 + 7] == ["image", "猫", "im 7.jpg"]


def test_two_labels_with_the_same_letters_have_two_folders(tmp_path):
    features = SplitFeatures(np.eye(2), np.eye(2), np.arange(2), np.array(["a", "b"]))
    names = [name for name, _ in unique([("x", features), ("x", features), ("x-2", features)])]
    assert len(set(names)) == 3 and names[0] == "x"


def test_tensorboard_reads_it(folder):
    text_format = pytest.importorskip("google.protobuf.text_format")
    config_pb2 = pytest.importorskip("tensorboard.plugins.projector.projector_config_pb2")
    assert main(["features", str(folder)]) == 0
    path = folder / "features" / "projector_config.pbtxt"
    config = text_format.Parse(path.read_text(), config_pb2.ProjectorConfig())
    names = [x.tensor_name for x in config.embeddings]
    assert len(set(names)) == 4 and "d-new-A-tau0.5-seed1" in names
    for embedding in config.embeddings:
        for name in (embedding.tensor_path, embedding.metadata_path):
            assert (path.parent / name).is_file()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--labels", "B"], "--labels B: there is no such run"),
        (["--dataset", "x"], "--dataset x: no run"),
    ],
)
def test_what_is_not_there_is_named(folder, capsys, flags, words):
    assert main(["features", str(folder), *flags]) == 2
    assert words in capsys.readouterr().err


def test_an_empty_folder(tmp_path, capsys):
    assert main(["features", str(tmp_path)]) == 2
    assert "no complete runs" in capsys.readouterr().err


def test_a_run_of_train_py_and_a_test_of_its_model(tmp_path, capsys):
    flags = [
        *("--trainer", "CoOpNPT", "--config-file", "configs/trainers/CoOp/tiny.yaml"),
        *("--dataset-config-file", "configs/datasets/mini_flowers.yaml", "--seed", "1"),
    ]
    pairs = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0"]
    base, new = ([*pairs, "DATASET.SUBSAMPLE_CLASSES", x] for x in ("base", "new"))
    run, test = tmp_path / "run", tmp_path / "test"
    assert train([*flags, "--output-dir", str(run), *base]) == 0
    model = ["--eval-only", "--model-dir", str(run)]
    assert train([*flags, "--output-dir", str(test), *model, *new]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder in (run, test):
        assert main(["features", str(folder), "--output", str(tmp_path / "out")]) == 0
        record = json.loads((folder / "result.json").read_text())
        found = SplitFeatures.load(tmp_path / "out" / folder.name / "features.npz")
        assert list(found.classnames) == record["classnames"]
        right = (found.image @ found.text.T).argmax(1) == found.labels
        assert 100 * right.mean() == pytest.approx(record["results"]["test"]["accuracy"])
        assert len(found.files) == len(found.labels) and found.files[0].endswith(".png")
    assert all(path.read_bytes() == content for path, content in before.items())
    capsys.readouterr()
    assert main(["features", str(run), "--seed", "1"]) == 2
    assert f"{run} is one run: leave out --seed" in capsys.readouterr().err
    shutil.rmtree(run / "prompt_learner")
    assert main(["features", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
