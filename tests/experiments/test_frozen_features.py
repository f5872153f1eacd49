"""Image features that are computed once: the figures are the same to the last digit."""

import json
import os
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import npt  # noqa: F401  makes dassl importable
from dassl.utils import set_random_seed
from npt.backbones.kept import clip_kept
from npt.experiments import forecast, state
from npt.experiments.plan import Part
from npt.experiments.reading import load_experiment
from npt.experiments.running import frozen, pool
from npt.experiments.running.frozen import FrozenLoader, keep_features, tensor_digest
from npt.flags import parse_args, setup_cfg
from npt.randomness import RandomState
from npt.results import readable
from npt.session import build

KINDS = ("ZeroshotCLIP", "CoOp", "CoOpNPT", "CoCoOp", "CoCoOpNPT")
WORKER = ("DATALOADER.NUM_WORKERS", 1, "DATALOADER.TEST.BATCH_SIZE", 33)
FEW = ["DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1]


def made(kind, output, classes="base", opts=()):
    """A trainer on mini_flowers, built as a run of seed 1."""
    folder = kind.removesuffix("NPT")
    argv = ["--trainer", kind, "--config-file", f"configs/trainers/{folder}/tiny.yaml"]
    argv += ["--dataset-config-file", "configs/datasets/mini_flowers.yaml", "--seed", "1"]
    argv += ["--output-dir", output, "DATASET.SUBSAMPLE_CLASSES", classes, *FEW, *opts]
    cfg = setup_cfg(parse_args([str(x) for x in argv]))
    set_random_seed(1)
    with clip_kept():
        return build(cfg)


def figures(trainer):
    """All that is recorded after a training and two tests, and the random state."""
    trainer.train()
    trainer.test("val")
    trainer.test("test")
    for split in trainer.results.values():
        split.pop("seconds")
    random = RandomState.now()
    rest = (trainer._measure_per_class, trainer._measure_confusion, trainer.training_figures())
    collected = trainer.collect("test")
    tensors = (collected.image, collected.text, collected.labels, random.torch)
    return trainer.results, *rest, [x.tolist() for x in tensors], random.python


def files(folder):
    return sorted(folder.glob("*")) if folder.is_dir() else []


@pytest.mark.parametrize(
    "kind, classes, opts",
    [
        *((kind, "base", ()) for kind in KINDS),
        ("CoOpNPT", "new", ("TEST.FINAL_MODEL", "best_val")),
        pytest.param("CoOp", "all", ("MODEL.PLAIN_ENCODERS", True), marks=pytest.mark.long),
        pytest.param("CoOp", "base", WORKER, marks=pytest.mark.slow),
    ],
)
def test_figures_are_the_same_to_the_last_digit(kind, classes, opts, tmp_path, monkeypatch):
    folder = tmp_path / "features"
    expected = figures(made(kind, tmp_path / "without", classes, opts))
    storing = keep_features(made(kind, tmp_path / "storing", classes, opts), folder)
    assert isinstance(storing.test_loader, FrozenLoader)
    assert isinstance(storing.val_loader, FrozenLoader)
    assert figures(storing) == expected
    before = {path: path.stat().st_mtime_ns for path in files(folder)}
    assert len(before) == 2  # validation and test
    reading = keep_features(made(kind, tmp_path / "reading", classes, opts), folder)
    monkeypatch.setattr(frozen, "_verified", set())
    assert figures(reading) == expected
    assert {path: path.stat().st_mtime_ns for path in files(folder)} == before


def test_methods_share_the_features_and_read_no_image(tmp_path, monkeypatch):
    folder = tmp_path / "features"
    keep_features(made("ZeroshotCLIP", tmp_path / "a"), folder).test("test")
    (file,) = files(folder)
    trainer = keep_features(made("CoCoOpNPT", tmp_path / "b"), folder)
    reads = []
    read = type(trainer.test_loader.loader.dataset).read
    monkeypatch.setattr(
        type(trainer.test_loader.loader.dataset),
        "read",
        lambda self, path: reads.append(path) or read(self, path),
    )
    for batches in (1, 0):  # the bits of one batch are compared, once for a process
        reads.clear()
        trainer.test("test")
        assert len(reads) <= batches * trainer.cfg.DATALOADER.TEST.BATCH_SIZE
    assert files(folder) == [file]


def test_trained_image_prompts_never_use_them(tmp_path):
    for kind in ("MaPLe", "MaPLeNPT"):
        plain = made(kind, tmp_path / kind)
        loaders, encoder = (plain.val_loader, plain.test_loader), plain.model.image_encoder
        trainer = keep_features(plain, tmp_path / "features")
        assert (trainer.val_loader, trainer.test_loader) == loaders
        assert trainer.model.image_encoder is encoder


# ---- what a file is used for


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory):
    """A tested trainer, and its file of features."""
    folder = tmp_path_factory.mktemp("zero_shot")
    trainer = keep_features(made("ZeroshotCLIP", folder / "run"), folder / "features")
    trainer.test("test")
    (file,) = files(folder / "features")
    return trainer, file


def other(trainer, **changed):
    """The trainer's loader of test images, with changed attributes."""
    old = trainer.test_loader
    kept = {name: getattr(old, name) for name in ("loader", "encoder", "settings", "folder")}
    return FrozenLoader(**{**kept, **changed})


def features_of(loader):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        return torch.cat([batch["img"] for batch in loader])


def test_the_key_is_all_that_features_depend_on(zero_shot, tmp_path):
    trainer, _ = zero_shot
    key = trainer.test_loader.key
    assert key == other(trainer).key
    keys = {key}
    settings = trainer.test_loader.settings
    for changed in ({"weights": "x"}, {"device": "x"}, {"threads": 7}, {"versions": "x"}):
        keys.add(other(trainer, settings=replace(settings, **changed)).key)
    for opts in (
        ("DATALOADER.TEST.BATCH_SIZE", 50),
        ("INPUT.INTERPOLATION", "bilinear"),
        ("INPUT.PIXEL_MEAN", [0.5, 0.5, 0.5]),
        ("DATASET.SUBSAMPLE_CLASSES", "new"),
        ("MODEL.PLAIN_ENCODERS", True),
    ):
        changed = made("ZeroshotCLIP", tmp_path / "other", opts=opts)
        keys.add(keep_features(changed, tmp_path / "features").test_loader.key)
    assert len(keys) == 10
    encoder = made("ZeroshotCLIP", tmp_path / "other").model.image_encoder
    with torch.no_grad():
        encoder.visual.proj[0, 0] += 1e-6
    assert frozen.Settings.of(encoder) != settings


def test_an_image_that_changed_or_is_gone(zero_shot):
    trainer, _ = zero_shot
    item = trainer.dm.dataset.test[0]
    key, before = trainer.test_loader.key, os.stat(item.impath)
    try:
        os.utime(item.impath, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
        assert other(trainer).key not in (key, None)
        os.rename(item.impath, item.impath + ".gone")
        with pytest.raises(Exception, match=os.path.basename(item.impath)):
            features_of(other(trainer))
    finally:
        os.rename(item.impath + ".gone", item.impath)
        os.utime(item.impath, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert other(trainer).key == key


def damaged(file):
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def another(change):
    """The file with changed features and the right checksum, or with other metadata."""

    def write(file):
        with safe_open(str(file), "pt") as opened:
            features, about = opened.get_tensor("features"), opened.metadata()
        features, about = change(features.clone(), about)
        save_file({"features": features}, file, about)

    return write


def shifted(features, about):
    features = torch.nextafter(features, torch.tensor(9.0))
    return features, {**about, "sha256": tensor_digest(features)}


def shortened(features, about):
    features = features[:-1].clone()
    return features, {**about, "sha256": tensor_digest(features)}


BAD = {
    "a bit": damaged,
    "its end": lambda file: os.truncate(file, file.stat().st_size - 50),
    "all": lambda file: os.truncate(file, 0),
    "text": lambda file: file.write_text("hello"),
    "other settings": another(lambda features, about: (features, {**about, "key": "x"})),
    "no metadata": another(lambda features, about: (features, None)),
    "another computer": another(shifted),
    "fewer images": another(shortened),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_computed_again(kind, zero_shot, monkeypatch):
    trainer, file = zero_shot
    expected = features_of(other(trainer))
    BAD[kind](file)
    monkeypatch.setattr(frozen, "_verified", set())
    with pytest.warns(UserWarning, match="the image features are computed again") as told:
        assert torch.equal(torch.cat([b["img"] for b in other(trainer)]), expected)
    assert len(told) == 1 and str(file) in str(told[0].message)
    assert torch.equal(features_of(other(trainer)), expected)  # without a warning


def test_a_pipe_does_not_hang(zero_shot, tmp_path):
    trainer, file = zero_shot
    loader = other(trainer, folder=tmp_path)
    os.mkfifo(tmp_path / file.name)
    with pytest.warns(UserWarning, match="it is not a file"):
        list(loader)
    assert (tmp_path / file.name).is_file()


def test_a_disk_that_cannot_be_written(zero_shot, tmp_path):
    trainer, _ = zero_shot
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="Image features are not kept: .*file"):
        found = torch.cat([b["img"] for b in other(trainer, folder=tmp_path / "file")])
    assert torch.equal(found, features_of(other(trainer)))


def test_a_test_that_does_not_end_stores_nothing(zero_shot, tmp_path):
    trainer, _ = zero_shot
    batches = iter(other(trainer, folder=tmp_path))
    next(batches)
    batches.close()
    assert files(tmp_path) == []


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    trainer = made("ZeroshotCLIP", tmp_path)
    with pytest.warns(UserWarning, match="pip install"):
        assert not isinstance(keep_features(trainer, tmp_path).test_loader, FrozenLoader)


@pytest.mark.long
def test_workers_at_once(tmp_path):
    """They may compute the same features, and both write them."""
    trainers = {kind: {"config": f"configs/trainers/{kind}/tiny.yaml"} for kind in ("CoOp",)}
    content = {"trainers": trainers, "datasets": ["mini_flowers"], "seeds": [1, 2], "shots": 2}
    (tmp_path / "some.yaml").write_text(json.dumps({**content, "opts": {"OPTIM.MAX_EPOCH": 1}}))

    def executed(out, jobs):
        runs = load_experiment(tmp_path / "some.yaml").runs(out)
        assert all(o.error is None for o in pool.execute(runs, jobs))
        assert all(map(state.is_complete, runs))
        records = [readable(run.output(e)) for run in runs for e in run.evaluations]
        for record in records:
            record["results"]["test"].pop("seconds")
        return [(record["results"], record["per_class"]) for record in records]

    assert executed(tmp_path / "two", 2) == executed(tmp_path / "one", 1)
    names = [
        {path.name for path in files(tmp_path / out / "image_features")} for out in ("one", "two")
    ]
    assert names[0] == names[1] and len(names[0]) == 4  # val and test, of base and new


def test_the_forecast_counts_the_images_of_a_frozen_encoder_once(tmp_path):
    costs = forecast.read_costs("configs/experiments/mini")
    costs = replace(costs, start=0.0, step=0.0, prompt=0.0, image=1.0)
    trainers = {
        kind: {"config": f"configs/trainers/{kind}/tiny.yaml"} for kind in ("CoOp", "MaPLe")
    }
    runs = Part(trainers, ("mini_flowers",), seeds=(1, 2)).runs(tmp_path)
    assert [run.trainer for run in runs] == ["CoOp", "MaPLe"] * 2
    assert forecast.remaining(runs, costs) == [720, 720, 0, 720]
