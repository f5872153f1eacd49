"""`npt.load`: a classifier says what the test of its run has measured, for images of any form."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from own_images import CLASSES, OWN, make_images, train
from PIL import Image

import npt
from npt import files
from npt.errors import NPTError
from npt.session import silent

BASE = ["DATASET.SUBSAMPLE_CLASSES", "base"]
METHODS = {
    "MaPLeNPT": "MaPLe",
    "CoCoOp": "CoCoOp",
    "CoOpNPT": "CoOp",
    "ZeroshotCLIP": "ZeroshotCLIP",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return [*OWN, make_images(tmp_path_factory.mktemp("images"))]


@pytest.fixture(scope="module")
def images(own):
    return sorted(own[-1].glob("*/*"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, own):
    """Trainer -> a run of it on the first half of the classes."""
    folder = tmp_path_factory.mktemp("runs")
    with silent():
        return {
            name: train(folder / name, name, method, *own, *BASE)
            for name, method in METHODS.items()
        }


@pytest.fixture(scope="module")
def classifier(runs):
    return npt.load(runs["MaPLeNPT"])


def data_of(classifier, **keys):
    """The data set of a run's config, with other keys."""
    from dassl.data import data_manager

    cfg = classifier.run.cfg.clone()
    cfg.defrost()
    cfg.DATASET.update(keys)
    with silent():
        return data_manager.build_dataset(cfg)


@pytest.mark.parametrize("name", METHODS)
def test_predictions_are_those_of_the_test(runs, name):
    classifier = npt.load(runs[name])
    data = data_of(classifier)
    found = classifier.predict([item.impath for item in data.test], k=1)
    hits = sum(p.best == item.classname for p, item in zip(found, data.test, strict=True))
    test = classifier.run.record["results"]["test"]
    assert 100 * hits / len(found) == pytest.approx(test["accuracy"])
    # The confidences, too, at the temperature of the run's validation images:
    mean = np.mean([p.probabilities[0] for p in found])
    assert abs(100 * (mean - hits / len(found))) <= (test["ece_scaled"] or test["ece"]) + 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_new_class_names_are_what_an_evaluation_on_new_classes_is(runs, name, own, tmp_path):
    model = ["--model-dir", runs[name]] if name != "ZeroshotCLIP" else []
    new = ["DATASET.SUBSAMPLE_CLASSES", "new"]
    with silent():
        out = train(tmp_path / "new", name, METHODS[name], "--eval-only", *model, *own, *new)
    classifier = npt.load(runs[name])
    data = data_of(classifier, SUBSAMPLE_CLASSES="new")
    other = classifier.with_classes(data.classnames)
    found = other.predict([item.impath for item in data.test], k=1)
    hits = sum(p.best == item.classname for p, item in zip(found, data.test, strict=True))
    record = json.loads((out / "result.json").read_text())
    assert 100 * hits / len(found) == pytest.approx(record["results"]["test"]["accuracy"])
    evaluation = npt.load(out)  # the folder of that test has the same classifier
    assert evaluation.classes == list(data.classnames)
    path = data.test[0].impath
    assert torch.allclose(evaluation.logits(path), other.logits(path))


def test_an_image_is_the_same_in_every_form(classifier, images):
    path = next(path for path in images if path.suffix == ".png")
    picture = Image.open(path).convert("RGB")
    array = np.array(picture)
    forms = [
        path, str(path), picture, array, array / 255.0,
        (array / 255).astype(np.float32), array.astype(np.uint16) * 257,
        torch.from_numpy(array).permute(2, 0, 1), torch.from_numpy(array / 255.0).permute(2, 0, 1),
    ]  # fmt: skip
    reference = classifier.logits(path)
    assert reference.shape == (1, len(classifier.classes))
    for form in forms:
        assert torch.equal(classifier.logits(form), reference)
        assert classifier.predict(form) == classifier.predict(path)
    together = classifier.logits(forms)
    assert torch.allclose(together, reference.expand(len(forms), -1), atol=1e-4)


def test_grey_pictures_and_batches_of_arrays(classifier, images):
    grey = np.array(Image.open(images[0]).convert("L"))
    rgb = np.stack([grey] * 3, -1)
    for form in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert torch.equal(classifier.logits(form), classifier.logits(rgb))
    several = np.stack([rgb, 255 - rgb])
    assert len(classifier.predict(several)) == 2
    assert torch.equal(classifier.logits(torch.from_numpy(several).permute(0, 3, 1, 2)),
                       classifier.logits(several))  # fmt: skip


@pytest.mark.parametrize(
    "image, words",
    [
        (np.zeros((3, 8, 8)), "(H, W, 3)"),
        (torch.zeros(8, 8, 3), "(C, H, W)"),
        (np.full((8, 8, 3), 2.0), "uint8"),
        (np.full((8, 8, 3), 7), "int64"),
        (np.full((8, 8, 3), np.nan), "no numbers"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.array([["a"]]), "uint8"),
        ([5], "no image"),
        (None, "no image"),
        ("no/such.jpg", "no/such.jpg"),
    ],
)
def test_what_is_no_image_is_named(classifier, image, words):
    with pytest.raises(NPTError) as caught:
        classifier.predict(image)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_shapes_and_lengths(runs, images):
    for name, run in runs.items():
        classifier = npt.load(run)
        k = len(classifier.classes)
        features = classifier.image_features(images)
        texts = classifier.texts_of(images[:2])
        assert texts.shape == (2, k, features.shape[1])
        ones = torch.ones(())
        assert torch.allclose(features.norm(dim=-1), ones)
        if name == "CoCoOp":
            assert classifier.depends_on_image
            with pytest.raises(NPTError, match="texts_of"):
                _ = classifier.text_features
        else:
            assert torch.allclose(texts[0], classifier.text_features, atol=1e-6)
            cosines = features @ classifier.text_features.T
            scale = classifier.logits(images) / cosines
            assert torch.allclose(scale, scale.mean(), rtol=1e-3)
        probabilities = classifier.probabilities(images)
        assert torch.allclose(probabilities.sum(-1), ones)
        (best,) = classifier.predict(images[:1], k=k + 5)
        assert sorted(best.classes) == sorted(classifier.classes)
        assert best.probabilities == sorted(best.probabilities, reverse=True)
        assert classifier.predict([]) == [] and classifier.logits([]).shape == (0, k)


def test_loading_leaves_the_random_state(runs):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    npt.load(runs["MaPLeNPT"]).with_classes(["a", "b"])
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_names_the_weights_it_is_for(runs, tmp_path):
    """By a checksum, also of a CLIP with a name: other weights under that name give a warning."""
    from npt.trainers import checkpoints

    run = shutil.copytree(runs["MaPLeNPT"], tmp_path / "run")
    path = npt.load(run).run.checkpoint()[1]
    saved = checkpoints.read(path)
    assert len(saved["backbone_file"]) == 64
    torch.save({**saved, "backbone_file": "0" * 64}, path)
    with pytest.warns(UserWarning, match="another file under the name tiny"):
        npt.load(run)


def test_a_run_works_from_another_place(runs, images, tmp_path):
    """The folder is all that is needed: no data, and no path of the training."""
    moved = shutil.copytree(runs["MaPLeNPT"], tmp_path / "moved")
    record = json.loads((moved / "result.json").read_text())
    assert npt.load(moved).predict(images) == npt.load(runs["MaPLeNPT"]).predict(images)
    assert record["classnames"] == npt.load(moved).classes


def test_class_specific_contexts_are_for_their_classes(tmp_path, own, images):
    with silent():
        specific = ["TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", ""]
        run = train(tmp_path / "csc", "CoOp", "CoOp", *own, *specific)
    classifier = npt.load(run)
    assert classifier.predict(images[0], k=1).best in classifier.classes
    with pytest.raises(NPTError, match="other classes"):
        classifier.with_classes(list(CLASSES)[::-1])


@pytest.mark.parametrize(
    "names, words",
    [([], "no class"), (["a", "  "], "empty"), ("dog", "list of names"), ([1, 2], "text")],
)
def test_class_names_must_be_names(classifier, names, words):
    with pytest.raises(NPTError, match=words):
        classifier.with_classes(names)


def break_model(run):
    shutil.rmtree(run / "MultiModalPromptLearner")


def break_record(run):
    (run / "result.json").write_text("{")


def no_record(run):
    (run / "result.json").unlink()


def damage_weights(run):
    path = next(run.glob("MultiModalPromptLearner/model*"))
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "change, words",
    [
        (break_model, "no model"),
        (break_record, "result.json"),
        (no_record, "no result.json"),
        (damage_weights, "damaged"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_run_that_cannot_be_used_says_why(runs, tmp_path, change, words):
    run = shutil.copytree(runs["MaPLeNPT"], tmp_path / "run")
    change(run)
    with pytest.raises(NPTError, match=words) as caught:
        npt.load(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry, value, words",
    [
        ("trainer", "KgCoOpNPT", "KgCoOpNPT"),
        ("config", {"OPTIM": {"NO_SUCH_KEY": 1}}, "NO_SUCH_KEY"),
        ("config", {"MODEL": {"BACKBONE": {"NAME": "/gone/clip.pt"}}}, "/gone/clip.pt"),
    ],
)
def test_a_record_of_elsewhere_is_refused(runs, tmp_path, entry, value, words):
    from npt import files

    run = shutil.copytree(runs["MaPLeNPT"], tmp_path / "run")
    record = json.loads((run / "result.json").read_text())
    files.write_record(run / "result.json", {**record, entry: value})
    with pytest.raises(NPTError, match=words):
        npt.load(run)


@pytest.mark.parametrize("key", ["trainer", "dataset", "config", "classnames"])
def test_a_record_without_an_entry_is_refused(runs, tmp_path, key):
    copy = shutil.copytree(runs["MaPLeNPT"], tmp_path / "copy")
    record = json.loads((copy / "result.json").read_text())
    for value in ([], None, 3):
        files.write_record(copy / "result.json", {**record, key: value})
        with pytest.raises(NPTError, match=f"has no {key}"):
            npt.load(copy)


@pytest.mark.parametrize("device", ["none", "cuda:99"])
def test_a_device_that_is_not_here_is_a_sentence(runs, device):
    with pytest.raises(NPTError, match=f"device {device}"):
        npt.load(runs["MaPLeNPT"], device=device)


@pytest.mark.parametrize("k", [0, 1.5, "3", None])
def test_k_is_a_number_of_classes(classifier, images, k):
    with pytest.raises(NPTError, match="k is"):
        classifier.predict(images[0], k)


def test_threads_can_share_a_classifier_and_make_others(classifier, images, capsys):
    """Building silences the output of the process, which one thread at a time can do."""
    names = [["a dog", "a cat"], ["the sea", "a mountain"]] * 8
    with ThreadPoolExecutor(4) as pool:
        others = list(pool.map(classifier.with_classes, names))
        found = list(pool.map(lambda other: other.logits(images[0]), others))
    assert all(torch.equal(x, found[n % 2]) for n, x in enumerate(found))
    print("still open")
    assert "still open" in capsys.readouterr().out
