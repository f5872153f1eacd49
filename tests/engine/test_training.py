"""Runs of a host's trainer: log, checkpoints, TensorBoard, evaluation, errors."""

import re
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from dassl import utils
from dassl.engine import TRAINER_REGISTRY, TrainerBase, TrainerX, TrainerXU, build_trainer
from dassl.engine import writer as writer_module
from dassl.utils.errors import UserError

LINE = re.compile(
    r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\] time \d+\.\d{3} \(\d+\.\d{3}\) "
    r"data \d+\.\d{3} \(\d+\.\d{3}\) loss \d+\.\d{4} \((\d+\.\d{4})\) "
    r"acc \d+\.\d{4} \(\d+\.\d{4}\) lr (\d\.\d{4}e[-+]\d\d) eta \d+:\d\d:\d\d"
)


@pytest.fixture(scope="module")
def run(host, root, tmp_path_factory):
    """The output, folder and trainer of a complete run."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("run")
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        trainer = host.main(root, str(folder))
    return text.getvalue(), folder, trainer


def test_order_of_the_log(run):
    pytest.importorskip("tensorboard")
    text, folder, _ = run
    expected = [
        "Loading trainer: Plain",
        "Loading dataset: Colours",
        "Creating a 8-shot dataset",
        "Building transform_train",
        "+ random resized crop",
        "+ normalization",
        "Building transform_test",
        "Dataset",
        "# classes",
        "# train_x",
        "# val",
        "# test",
        "Loading evaluator: Classification",
        "No checkpoint found, train from scratch",
        f"Initialize tensorboard (log_dir={folder / 'tensorboard'})",
        "epoch [1/3] batch [2/4]",
        f"Checkpoint saved to {folder / 'net' / 'model.pth.tar-1'}",
        "epoch [2/3] batch [2/4]",
        f"Checkpoint saved to {folder / 'net' / 'model.pth.tar-3'}",
        "Finish training",
        "Deploy the last-epoch model",
        "Evaluate on the *test* set",
        "=> result",
        "* total: 18",
        "* correct: ",
        "* accuracy: ",
        "* error: ",
        "* macro_f1: ",
        "Elapsed: 0:00:",
    ]
    lines = iter(text.splitlines())
    for start in expected:
        assert any(line.startswith(start) for line in lines), f"{start!r} is missing or misplaced"


def test_console_lines(run):
    text, _, trainer = run
    found = [LINE.fullmatch(x) for x in text.splitlines() if x.startswith("epoch [")]
    assert all(found)
    assert [(m[1], m[2], m[3], m[4]) for m in found] == [
        (str(e), "3", b, "4") for e in (1, 2, 3) for b in ("2", "4")
    ]
    # The last batch of an epoch already shows the next learning rate.
    assert [m[6] for m in found] == [
        "1.0000e-05",
        "5.0000e-02",
        "5.0000e-02",
        "3.7500e-02",
        "3.7500e-02",
        "1.2500e-02",
    ]
    # The averages are reset in each epoch.
    losses = [entry[2] for entry in trainer.order if entry[0] == 1]
    assert float(found[3][5]) == pytest.approx(sum(losses) / 4, abs=1e-4)


def test_few_batches_are_all_printed(host, root, tmp_path, capsys):
    host.main(root, str(tmp_path), "TRAIN.PRINT_FREQ", 10, "OPTIM.MAX_EPOCH", 1)
    out = capsys.readouterr().out
    assert re.findall(r"batch \[(\d)/4\]", out) == ["1", "2", "3", "4"]


def test_it_learns(run):
    text, _, _ = run
    assert float(re.search(r"\* accuracy: ([\d.]+)%", text)[1]) > 60


def test_checkpoint_content(run):
    _, folder, trainer = run
    assert sorted(p.name for p in (folder / "net").iterdir()) == [
        "checkpoint",
        *(f"model.pth.tar-{e}" for e in (1, 2, 3)),
    ]
    assert (folder / "net" / "checkpoint").read_text().strip() == "model.pth.tar-3"
    saved = torch.load(folder / "net" / "model.pth.tar-3", weights_only=True)
    assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= set(saved)
    assert saved["epoch"] == 3
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(saved["state_dict"][key], value)


def test_tensorboard(run):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    _, folder, trainer = run
    events = accumulator(str(folder / "tensorboard"))
    events.Reload()
    rates = [e.value for e in events.Scalars("train/lr")]
    assert len(rates) == 12
    assert [e.step for e in events.Scalars("train/loss")] == list(range(12))
    losses = [entry[2] for entry in trainer.order if entry[0] == 1]
    assert events.Scalars("train/loss")[5].value == pytest.approx(sum(losses[:2]) / 2, rel=1e-5)
    for name in ("accuracy", "error_rate", "macro_f1"):
        assert [e.step for e in events.Scalars(f"test/{name}")] == [2]


def test_without_tensorboard(host, root, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert writer_module.summary_writer() is writer_module.NoWriter
    host.main(root, str(tmp_path), "OPTIM.MAX_EPOCH", 1)
    out = capsys.readouterr().out
    assert out.count("TensorBoard is not installed") == 1
    assert "Initialize tensorboard" not in out


def test_checkpoint_frequency(host, root, tmp_path):
    host.main(root, str(tmp_path), "TRAIN.CHECKPOINT_FREQ", 0)
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["checkpoint", "model.pth.tar-3"]


def test_best_val(host, root, tmp_path, capsys):
    trainer = host.main(root, str(tmp_path), "TEST.FINAL_MODEL", "best_val")
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *val* set") == 3
    assert "Deploy the model of the best validation result" in out
    best = torch.load(tmp_path / "net" / "model-best.pth.tar", weights_only=True)
    assert best["val_result"] == trainer.best_result
    assert re.search(r"Load \S+model-best\.pth\.tar to net \(epoch=\d, val_result=[\d.]+\)", out)
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(best["state_dict"][key], value)


def test_no_test(host, root, tmp_path, capsys):
    host.main(root, str(tmp_path), "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1)
    assert "Evaluate" not in capsys.readouterr().out


def test_load_model(host, root, run, capsys):
    _, folder, trained = run
    trainer = build_trainer(host.config(root, "unused"))
    trainer.load_model(str(folder), epoch=3)
    assert torch.equal(trainer.model.classifier.weight, trained.model.classifier.weight)
    trainer.test()
    with pytest.raises(FileNotFoundError, match=r"model-best\.pth\.tar.*model\.pth\.tar-1"):
        trainer.load_model(str(folder))
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-9.*--load-epoch"):
        trainer.load_model(str(folder), epoch=9)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        trainer.load_model(str(folder / "nowhere"), epoch=1)
    capsys.readouterr()
    trainer.load_model("")
    assert "skipped" in capsys.readouterr().out
    trainer._models["net"] = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match=r'model\.pth\.tar-3" does not fit the model "net"'):
        trainer.load_model(str(folder), epoch=3)


def test_checkpoint_extra(host, root, tmp_path, monkeypatch):
    monkeypatch.setattr(
        host.Plain, "checkpoint_extra", lambda self: {"classnames": self.dm.dataset.classnames}
    )
    host.main(root, str(tmp_path), "OPTIM.MAX_EPOCH", 1)
    saved = torch.load(tmp_path / "net" / "model.pth.tar-1", weights_only=True)
    assert saved["classnames"] == ["red", "green", "blue"]
    assert TrainerBase().checkpoint_extra() == {}


def test_unknown_trainer(host, root):
    cfg = host.config(root, "unused", "TRAINER.NAME", "Plane")
    with pytest.raises(ValueError, match=r'did you mean "Plain".*Plain'):
        build_trainer(cfg)


@pytest.mark.parametrize(
    "key, value",
    [
        ("TRAINER.NAME", "none"),
        ("DATASET.NAME", "none"),
        ("TEST.EVALUATOR", "none"),
        ("OPTIM.NAME", "none"),
        ("OPTIM.LR_SCHEDULER", "none"),
        ("OPTIM.MAX_EPOCH", 0),
        ("INPUT.SIZE", (8,)),
        ("INPUT.TRANSFORMS", ["none"]),
        ("INPUT.INTERPOLATION", "none"),
        ("DATALOADER.TRAIN_X.SAMPLER", "none"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 0),
        ("DATALOADER.TEST.BATCH_SIZE", 0),
        ("DATALOADER.NUM_WORKERS", -1),
        ("DATALOADER.K_TRANSFORMS", 0),
        ("TRAIN.PRINT_FREQ", 0),
        ("RESUME", "{foreign}"),
    ],
)
def test_errors_of_the_config_name_the_key(host, root, tmp_path, key, value):
    foreign = tmp_path / "foreign"
    (foreign / "net").mkdir(parents=True)
    (foreign / "net" / "checkpoint").write_text("weights.pth")
    torch.save({}, foreign / "net" / "weights.pth")
    word = key.rpartition(".")[2]
    if key == "RESUME":
        value, word = str(foreign), "weights.pth"
    with pytest.raises(UserError, match=word):
        host.main(root, str(tmp_path / "output"), key, value)


def test_wrong_calls_are_not_errors_of_the_user(host, root):
    trainer = build_trainer(host.config(root, "unused"))
    for call, kind in [
        (lambda: trainer.register_model("net", trainer.model), ValueError),
        (lambda: trainer.get_model_names("other"), ValueError),
        (lambda: trainer.set_model_mode("testing"), KeyError),
        (lambda: utils.load_checkpoint(None), ValueError),
        (lambda: utils.MetricMeter().update([1]), TypeError),
        (lambda: utils.open_specified_layers(trainer.model, "other"), ValueError),
        (lambda: TRAINER_REGISTRY.register(host.Plain), KeyError),
        (lambda: TrainerBase().run_epoch(), NotImplementedError),
    ]:
        with pytest.raises(kind) as error:
            call()
        assert not isinstance(error.value, UserError)


def test_check_cfg_comes_first(host, root):
    with pytest.raises(ValueError, match=r"PLAIN\.PREC"):
        build_trainer(host.config(root, "unused", "TRAINER.PLAIN.PREC", "fp8"))


def test_a_warning_about_the_final_model(host, root, tmp_path, monkeypatch):
    monkeypatch.setitem(host.SPLITS, "val", 0)
    monkeypatch.setattr(
        host.Colours,
        "read",
        staticmethod(lambda r, s, read=host.Colours.read: read(r, s) * (s != "val")),
    )
    with pytest.warns(UserWarning, match="no validation images"):
        host.main(root, str(tmp_path / "b"), "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1)


class TestBase:
    def trainer(self):
        trainer = TrainerBase()
        trainer.a, trainer.b = nn.Linear(1, 1), nn.Linear(1, 1)
        trainer.optim = torch.optim.SGD(trainer.a.parameters(), lr=1.0)
        trainer.register_model("a", trainer.a, trainer.optim)
        trainer.register_model("b", trainer.b)
        return trainer

    def test_models(self):
        trainer = self.trainer()
        assert trainer.get_model_names() == ["a", "b"]
        assert trainer.get_model_names("b") == ["b"]
        with pytest.raises(ValueError, match="a, b"):
            trainer.get_model_names(["c"])
        with pytest.raises(ValueError, match='"a"'):
            trainer.register_model("a", trainer.a)
        for mode, training in [("train", True), ("eval", False), ("test", False)]:
            trainer.set_model_mode("train")
            trainer.set_model_mode(mode, "a")
            assert (trainer.a.training, trainer.b.training) == (training, True)
        with pytest.raises(KeyError, match="testing"):
            trainer.set_model_mode("testing")

        class Early(TrainerBase):
            def __init__(self):
                self.register_model("x", nn.Linear(1, 1))

        with pytest.raises(AttributeError, match="super"):
            Early()

    def test_update(self):
        trainer = self.trainer()
        before = trainer.a.bias.item()
        trainer.model_backward_and_update(trainer.a(torch.zeros(1)).sum())
        assert trainer.a.bias.item() == pytest.approx(before - 1)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_anomaly(self, value):
        trainer = self.trainer()
        with pytest.raises(FloatingPointError, match=r"epoch 1, batch 1.*OPTIM\.LR"):
            trainer.model_backward(trainer.a(torch.zeros(1)).sum() * value)

    def test_two_models_of_different_epochs(self, tmp_path):
        """A run that ended between the saving of two models resumes from the common epoch."""
        trainer = self.trainer()
        trainer.save_model(0, str(tmp_path))
        weight = trainer.a.weight.clone()
        nn.init.zeros_(trainer.a.weight)
        del trainer._models["b"]
        trainer.save_model(1, str(tmp_path))
        trainer = self.trainer()
        assert trainer.resume_model_if_exist(str(tmp_path)) == 1
        assert torch.equal(trainer.a.weight, weight)
        (tmp_path / "a" / "model.pth.tar-1").unlink()
        with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-1"):
            trainer.resume_model_if_exist(str(tmp_path))

    def test_writer(self):
        trainer = self.trainer()
        trainer.write_scalar("x", 1.0)  # nothing is open
        trainer.close_writer()


def test_unlabelled(host, root, tmp_path, monkeypatch, capsys):
    class Both(TrainerXU):
        build_model = host.Plain.build_model
        steps: list = []  # noqa: RUF012

        def forward_backward(self, batch_x, batch_u):
            image, label, other = self.parse_batch_train(batch_x, batch_u)
            loss = self.model(image).sum() + self.model(other).sum()
            self.model_backward_and_update(loss * 0)
            self.steps.append((len(label), len(other)))
            return {"loss": 0.0}

    original = host.Colours.__init__

    def with_unlabelled(self, cfg):
        original(self, cfg)
        self._train_u = self.val

    pairs = ["TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1, "TRAIN.PRINT_FREQ", 1]
    trainer = Both(host.config(root, str(tmp_path / "0"), *pairs))
    with pytest.raises(ValueError, match="train_u"):
        trainer.train()
    monkeypatch.setattr(host.Colours, "__init__", with_unlabelled)
    for name, batches in [("train_x", 4), ("train_u", 2), ("smaller_one", 2)]:
        Both.steps.clear()
        cfg = host.config(root, str(tmp_path / name), *pairs, "TRAIN.COUNT_ITER", name)
        Both(cfg).train()
        assert Both.steps == [(5, 5)] * batches
    assert "# train_u" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"COUNT_ITER.*smaller_one"):
        Both(host.config(root, str(tmp_path / "x"), *pairs, "TRAIN.COUNT_ITER", "all")).train()


def test_simple_net(host, root, tmp_path):
    """SimpleNet with a registered backbone."""
    from dassl.modeling import BACKBONE_REGISTRY, Backbone

    class Tiny(Backbone):
        def __init__(self):
            super().__init__()
            self._out_features = 12
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 12))

        def forward(self, x):
            return self.body(x)

    def tiny(**kwargs):
        return Tiny()

    BACKBONE_REGISTRY.register(tiny, force=True)

    class Vanilla(TrainerX):
        def forward_backward(self, batch):
            image, label, _ = self.parse_batch_train(batch)
            loss = nn.functional.cross_entropy(self.model(image), label)
            self.model_backward_and_update(loss)
            return {"loss": loss.item()}

    head = ["MODEL.HEAD.NAME", "mlp", "MODEL.HEAD.HIDDEN_LAYERS", (7,)]
    cfg = host.config(root, str(tmp_path), "MODEL.BACKBONE.NAME", "tiny", *head)
    trainer = Vanilla(cfg)
    assert trainer.model.fdim == 7
    logits, features = trainer.model(torch.zeros(2, 3, 8, 8), return_feature=True)
    assert (logits.shape, features.shape) == ((2, 3), (2, 7))
    trainer.train()
    with pytest.raises(ValueError, match=r"resnet18, resnet34"):
        Vanilla(host.config(root, str(tmp_path), "MODEL.BACKBONE.NAME", "vgg"))


def test_resnet_has_features():
    from dassl.modeling import build_backbone

    net = build_backbone("resnet18", verbose=False, pretrained=False).eval()
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, net.out_features)


def test_results_may_be_any_dict(host, root, monkeypatch):
    trainer = build_trainer(host.config(root, "unused"))
    monkeypatch.setattr(trainer.evaluator, "evaluate", lambda: OrderedDict(first=1.5, other=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trainer.test(split="val") == 1.5
