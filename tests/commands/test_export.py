"""`npt export`: what other programs compute from its files is what the classifier computes."""

import json
import re
import resource
import runpy
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from clip.model import CLIP
from own_images import make_images
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from saved_runs import saved_run

import npt
from npt.__main__ import main
from npt.commands import export as command
from npt.export import FORMATS, default_formats, export, onnx
from npt.losses import unit_rows

NAMES = ["red apple", "blue_sky", "grey stone", "leaf"]
STRANGE = ['the "big" one', "two\nlines", "naïve 猫 😀", "back\\slash"]
METHODS = {
    "MaPLe": [],
    "CoCoOp": [],
    "CoOp": ["TRAINER.COOP.N_CTX", 4],
    "CoOp-CSC": [
        *("TRAINER.COOP.CSC", True, "TRAINER.COOP.N_CTX", 4),
        *("TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
    ],
    "ZeroshotCLIP": [],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Method -> the folder of a run of it."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: saved_run(folder / name, name.split("-")[0], NAMES, *pairs, temperature=1.7)
        for name, pairs in METHODS.items()
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of several shapes and kinds, high, wide, small and grey among them."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    sizes = [(32, 32), (45, 77), (90, 33), (33, 32), (200, 131), (20, 9), (47, 46), (64, 63)]
    files = []
    for number, (height, width) in enumerate(sizes):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height))
        image = image.convert("L") if number == 3 else image
        files.append(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
        image.save(files[-1])
    return files


def loaded(run):
    return npt.load(run, device="cpu")


def read(out):
    return json.loads((out / "classifier.json").read_text())


def left(out):
    return sorted(path.name for path in out.iterdir()) if out.exists() else None


@pytest.fixture
def run_npt(capsys):
    """Run `npt export`; returns exit code, output and what it says on stderr."""

    def call(*words):
        capsys.readouterr()
        try:
            code = main(["export", *map(str, words)])
        except SystemExit as stop:  # of argparse
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


# --------------------------------------------------------------------------- ONNX
@pytest.mark.parametrize("name", METHODS)
def test_the_onnx_file_classifies_as_the_run_does(runs, pictures, tmp_path, name):
    classifier = loaded(runs[name])
    content = export(classifier, tmp_path / "out", default_formats(classifier))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    features, logits = classifier.image_features(pictures), classifier.logits(pictures)
    expected = [features, logits, classifier.probabilities(pictures)]
    for count in (1, 3, len(pictures)):
        batch = classifier.preprocess(pictures[:count]).numpy()
        found = session.run(content["onnx"]["outputs"], {"images": batch})
        for values, true, tolerance in zip(found, expected, (1e-5, 1e-3, 1e-4), strict=True):
            np.testing.assert_allclose(values, true[:count], atol=tolerance)
    written = read(tmp_path / "out")
    assert written["classes"] == NAMES and written["temperature"] == 1.7
    assert max(written["onnx"]["check"]["largest_differences"].values()) < 1e-4
    assert left(tmp_path / "out") == sorted([*written["files"], "classifier.json"])
    assert ("class_features.safetensors" in written["files"]) != (name == "CoCoOp")


@pytest.mark.parametrize("upright", [True, False])
def test_the_documented_script_agrees_with_npt(
    repository, pictures, tmp_path, capsys, monkeypatch, upright
):
    """Also for a photo that its camera has noted as turned."""
    pairs = ["INPUT.EXIF_ROTATE", upright]
    run = saved_run(tmp_path / "run", "MaPLe", NAMES, *pairs, temperature=0.6)
    classifier = loaded(run)
    export(classifier, tmp_path / "out", ["onnx"])
    photo, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.open(pictures[1]).convert("RGB").save(photo, exif=exif)
    text = (repository / "docs" / "export.md").read_text(encoding="utf-8")
    block = re.search(r"^```python file=classify.py\n(.*?)^```$", text, re.M | re.S)[1]
    assert re.findall(r"^(?:import|from) (\w+)", block, re.M) == [
        "json", "sys", "numpy", "onnxruntime", "PIL",
    ]  # fmt: skip
    (tmp_path / "classify.py").write_text(block)
    for file in (*pictures, photo):
        monkeypatch.setattr(sys, "argv", ["classify.py", str(tmp_path / "out"), str(file)])
        capsys.readouterr()
        runpy.run_path(str(tmp_path / "classify.py"), run_name="__main__")
        name, probability = capsys.readouterr().out.rsplit(maxsplit=1)
        best = classifier.predict(file, k=1)
        assert name == best.best
        assert float(probability) == pytest.approx(best.probabilities[0], abs=1e-4)


def test_weights_of_a_large_graph_lie_beside_it(runs, pictures, tmp_path, monkeypatch):
    classifier, out = loaded(runs["MaPLe"]), tmp_path / "out"
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    content = export(classifier, out, ["onnx", "safetensors"])
    assert set(content["files"]) == {
        "model.onnx", "model.onnx.data", "class_features.safetensors",
    }  # fmt: skip
    assert (out / "model.onnx").stat().st_size < (out / "model.onnx.data").stat().st_size
    session = onnxruntime.InferenceSession(out / "model.onnx")
    found = session.run(["logits"], {"images": classifier.preprocess(pictures).numpy()})[0]
    np.testing.assert_allclose(found, classifier.logits(pictures), atol=1e-3)
    monkeypatch.undo()
    export(classifier, out, ["onnx"])  # what this one does not have is gone
    assert left(out) == ["classifier.json", "model.onnx"]


def test_it_is_checked_on_the_runs_own_images_if_they_are_here(tmp_path):
    images = make_images(tmp_path / "images")
    names = sorted(folder.name.replace("_", " ") for folder in images.iterdir())
    run = saved_run(tmp_path / "run", "CoOp", names, "DATASET.ROOT", str(images))
    checked = export(loaded(run), tmp_path / "a", ["onnx"])["onnx"]["check"]
    assert checked["images"] == "10 test images" and checked["batches"] == [1, 2, 7]
    images.rename(tmp_path / "moved")
    checked = export(loaded(run), tmp_path / "b", ["onnx"])["onnx"]["check"]
    assert checked["images"] == "10 generated images"


def state_of(folder, vision_layers, width, patch, embed, seed=0):
    """A file with the random weights of a CLIP of OpenAI's shapes, with two layers of text."""
    torch.manual_seed(seed)
    model = CLIP(embed, 224, vision_layers, width, patch, 77, 49408, 512, 8, 2)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running" in name:
                value.uniform_(0.5, 1.5)
    path = folder / "clip.pt"
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["CoCoOp", "MaPLe", "CoOp"])
def test_backbones_of_openais_shapes(tmp_path, trainer):
    """Of ViT-B/32 for MaPLe and CoCoOp, of RN50 for CoOp; fewer layers."""
    shape = ((1, 1, 1, 1), 64, None, 1024) if trainer == "CoOp" else (3, 768, 32, 512)
    backbone = state_of(tmp_path, *shape)
    size = ["INPUT.SIZE", (224, 224)]
    run = saved_run(tmp_path / "run", trainer, NAMES, *size, backbone=backbone)
    content = export(loaded(run), tmp_path / "out", ["onnx"])
    assert content["onnx"]["check"]["largest_differences"]["image_features"] < 1e-5
    assert content["onnx"]["check"]["largest_differences"]["logits"] < 1e-3
    assert content["backbone"]["file"] == backbone and len(content["backbone"]["sha256"]) == 64


# --------------------------------------------------------------------------- safetensors
@pytest.mark.parametrize("name", ["MaPLe", "CoOp-CSC", "ZeroshotCLIP"])
def test_class_features(runs, tmp_path, name):
    classifier = loaded(runs[name])
    export(classifier, tmp_path, ["safetensors"])
    assert left(tmp_path) == ["class_features.safetensors", "classifier.json"]
    features = load_file(tmp_path / "class_features.safetensors")["class_features"]
    assert features.dtype == torch.float32 and torch.equal(features, classifier.text_features)
    with safe_open(tmp_path / "class_features.safetensors", "pt") as file:
        about = file.metadata()
    assert json.loads(about["classes"]) == NAMES
    assert float(about["temperature"]) == 1.7
    assert float(about["scale"]) == pytest.approx(100, rel=0.01)


def test_class_names_of_any_characters(tmp_path):
    classifier = loaded(saved_run(tmp_path / "run", "CoOp", STRANGE))
    out = tmp_path / "out"
    export(classifier, out, ["onnx", "safetensors"])
    assert read(out)["classes"] == STRANGE
    with safe_open(out / "class_features.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == STRANGE


# --------------------------------------------------------------------------- prompts
def inserted(tensors):
    """The hook of the documentation: a text encoder's word embeddings with the context in them."""

    def insert(module, inputs, output):
        if "context" not in tensors:
            return output
        places = tensors["positions"].unsqueeze(-1).expand(-1, -1, output.shape[-1])
        return output.scatter(1, places, tensors["context"].expand(*places.shape))

    return insert


@pytest.mark.parametrize("name", ["CoOp", "CoOp-CSC", "ZeroshotCLIP"])
def test_prompts_in_openais_clip_give_the_class_features(runs, tmp_path, name):
    classifier = loaded(runs[name])
    export(classifier, tmp_path, ["prompts"])
    tensors = load_file(tmp_path / "prompts.safetensors")
    with torch.no_grad():
        classifier.clip_model.token_embedding.register_forward_hook(inserted(tensors))
        found = unit_rows(classifier.clip_model.encode_text(tensors["token_ids"]))
    assert torch.allclose(found, classifier.text_features, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["transformers", "open_clip"])
@pytest.mark.parametrize("name", ["CoOp", "CoOp-CSC", "ZeroshotCLIP"])
def test_prompts_in_other_libraries_as_documented(repository, runs, tmp_path, name, library):
    pytest.importorskip(library)
    from other_clips import in_library

    classifier, out = loaded(runs[name]), tmp_path / "out"
    export(classifier, out, ["prompts", "safetensors"])
    text = (repository / "docs" / "export.md").read_text(encoding="utf-8")
    block = re.search(rf"^```python file={library}.py\n(.*?)^```$", text, re.M | re.S)[1]
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    names = {"folder": str(out), "images": images}
    names["model"] = in_library(library, classifier.clip_model)
    with torch.no_grad():
        exec(block, names)
        expected = classifier.encode_batch(images)
    assert torch.allclose(names["class_features"], classifier.text_features, atol=1e-5)
    assert torch.allclose(names["image_features"], expected.images, atol=1e-5)
    true = (expected.logits / classifier.temperature).softmax(-1)
    assert torch.allclose(names["probabilities"], true, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("CoCoOp", "safetensors", "other class features for every image"),
        ("CoCoOp", "prompts", "another context for every image"),
        ("MaPLe", "prompts", "prompts in the image encoder"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(runs, tmp_path, run_npt, name, kind, why):
    code, _, error = run_npt(runs[name], tmp_path / "a" / "out", "--format", "onnx", kind)
    assert code == 2 and name in error and why in error and "--format onnx" in error
    assert len(error.splitlines()) == 1
    assert left(tmp_path) == []


# --------------------------------------------------------------------------- the command
def test_the_command_says_what_it_wrote(runs, tmp_path, run_npt):
    code, output, error = run_npt(runs["MaPLe"], tmp_path / "out")
    assert (code, error) == (0, "")
    assert "MaPLe, CLIP tiny, 4 classes, in float32" in output
    assert "model.onnx" in output and "class_features.safetensors" in output
    assert re.search(r"largest difference \d\.\de-\d\d in image_features", output)
    assert set(command.FORMATS) == set(FORMATS)


def test_other_classes(runs, tmp_path, run_npt):
    (tmp_path / "classes.txt").write_text("cat\nhouse boat\n", encoding="utf-8")
    words = ["--classes", tmp_path / "classes.txt", "--format", "safetensors"]
    assert run_npt(runs["MaPLe"], tmp_path / "out", *words)[0] == 0
    content = read(tmp_path / "out")
    assert content["classes"] == ["cat", "house boat"] and content["temperature"] == 1
    features = load_file(tmp_path / "out" / "class_features.safetensors")["class_features"]
    expected = loaded(runs["MaPLe"]).with_classes(["cat", "house boat"]).text_features
    assert torch.equal(features, expected)


def test_a_run_without_a_model_and_a_folder_without_a_run(tmp_path, run_npt):
    run = saved_run(tmp_path / "run", "CoOp", NAMES)
    next(run.glob("prompt_learner/model.pth*")).unlink()
    for place, said in ((run, "no model"), (tmp_path, "result.json"), ("nowhere", "not a folder")):
        code, _, error = run_npt(place, tmp_path / "out")
        assert code == 2 and said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_out_that_is_no_place_for_an_export(runs, tmp_path, run_npt):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "class_features.safetensors").write_text("of somebody else")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "classifier.json").write_text('{"a": 1}')
    for out, said in (
        ("file", "is a file"),
        ("file/below", "cannot be written"),
        ("full", "not of an export"),
        ("json", "not, or no longer"),
    ):
        code, _, error = run_npt(runs["CoOp"], tmp_path / out, "--format", "safetensors")
        assert code == 2 and said in error and len(error.splitlines()) == 1
    assert (tmp_path / "full" / "class_features.safetensors").read_text() == "of somebody else"
    assert left(tmp_path) == ["file", "full", "json"]


def test_a_failed_export_leaves_the_earlier_one(runs, tmp_path, run_npt, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert run_npt(runs["MaPLe"], out)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    monkeypatch.setitem(onnx.TOLERANCES, "logits", -1.0)
    code, _, error = run_npt(runs["CoOp"], out)
    assert code == 2 and "its logits differ" in error and len(error.splitlines()) == 1
    assert run_npt(runs["CoOp"], tmp_path / "new" / "out")[0] == 2
    monkeypatch.undo()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as on a full disk
    try:
        code, _, error = run_npt(runs["CoOp"], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "model.onnx cannot be written" in error and "free space" in error

    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    code, _, error = run_npt(runs["CoOp"], out)
    assert code == 2 and "npt-clip[export]" in error and len(error.splitlines()) == 1
    monkeypatch.undo()

    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert left(tmp_path) == ["out"]
    assert run_npt(runs["CoOp"], out)[0] == 0
    assert read(out)["run"]["trainer"] == "CoOp" and (out / "notes.txt").read_text() == "mine"


def test_ctrl_c_leaves_nothing(runs, tmp_path, run_npt, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx, "check", stop)
    code, _, error = run_npt(runs["MaPLe"], tmp_path / "out")
    assert (code, error) == (130, "interrupted\n") and left(tmp_path) == []
