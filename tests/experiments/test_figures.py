import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from npt.errors import NPTError
from npt.experiments import features as kept
from npt.experiments import figures, projections
from npt.experiments.plan import Part


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
    return kept.SplitFeatures(text, image, labels, names)


@pytest.fixture
def folder(tmp_path):
    trainers = {"Z": {"config": "z", "train": False}, "A": {"config": "a"}, "B": {"config": "a"}}
    part = Part(trainers, ("d", "e"), seeds=(1, 2), ratios=(1.0, 0.01))
    for number, run in enumerate(part.runs(tmp_path)):
        for evaluation in run.evaluations:
            run.output(evaluation).mkdir(parents=True)
            features(seed=number).save(run.output(evaluation) / "features.npz")
            figs = {"accuracy": 50.0, "lcd_abs": 0.1, "mid_abs": 0.2}
            result = json.dumps({"results": {"test": figs}})
            (run.output(evaluation) / "result.json").write_text(result)
        (run.folder / "run.json").write_text(json.dumps(run.record()))
    return tmp_path


def places(points, kind):
    return points.loc[points["kind"] == kind, ["x", "y"]].to_numpy()


def test_the_principal_plane_keeps_a_plane_and_removes_the_offset_between_modalities():
    given = features()
    text, images = projections.pca(given, [0, 2, 4])
    assert text.shape == (3, 2) and [x.shape for x in images] == [(20, 2)] * 3
    expected = np.linalg.norm(given.text[0] - given.text[2])
    assert np.linalg.norm(text[0] - text[1]) == pytest.approx(expected, rel=1e-3)
    for place, of_class in enumerate(images):
        assert np.linalg.norm(of_class.mean(0) - text[place]) < 0.02


@pytest.mark.parametrize("projection", projections.PROJECTIONS)
def test_points_are_turned_or_mirrored_to_others_without_changing_their_shape(projection):
    given = features()
    points = projections.points_of(given, range(6), projection=projection)
    text = places(points, "text")
    angle, mirror = 1.2, np.diag([1.0, -1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ mirror
    turned = projections.points_of(given, range(6), text @ turn, projection)
    for kind in ("text", "image"):
        assert places(turned, kind) == pytest.approx(places(points, kind) @ turn, abs=1e-6)
    other = places(projections.points_of(given, range(6), np.ones((6, 2)), projection), "text")
    assert np.linalg.norm(other, axis=1) == pytest.approx(np.linalg.norm(text, axis=1))


def test_tsne_has_neighbours_beside_each_other_and_is_the_same_each_time():
    given = features(per_class=15)
    points = projections.points_of(given, range(6), projection="tsne")
    assert set(points["kind"]) == {"text", "image"} and points[["x", "y"]].abs().max().max() <= 1
    centres = points[points["kind"] == "image"].groupby("class")[["x", "y"]].mean()
    names = points.loc[points["kind"] == "text", "class"]
    for name, text in zip(names, places(points, "text"), strict=True):
        assert (centres - text).pow(2).sum(axis=1).idxmin() == name
    assert projections.points_of(given, range(6), projection="tsne").equals(points)
    few = projections.points_of(features(classes=2, per_class=1), range(2), projection="tsne")
    assert np.isfinite(few[["x", "y"]].to_numpy()).all()  # fewer points than a usual perplexity


def test_what_is_drawn_is_what_was_projected():
    given = features(per_class=50)
    points = projections.points_of(given, [1, 4]).set_index(["kind", "class"])[["x", "y"]]
    text, images = projections.pca(given, [1, 4])
    limit = projections.POINTS_PER_CLASS
    for place, (name, of_class) in enumerate(zip(("class 1", "class 4"), images, strict=True)):
        assert points.loc[[("text", name)]].to_numpy() == pytest.approx(text[[place]])
        assert points.loc[[("mean", name)]].to_numpy() == pytest.approx(of_class.mean(0)[None])
        shown = points.loc[[("image", name)]].to_numpy()
        assert shown.shape == (limit, 2) and set(map(tuple, shown)) <= set(map(tuple, of_class))


def test_classes_without_images_are_not_shown():
    given = features()
    some = given.labels != 2
    part = kept.SplitFeatures(given.text, given.image[some], given.labels[some], given.classnames)
    _, drawn = figures.draw([("", [figures.Panel("A", part)])])
    assert set(drawn["class"]) == {f"class {k}" for k in (0, 1, 3, 4, 5)}


def test_saved_features_come_back(tmp_path):
    given = features()
    given.save(tmp_path / "features.npz")
    again = kept.SplitFeatures.load(tmp_path / "features.npz")
    for name, array in vars(given).items():
        assert np.array_equal(array, getattr(again, name))


def test_runs_are_selected_by_their_settings(folder):
    def settings(**wanted):
        found = kept.choose(folder, **wanted)
        return [(r["label"], r["dataset"], r["ratio"], r["seed"]) for _, r in found]

    assert settings() == [("Z", "d", 1.0, 1), ("A", "d", 0.01, 1), ("B", "d", 0.01, 1)]
    wanted = {"labels": ["B", "Z"], "dataset": "e", "ratio": 1.0, "seed": 2}
    assert settings(**wanted) == [("B", "e", 1.0, 2), ("Z", "e", 1.0, 1)]
    assert settings(ratio=0.01, seed=2)[0] == ("Z", "d", 1.0, 1)  # without training
    for wrong in ({"labels": ["C"]}, {"dataset": "f"}, {"ratio": 0.5}):
        with pytest.raises(NPTError):
            kept.choose(folder, **wrong)


@pytest.mark.parametrize("projection", projections.PROJECTIONS)
def test_a_figure_is_written(folder, projection):
    path = folder / "figure.png"
    figures.plot(kept.choose(folder), path, num_classes=4, projection=projection)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
    with pytest.raises(NPTError, match="--classes"):
        figures.plot(kept.choose(folder), path, num_classes=1)


def test_without_features_or_checkpoint_there_is_no_figure(folder):
    for path in folder.rglob("features.npz"):
        path.unlink()
    with pytest.raises(NPTError, match="keep_checkpoints"):
        figures.plot(kept.choose(folder, ["A"]), folder / "figure.png")


def test_headings_have_the_measures_with_values(folder):
    run, _ = kept.choose(folder, ["A"])[0]

    def heading(test, **content):
        results = {"results": {"test": {"accuracy": 50.0, **test}}, **content}
        (run / "new" / "result.json").write_text(json.dumps(results))
        return figures.panel_of(run, "new", "A").heading

    standard = {"lcd_abs": 0.1, "mid_abs": 0.2}
    assert heading(standard) == "A\n50.0%  LCD 0.100  MID 0.200"
    assert heading({}) == heading({"lcd_abs": None}) == "A\n50.0%"
    words = "A\n50.0%  Own 3.000"
    assert heading({**standard, "own": 3.0}, headings={"own": "Own"}) == words


@pytest.mark.parametrize("lost", ["run.json", "base/result.json", "new/result.json"])
def test_a_run_that_is_not_complete_is_a_missing_panel(folder, lost):
    run, _ = kept.choose(folder, ["A"])[0]
    (run / lost).unlink()
    panel = figures.panel_of(run, "new", "A")
    assert panel == figures.Panel("A") and panel.heading == "A"
    _, drawn = figures.draw([("", [panel])])
    assert list(drawn["kind"]) == ["missing"]


def test_an_unknown_format_is_refused(folder):
    for name in ("figure.docx", "figure"):
        with pytest.raises(NPTError, match=r"\.png"):
            figures.plot(kept.choose(folder), folder / name)
        assert not (folder / name).exists()


@pytest.mark.parametrize("content", ["", "[]", "\0\0"])
def test_a_run_with_a_damaged_record_is_named_and_left_out(folder, capsys, content):
    path = kept.choose(folder)[0][0] / "run.json"
    path.write_text(content)
    assert [run["label"] for _, run in kept.choose(folder)] == ["A", "B"]
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {path} ") and error.count("\n") == 1


def test_damaged_features_are_named(folder):
    path = next(folder.rglob("features.npz"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), b"", bytes(content[:100])):
        path.write_bytes(damaged)
        with pytest.raises(NPTError, match=r"features\.npz is damaged .*: delete it"):
            kept.SplitFeatures.load(path)


@pytest.mark.parametrize("seed", [-1, 3])
def test_a_negative_seed_is_not_set(folder, monkeypatch, seed):
    """As in training: dassl's set_random_seed is for seeds from 0."""
    from types import SimpleNamespace

    import dassl.utils

    seeds = []
    monkeypatch.setattr(dassl.utils, "set_random_seed", seeds.append)
    monkeypatch.setattr(kept, "parse_args", lambda argv: None)
    monkeypatch.setattr(kept, "setup_cfg", lambda args: SimpleNamespace(SEED=seed))
    monkeypatch.setattr(kept, "build", lambda cfg: None)
    monkeypatch.setattr(kept, "load", lambda trainer, folder: None)
    monkeypatch.setattr(kept, "collect_features", lambda trainer: features())
    path, record = kept.choose(folder, ["Z"])[0]
    (path / "base" / "features.npz").unlink()
    kept.features_of(path, record, "base")
    assert seeds == ([] if seed < 0 else [seed])
