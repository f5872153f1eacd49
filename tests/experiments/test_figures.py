import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from npt.errors import NPTError
from npt.experiments import figures
from npt.experiments.plan import Experiment


def features(classes: int = 6, dim: int = 16, per_class: int = 20, seed: int = 0):
    """Text features in one plane, image features near them plus a constant offset."""
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, classes, endpoint=False)
    text = np.zeros((classes, dim))
    text[:, 0], text[:, 1], text[:, 2] = np.cos(angles), np.sin(angles), 0.5
    labels = np.repeat(np.arange(classes), per_class)
    image = text[labels] + 0.01 * rng.standard_normal((len(labels), dim))
    image[:, 3] += 2.0
    names = np.array([f"class {k}" for k in range(classes)])
    return figures.SplitFeatures(text, image, labels, names)


@pytest.fixture
def folder(tmp_path):
    trainers = {"Z": {"config": "z", "train": False}, "A": {"config": "a"}, "B": {"config": "a"}}
    experiment = Experiment(trainers, ("d", "e"), seeds=(1, 2), ratios=(1.0, 0.01))
    for number, run in enumerate(experiment.runs(tmp_path)):
        for evaluation in run.evaluations:
            run.output(evaluation).mkdir(parents=True)
            features(seed=number).save(run.output(evaluation) / "features.npz")
            figs = {"accuracy": 50.0, "lcd_abs": 0.1, "mid_abs": 0.2}
            result = json.dumps({"results": {"test": figs}})
            (run.output(evaluation) / "result.json").write_text(result)
        (run.folder / "run.json").write_text(json.dumps(run.record()))
    return tmp_path


def test_projection_keeps_a_plane_and_removes_the_offset_between_modalities():
    given = features()
    text, image = figures.project(given, [0, 2, 4])
    assert text.shape == (3, 2) and image.shape == (60, 2)
    expected = np.linalg.norm(given.text[0] - given.text[2])
    assert np.linalg.norm(text[0] - text[1]) == pytest.approx(expected, rel=1e-3)
    for place in range(3):
        mean = image[20 * place : 20 * (place + 1)].mean(0)
        assert np.linalg.norm(mean - text[place]) < 0.02


def test_saved_features_come_back(tmp_path):
    given = features()
    given.save(tmp_path / "features.npz")
    again = figures.SplitFeatures.load(tmp_path / "features.npz")
    for name, array in vars(given).items():
        assert np.array_equal(array, getattr(again, name))


def test_runs_are_selected_by_their_settings(folder):
    def settings(**wanted):
        found = figures.choose(folder, **wanted)
        return [(r["label"], r["dataset"], r["ratio"], r["seed"]) for _, r in found]

    assert settings() == [("Z", "d", 0.01, 1), ("A", "d", 0.01, 1), ("B", "d", 0.01, 1)]
    wanted = {"labels": ["B", "Z"], "dataset": "e", "ratio": 1.0, "seed": 2}
    assert settings(**wanted) == [("B", "e", 1.0, 2), ("Z", "e", 1.0, 1)]
    for wrong in ({"labels": ["C"]}, {"dataset": "f"}, {"ratio": 0.5}):
        with pytest.raises(NPTError):
            figures.choose(folder, **wrong)


def test_a_figure_is_written(folder):
    path = folder / "figure.png"
    figures.plot(figures.choose(folder), path, num_classes=4)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
    with pytest.raises(NPTError, match="--classes"):
        figures.plot(figures.choose(folder), path, num_classes=1)


def test_without_features_or_checkpoint_there_is_no_figure(folder):
    for path in folder.rglob("features.npz"):
        path.unlink()
    with pytest.raises(NPTError, match="keep_checkpoints"):
        figures.plot(figures.choose(folder, ["A"]), folder / "figure.png")


def test_titles_have_the_measures_with_values(folder):
    path = next(folder.rglob("result.json"))

    def title(test, **content):
        path.write_text(json.dumps({"results": {"test": {"accuracy": 50.0, **test}}, **content}))
        return figures._title(path.parent, "A")

    standard = {"lcd_abs": 0.1, "mid_abs": 0.2}
    assert title(standard) == "A\n50.0%  LCD 0.100  MID 0.200"
    assert title({}) == title({"lcd_abs": None}) == "A\n50.0%"
    assert title({**standard, "own": 3.0}, headings={"own": "Own"}) == "A\n50.0%  Own 3.000"
    path.unlink()
    assert figures._title(path.parent, "A") == "A"


@pytest.mark.parametrize("content", ["", "[]", "\0\0"])
def test_a_run_with_a_damaged_record_is_named_and_left_out(folder, capsys, content):
    path = figures.choose(folder)[0][0] / "run.json"
    path.write_text(content)
    assert [run["label"] for _, run in figures.choose(folder)] == ["A", "B"]
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {path} ") and error.count("\n") == 1


def test_damaged_features_are_named(folder):
    path = next(folder.rglob("features.npz"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), b"", bytes(content[:100])):
        path.write_bytes(damaged)
        with pytest.raises(NPTError, match=r"features\.npz is damaged .*: delete it"):
            figures.SplitFeatures.load(path)


@pytest.mark.parametrize("seed", [-1, 3])
def test_a_negative_seed_is_not_set(folder, monkeypatch, seed):
    """As in training: dassl's set_random_seed is for seeds from 0."""
    from types import SimpleNamespace

    import dassl.utils

    seeds = []
    monkeypatch.setattr(dassl.utils, "set_random_seed", seeds.append)
    monkeypatch.setattr(figures, "parse_args", lambda argv: None)
    monkeypatch.setattr(figures, "setup_cfg", lambda args: SimpleNamespace(SEED=seed))
    monkeypatch.setattr(figures, "build", lambda cfg: None)
    monkeypatch.setattr(figures, "load", lambda trainer, folder: None)
    monkeypatch.setattr(figures, "collect_features", lambda trainer: features())
    path, record = figures.choose(folder, ["Z"])[0]
    (path / "base" / "features.npz").unlink()
    figures.features_of(path, record, "base")
    assert seeds == ([] if seed < 0 else [seed])
