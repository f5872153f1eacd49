"""What a test measures and what `result.json` says, on trainers run by the engine itself."""

import json
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import npt
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from npt.calibration import expected_calibration_error, fit_temperature
from npt.errors import NPTError
from npt.files import read_record, write_record
from npt.geometry import (
    language_collapse_degree,
    multimodal_isomorphism_degree,
    neural_collapse_metrics,
)
from npt.host.features import FeatureTap
from npt.measure import Measured, Recorder, apart, random_state_kept
from npt.results import confusion_matrix, print_classes, print_results
from npt.terms import Run

NAMES = ["oak", "elm", "ash", "fir"]
TRAIN = [9, 4, 2, 1]  # images a class: n = 9, so few <= 2.08 and medium <= 4.33


class MeasuredImages(DatasetBase):
    """Coloured noise of four classes, written where DATASET.ROOT says."""

    def __init__(self, cfg):
        rng = np.random.default_rng(0)

        def items(part, counts):
            out = []
            for label, count in enumerate(counts):
                for i in range(count):
                    path = f"{cfg.DATASET.ROOT}/{part}_{label}_{i}.png"
                    pixels = rng.integers(0, 128, (8, 8, 3)) + np.array([40, 15, 5]) * label
                    Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(path)
                    out.append(Datum(path, label, 0, NAMES[label]))
            return out

        super().__init__(
            train_x=items("train", TRAIN),
            val=items("val", [2] * 4),
            test=items("test", [5, 3, 4, 2]),
        )


class Table(nn.Module):
    def __init__(self, k, d):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(k, d))

    def forward(self, image=None):
        if image is None:
            return self.rows
        return self.rows * (1 + image.mean())  # depends on the image, as in CoCoOp


class Towers(nn.Module):
    def __init__(self, k, per_image=False, encoders=True):
        super().__init__()
        self.per_image = per_image
        self.image_encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
        self.text_encoder = Table(k, 6)
        if not encoders:
            self.visual, self.words = self.image_encoder, self.text_encoder
            del self.image_encoder, self.text_encoder

    def forward(self, image):
        visual = self.image_encoder if hasattr(self, "image_encoder") else self.visual
        words = self.text_encoder if hasattr(self, "text_encoder") else self.words
        z = F.normalize(visual(image), dim=-1)
        if self.per_image:
            texts = [F.normalize(words(x), dim=-1) for x in z]
            return torch.stack([10 * g @ row for g, row in zip(texts, z, strict=True)])
        return 10 * z @ F.normalize(words(), dim=-1).T


class MeasuredHost(TrainerX):
    """A trainer that knows nothing of measures, with its own ways of inference."""

    per_image = False
    encoders = True

    def build_model(self):
        torch.manual_seed(3)
        self.model = Towers(self.num_classes, self.per_image, self.encoders)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("towers", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        loss = F.cross_entropy(self.model(batch["img"]), batch["label"])
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def model_inference(self, input):
        return self.model(input)


class Watched(Measured, MeasuredHost):
    pass


class WatchedFromBelow(MeasuredHost, Measured, TrainerX):
    """The host's methods come before ours, as in this package's own trainers."""


class WatchedPerImage(Watched):
    per_image = True


class WatchedWithoutEncoders(Watched):
    encoders = False


for registry, cls in [
    (DATASET_REGISTRY, MeasuredImages),
    (TRAINER_REGISTRY, MeasuredHost),
    (TRAINER_REGISTRY, Watched),
    (TRAINER_REGISTRY, WatchedFromBelow),
    (TRAINER_REGISTRY, WatchedPerImage),
    (TRAINER_REGISTRY, WatchedWithoutEncoders),
]:
    if cls.__name__ not in registry.registered_names():
        registry.register(cls)


@pytest.fixture
def build(tmp_path):
    (tmp_path / "data").mkdir()

    def build(trainer="Watched", *pairs, out="out"):
        cfg = get_cfg_default()
        cfg.merge_from_list(
            [
                *("DATASET.ROOT", str(tmp_path / "data"), "DATASET.NAME", "MeasuredImages"),
                *("OUTPUT_DIR", str(tmp_path / out), "TRAINER.NAME", trainer, "SEED", 1),
                *("INPUT.SIZE", (8, 8), "DATALOADER.NUM_WORKERS", 0, "USE_CUDA", False),
                *("DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.TEST.BATCH_SIZE", 4),
                *("OPTIM.NAME", "sgd", "OPTIM.LR", 0.05, "OPTIM.MAX_EPOCH", 2),
                *pairs,
            ]
        )
        cfg.freeze()
        return build_trainer(cfg)

    return build


def result(trainer):
    with open(f"{trainer.cfg.OUTPUT_DIR}/result.json", encoding="utf-8") as file:
        return json.load(file)


@torch.no_grad()
def by_hand(trainer):
    """Features, texts of every image, labels and predictions of the test set, one by one."""
    rows = []
    for item in trainer.dm.test_loader.dataset:
        z = trainer.model.image_encoder(item["img"][None])[0]
        unit = F.normalize(z, dim=0)
        text = trainer.model.text_encoder(unit if trainer.model.per_image else None)
        guess = int((F.normalize(text, dim=-1) @ unit).argmax())
        rows.append((z, text, item["label"], guess))
    z, text, labels, guesses = zip(*rows, strict=True)
    return torch.stack(z), torch.stack(text), torch.tensor(labels), torch.tensor(guesses)


@torch.no_grad()
def scores(trainer, loader):
    """Logits and labels of a loader's images, one by one."""
    rows = [(trainer.model(x["img"][None])[0], x["label"]) for x in loader.dataset]
    return torch.stack([row[0] for row in rows]), torch.tensor([row[1] for row in rows])


def ece_by_hand(trainer, labels, temperature=1.0):
    return expected_calibration_error(
        scores(trainer, trainer.dm.test_loader)[0] / temperature, labels
    )


@pytest.mark.parametrize("name", ["Watched", "WatchedPerImage", "WatchedFromBelow"])
def test_every_measure_is_its_definition_over_the_whole_split(build, name):
    trainer = build(name)
    trainer.before_train()
    trainer.close_writer()
    returned = trainer.test()
    found = trainer.results["test"]
    z, text, labels, guesses = by_hand(trainer)
    hits = (labels == guesses).double()
    recall = [100 * float(hits[labels == k].mean()) for k in range(4)]
    assert found["accuracy"] == returned == pytest.approx(100 * float(hits.mean()))
    assert found["error_rate"] == pytest.approx(100 - found["accuracy"])
    assert found["class_mean_accuracy"] == pytest.approx(np.mean(recall))
    assert found["many"] == pytest.approx(recall[0])
    assert found["medium"] == pytest.approx(recall[1])
    assert found["few"] == pytest.approx((recall[2] + recall[3]) / 2)
    assert found["worst_class"] == min(recall)
    assert found["ece"] == pytest.approx(ece_by_hand(trainer, labels), abs=1e-4)
    assert found["temperature"] is None and found["ece_scaled"] is None
    lcd = language_collapse_degree(text)
    mid = multimodal_isomorphism_degree(z, text, labels)
    assert found["lcd"] == pytest.approx(float(lcd.signed), abs=1e-6)
    assert found["lcd_abs"] == pytest.approx(float(lcd.absolute), abs=1e-6)
    assert found["mid"] == pytest.approx(float(mid.signed), abs=1e-6)
    assert found["mid_abs"] == pytest.approx(-float(mid.signed), abs=1e-6)
    classifier = F.normalize(text, dim=-1).mean(0)
    nc = neural_collapse_metrics(F.normalize(z, dim=-1), labels, classifier)
    assert [found["nc1"], found["nc2"], found["nc3"]] == pytest.approx(
        [float(x) for x in nc], rel=1e-4
    )


def test_the_lines_follow_the_engine_s_block_and_leave_its_parsers_alone(build, capsys):
    trainer = build()
    capsys.readouterr()
    trainer.test()
    out = capsys.readouterr().out
    found = trainer.results["test"]
    block, ours = out.split("* class-mean accuracy: ")
    assert block.count("* accuracy:") == 1 and "* accuracy:" not in ours
    lines = ("* class-mean accuracy: " + ours).splitlines()
    assert lines[0].endswith(f"{found['class_mean_accuracy']:.1f}%")
    assert lines[1] == "* many/medium/few accuracy: - / - / -"  # nothing trained here
    worst, geometric, harmonic, ece = (
        f"{found[name]:.1f}%" for name in ("worst_class", "geometric_mean", "harmonic_mean", "ece")
    )
    assert lines[2].endswith(f"classes: {worst} / {geometric} / {harmonic}")
    assert lines[3] == f"* expected calibration error (ECE): {ece}"
    names = ("lcd", "lcd_abs", "mid", "mid_abs", "nc1", "nc2", "nc3")
    assert lines[4:] == [f"* {name}: {found[name]:.4f}" for name in names]


def test_no_new_line_is_taken_for_the_accuracy(build, capsys):
    """The family's parsers search each line; the last that matches wins."""
    trainer = build("Watched", "TEST.PER_CLASS_RESULT", True)
    trainer.train()
    block = capsys.readouterr().out.split("* many/medium/few accuracy")[-1].split("\n", 1)[1]
    assert "at temperature" in block and "train images" in block
    for keyword in ("accuracy", "error", "macro_f1"):
        assert not re.search(rf"{keyword}: ([\.\deE+-]+)%", block)


class TestEachClass:
    """What result.json says of single classes, beside the flat figures of a split."""

    @pytest.mark.parametrize("name", ["Watched", "WatchedPerImage"])
    def test_by_hand(self, build, name):
        trainer = build(name)
        trainer.before_train()
        trainer.close_writer()
        trainer.test()
        z, text, labels, guesses = by_hand(trainer)
        record = result(trainer)
        entries = record["per_class"]["test"]
        assert [entry["class"] for entry in entries] == NAMES
        assert [entry["train_count"] for entry in entries] == TRAIN
        assert [entry["images"] for entry in entries] == [5, 3, 4, 2]
        mean = F.normalize(F.normalize(text, dim=-1).mean(0), dim=-1).double().numpy()
        for label, entry in enumerate(entries):
            own = labels == label
            hits = (guesses[own] == label).double()
            assert entry["accuracy"] == pytest.approx(100 * float(hits.mean()))
            gaps = [abs(mean[label] @ mean[j] + 1 / 3) for j in range(4) if j != label]
            assert entry["lcd"] == pytest.approx(np.mean(gaps), abs=1e-6)
            cosines = F.cosine_similarity(z[own], text[own, label])
            assert entry["mid"] == pytest.approx(1 - float(cosines.mean()), abs=1e-6)
        figures = record["results"]["test"]
        assert all(isinstance(value, (float, type(None))) for value in figures.values())  # flat
        assert sum(e["mid"] * e["images"] for e in entries) / 14 == pytest.approx(
            figures["mid_abs"]
        )
        if name == "Watched":
            assert np.mean([e["lcd"] for e in entries]) == pytest.approx(figures["lcd_abs"])

    def test_confusion(self, build):
        trainer = build()
        trainer.test()
        _, _, labels, guesses = by_hand(trainer)
        expected = np.zeros((4, 4), dtype=int)
        for pair in zip(labels, guesses, strict=True):
            expected[pair] += 1
        record = result(trainer)
        assert len(record["confusion"]["test"]) == (expected > 0).sum()
        found = confusion_matrix(record)
        assert (found == expected).all() and found.sum() == 14
        with pytest.raises(NPTError, match=r'split "val" \(there are: test\)'):
            confusion_matrix(record, "val")

    def test_a_class_without_images_and_a_model_without_features(self):
        recorder = Recorder(None, Run(None))
        recorder.add(torch.eye(3)[[1, 1, 2]], torch.tensor([1, 1, 1]))
        first, second, third = recorder.per_class(["a", "b", "c"])
        nothing = {"train_count": None, "images": 0, "accuracy": None, "lcd": None, "mid": None}
        assert first == {"class": "a", **nothing} and third == {"class": "c", **nothing}
        assert second["images"] == 3 and second["accuracy"] == pytest.approx(200 / 3)
        assert recorder.confusion() == [[1, 1, 2], [1, 2, 1]]

    def test_mid_is_none_for_a_class_without_images_and_lcd_is_not(self):
        model = Towers(3)
        recorder = Recorder(FeatureTap(model), Run(None), [5, 0, 1])
        with recorder.recording():
            recorder.add(model(torch.randn(2, 3, 8, 8)), torch.tensor([1, 1]))
        entries = recorder.per_class(["a", "b", "c"])
        assert [entry["mid"] is None for entry in entries] == [True, False, True]
        assert all(entry["lcd"] is not None for entry in entries)

    def test_splits_of_earlier_processes_stay(self, build):
        trained = build()
        trained.train()
        evaluated(trained, "val")
        (record,) = evaluated(trained, "test")
        for entry in ("results", "per_class", "confusion"):
            assert set(record[entry]) == {"val", "test"}
        assert confusion_matrix(record, "val").sum() == 8

    def test_the_table_has_the_largest_classes_first(self, build, capsys):
        trainer = build("Watched", "TEST.PER_CLASS_RESULT", True)
        trainer.train_counts = [1, 9, 4, 2]
        capsys.readouterr()
        trainer.test()
        lines = capsys.readouterr().out.splitlines()
        start = next(i for i, line in enumerate(lines) if "train images" in line) + 2
        rows = [line.split() for line in lines[start:]]
        recall = [f"{e['accuracy']:.1f}" for e in result(trainer)["per_class"]["test"]]
        assert rows == [
            ["elm", "9", "3", recall[1]],
            ["ash", "4", "4", recall[2]],
            ["fir", "2", "2", recall[3]],
            ["oak", "1", "5", recall[0]],
        ]

    def test_the_table_is_printed_if_it_is_asked_for_only(self, build, capsys):
        build().test()
        assert "train images" not in capsys.readouterr().out
        entry = {"class": "1e3", "train_count": None, "images": 0, "accuracy": None}
        print_classes([entry])
        assert capsys.readouterr().out.splitlines()[-1].split() == ["1e3", "-", "0", "-"]


def test_a_run_leaves_a_result(build):
    trainer = build("Watched", "DATASET.IMBALANCE_RATIO", 1)
    trainer.train()
    record = result(trainer)
    assert record["trainer"] == "Watched" and record["dataset"] == "MeasuredImages"
    assert record["seed"] == 1 and record["classnames"] == NAMES
    assert record["train_counts"] == TRAIN
    assert record["train_summary"]["images"] == 16 and record["train_summary"]["largest"] == 9
    assert 0 < record["train_seconds"] < 60 and record["peak_memory_bytes"] > 1e6
    assert set(record["versions"]) == {"python", "torch", "clip", "npt", "engine"}
    assert record["versions"]["npt"] == npt.__version__
    assert record["config"]["OPTIM"]["LR"] == 0.05 and record["config"]["INPUT"]["SIZE"] == [8, 8]
    assert record["results"]["test"] == trainer.results["test"]
    assert all(isinstance(value, float) for value in record["results"]["test"].values())
    leftovers = [p.name for p in (trainer_dir(trainer)).iterdir() if "tmp" in p.name]
    assert not leftovers


def trainer_dir(trainer):
    from pathlib import Path

    return Path(trainer.cfg.OUTPUT_DIR)


def test_imbalance_reaches_a_host_s_data_set_and_the_counts(build, capsys):
    npt.put_in_place()  # again: thins no second time
    trainer = build("Watched", "DATASET.IMBALANCE_RATIO", 0.05)
    line = "Imbalance ratio 0.05 (label order): 16 -> 14 training images, 9 to 1 a class\n"
    assert capsys.readouterr().out.count(line) == 1
    assert trainer.num_classes == 4 and trainer.dm.dataset.classnames == NAMES
    trainer.before_train()
    trainer.close_writer()
    trainer.write_result()
    assert result(trainer)["train_counts"] == [9, 3, 1, 1]
    assert len(trainer.dm.dataset.test) == 14


def test_splits_merge_over_processes_of_one_evaluation_and_not_of_another(build):
    trained = build()
    trained.train()
    record = result(trained)
    (evaluation,) = evaluated(trained, "val")
    assert set(evaluation["results"]) == {"val"} and evaluation["task"] == "evaluation"
    assert evaluation["results"]["val"]["many"] is None  # it does not know what was trained
    assert evaluation["train_summary"] is None
    (evaluation,) = evaluated(trained, "test")  # a third process
    assert set(evaluation["results"]) == {"val", "test"}
    build("WatchedPerImage").test("val")
    assert len(list(trainer_dir(trained).glob("result-*.json"))) == 2
    assert result(trained) == record  # the training keeps its own


def evaluated(trained, split):
    """The evaluations on record after one more, in a process of its own."""
    again = type(trained)(trained.cfg)
    again.load_model(again.cfg.OUTPUT_DIR, epoch=2)
    again.test(split)
    return [json.loads(path.read_text()) for path in trainer_dir(again).glob("result-*.json")]


def test_a_broken_result_is_named_and_replaced_by_a_training_only(build):
    trainer = build()
    folder = trainer_dir(trainer)
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text('{"trainer": "Wat')
    with pytest.warns(UserWarning, match=r"result\.json"):
        trainer.test()
    (evaluation,) = folder.glob("result-*.json")
    assert set(json.loads(evaluation.read_text())["results"]) == {"test"}
    with pytest.warns(UserWarning, match=r"result\.json"):
        build().train()
    assert result(trainer)["finished"]


def test_best_val_stores_the_splits_apart(build):
    trainer = build("Watched", "TEST.FINAL_MODEL", "best_val")
    trainer.train()
    assert set(result(trainer)["results"]) == {"val", "test"}


def test_without_validation_images_val_is_the_test_set(build):
    trainer = build()
    trainer.val_loader = None
    trainer.test("val")
    assert set(trainer.results) == {"test"}


def test_before_training_can_be_measured_and_kept(build, capsys):
    trainer = build()
    before = trainer.measure("test", store_as="before")
    assert "=> result" not in capsys.readouterr().out
    trainer.train()
    results = result(trainer)["results"]
    assert results["before"] == before and set(results) == {"before", "test"}
    assert results["before"]["lcd"] != results["test"]["lcd"]
    assert trainer.measure()["accuracy"] == results["test"]["accuracy"]


def test_features_can_be_collected(build):
    trainer = build("WatchedPerImage")
    split = trainer.collect()
    z, texts, expected, _ = by_hand(trainer)
    torch.testing.assert_close(split.image, F.normalize(z, dim=-1))
    mean = F.normalize(F.normalize(texts, dim=-1).mean(0), dim=-1)
    torch.testing.assert_close(split.text, mean)
    assert torch.equal(split.labels, expected)


def test_a_model_without_encoders_is_still_tested(build, capsys):
    trainer = build("WatchedWithoutEncoders")
    trainer.test()
    found, plain = trainer.results["test"], build(out="plain")
    plain.test()
    assert "multiplies to get its logits" in capsys.readouterr().out
    names = ("accuracy", "lcd", "mid", "nc1")
    assert [found[x] for x in names] == pytest.approx([plain.results["test"][x] for x in names])
    trainer.model.forward = lambda image: trainer.model.visual(image)[:, :5]  # no product
    trainer.test()
    found = trainer.results["test"]
    assert found["accuracy"] is not None and found["lcd"] is None and found["nc1"] is None
    out = capsys.readouterr().out
    assert out.count("could not be computed: Towers has no module `image_encoder`") == 1
    assert "* lcd: -\n* lcd_abs: -\n" in out
    with pytest.raises(NPTError, match="image_encoder"):
        trainer.collect()


def test_nothing_stays_on_the_evaluator_or_the_model(build):
    trainer = build()
    trainer.test()
    assert "process" not in vars(trainer.evaluator)
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_training_is_the_same_with_and_without_measuring(build):
    plain, watched = build("MeasuredHost", out="a"), build(out="b")
    for trainer in (plain, watched):
        torch.manual_seed(0)
        if trainer is watched:
            trainer.measure(store_as="before")
        trainer.train()
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_npt_trains_and_tests_in_the_engine(build, capsys):
    trainer = build("NPT", "TRAINER.NPT.BASE", "MeasuredHost", "TRAINER.NPT.W1", 1)
    trainer.train()
    out = capsys.readouterr().out
    for name in ("loss", "loss_clip", "loss_lc", "loss_mi", "lcd", "mid"):
        assert f" {name} " in out
    record = result(trainer)
    assert record["trainer"] == "NPT" and record["config"]["TRAINER"]["NPT"]["W1"] == 1.0
    assert record["results"]["test"]["lcd"] is not None


def test_one_image_a_class_and_one_class_leave_gaps_not_errors(capsys):
    model = Towers(3)
    recorder = Recorder(FeatureTap(model), Run(None), [5, 0, 1])
    with recorder.recording():
        recorder.add(model(torch.randn(2, 3, 8, 8)), torch.tensor([1, 1]))
    found = recorder.results()
    assert (
        found["lcd"] is not None and found["nc1"] is None and "one class" in recorder.failed["nc1"]
    )
    assert found["many"] is None and found["few"] is not None
    print_results(found)
    assert "* nc1: -\n* nc2: -\n* nc3: -\n" in capsys.readouterr().out


def test_on_an_installed_dassl_another_configuration_is_a_warning(build, monkeypatch):
    from npt import engine

    build().train()
    monkeypatch.setattr(engine, "describe", lambda: engine.Engine("installed", "0.6.3", ""))
    other = build("Watched", "OPTIM.LR", 0.01)
    with pytest.warns(UserWarning, match=r"OPTIM\.LR 0\.05 there, 0\.01 here.*--output-dir"):
        other._measure_check_folder()


# --------------------------------------------------------------------------- the temperature
class Passes:
    """Counts the passes over a trainer's validation images."""

    def __init__(self, trainer):
        self.loader, self.count = trainer.val_loader, 0
        self.dataset = self.loader.dataset
        trainer.val_loader = self

    def __iter__(self):
        self.count += 1
        return iter(self.loader)

    def __len__(self):
        return len(self.loader)


class OwnTest(MeasuredHost):
    def test(self, split=None):
        return super().test(split)


class WatchedOwnTest(Measured, OwnTest):
    """Its test might compute other scores than `model_inference`."""


class Drawing(MeasuredHost):
    """Uses random numbers in tests."""

    def model_inference(self, input):
        random.random(), np.random.random(), torch.rand(1)
        return self.model(input)


class WatchedDrawing(Measured, Drawing):
    pass


for cls in (WatchedOwnTest, WatchedDrawing):
    if cls.__name__ not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register(cls)


def has_temperature(trainer):
    figures = trainer.results["test"]
    assert (figures["temperature"] is None) == (figures["ece_scaled"] is None)
    assert figures["ece"] is not None
    return figures["temperature"] is not None


def test_the_temperature_is_of_the_validation_images(build):
    trainer = build()
    passes = Passes(trainer)
    trainer.train()
    figures = trainer.results["test"]
    assert passes.count == 1
    assert figures["temperature"] == pytest.approx(fit_temperature(*scores(trainer, passes)), 1e-4)
    _, _, labels, _ = by_hand(trainer)
    assert figures["ece"] == pytest.approx(ece_by_hand(trainer, labels), abs=1e-4)
    scaled = ece_by_hand(trainer, labels, figures["temperature"])
    assert figures["ece_scaled"] == pytest.approx(scaled, abs=1e-4) != figures["ece"]
    assert set(result(trainer)["results"]) == {"test"}  # the pass puts no figures on record


def test_the_pass_changes_no_other_figure_and_no_random_state(build):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    found = []
    for with_val in (True, False):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        trainer = build("WatchedDrawing", out=f"val_{with_val}")
        if not with_val:
            trainer.val_loader = None
        trainer.train()
        assert has_temperature(trainer) == with_val
        figures = dict(trainer.results["test"])
        for name in ("temperature", "ece_scaled", "seconds"):
            del figures[name]
        found.append((figures, states()))
    assert found[0] == found[1]
    before = states()
    with random_state_kept():
        random.random(), np.random.random(), torch.rand(1)
    assert states() == before


def test_best_val_needs_no_pass_of_its_own_for_the_temperature(build):
    trainer = build("Watched", "TEST.FINAL_MODEL", "best_val")
    passes = Passes(trainer)
    trainer.train()
    assert passes.count == 2 + 1  # an epoch each, and the model that is kept
    assert has_temperature(trainer)
    kept = {k: v for k, v in trainer.results["val"].items() if k != "seconds"}
    again = trainer.measure("val")
    assert kept == again and kept["temperature"] is None


def test_seconds_do_not_include_the_pass(build, monkeypatch):
    import npt.measure

    trainer = build()
    clock = [0.0]
    monkeypatch.setattr(npt.measure.time, "perf_counter", lambda: clock[0])
    inference = trainer.model_inference

    def slow(input):
        clock[0] += 1.0
        return inference(input)

    trainer.model_inference = slow
    trainer.train()
    assert has_temperature(trainer)
    assert trainer.results["test"]["seconds"] == 4.0  # 14 images, 4 a batch
    assert result(trainer)["train_seconds"] == 0.0


@pytest.mark.parametrize(
    "why", ["not trained", "no images", "images of the test", "host's test", "measure"]
)
def test_no_temperature(build, why, capsys):
    trainer = build("WatchedOwnTest" if why == "host's test" else "Watched")
    data = trainer.dm.dataset
    if why == "no images":
        trainer.val_loader = None
    elif why == "images of the test":
        data._val[-1] = Datum(str(data.test[0].impath), 0, 0, "oak")
    if why != "not trained":
        trainer.train()
    if why == "measure":
        trainer.measure("test", store_as="test")
    else:
        trainer.test()
    assert not has_temperature(trainer)
    assert (
        "at temperature" not in capsys.readouterr().out.split("=> result")[-1] or why == "measure"
    )


def test_validation_images_are_told_from_test_images_by_their_files(build):
    data = build().dm.dataset
    assert apart(data)
    first = data.test[0].impath
    data._val.append(Datum(first.replace("/test_", "/./test_"), 0, 0, "oak"))
    assert not apart(data)
    no_paths = SimpleNamespace(val=[SimpleNamespace(label=0)], test=[SimpleNamespace(label=0)])
    assert not apart(no_paths) and not apart(SimpleNamespace())


@pytest.fixture
def trained_npt(build):
    trainer = build("NPT", "TRAINER.NPT.BASE", "MeasuredHost")
    trainer.train()
    return trainer


def evaluation_of(build, trained):
    again = build("NPT", "TRAINER.NPT.BASE", "MeasuredHost", out="again")
    again.load_model(trained.cfg.OUTPUT_DIR, epoch=2)
    again.test()
    return again


def test_an_evaluation_on_the_trained_classes_has_the_same_temperature(build, trained_npt):
    again = evaluation_of(build, trained_npt)
    for name in ("temperature", "ece", "ece_scaled"):
        assert again.results["test"][name] == trained_npt.results["test"][name] is not None


@pytest.mark.parametrize(
    "other", [{"classnames": ["a", *NAMES[1:]]}, {"dataset": "X"}, {"task": "evaluation"}, None]
)
def test_an_evaluation_on_other_classes_has_none(build, trained_npt, other):
    path = trainer_dir(trained_npt) / "result.json"
    record = read_record(path)
    path.unlink()
    if other is not None:
        write_record(path, {**record, **other})
    assert not has_temperature(evaluation_of(build, trained_npt))


def test_a_damaged_validation_image_does_not_end_a_test(build, capsys):
    trainer = build()
    path = trainer.dm.dataset.val[3].impath
    with open(path, "wb") as file:
        file.write(b"no image")
    trainer.train()
    assert not has_temperature(trainer)
    out = capsys.readouterr().out
    assert re.search(f"No temperature could be fitted .*{re.escape(path)}", out)


def test_scores_without_a_temperature_are_a_sentence(build, capsys):
    trainer = build()
    trainer.train()
    inference = trainer.model_inference
    trainer.model_inference = lambda x: inference(x).index_fill(1, torch.tensor(0), -torch.inf)
    capsys.readouterr()
    trainer.test()
    assert not has_temperature(trainer)
    assert "No temperature could be fitted on the validation images: " in capsys.readouterr().out
