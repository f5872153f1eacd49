"""dassl.utils, and the operations in dassl.metrics and dassl.modeling."""

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dassl import utils
from dassl.metrics import compute_accuracy
from dassl.modeling import build_head
from dassl.modeling.ops.utils import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    sharpen_prob,
    sigmoid_rampup,
)
from dassl.utils.errors import InvalidValue, UnusableCheckpoint
from dassl.utils.tools import atomic_write


def test_registry():
    registry = utils.Registry("THINGS")

    @registry.register()
    class One:
        pass

    def two():
        return 2

    assert registry.register(two) is two
    assert registry.get("One") is One
    assert registry.get("two")() == 2
    assert registry.registered_names() == ["One", "two"]
    with pytest.raises(KeyError, match="One"):
        registry.register(One)
    registry.register(One, force=True)
    with pytest.raises(KeyError, match=r"three.*One, two"):
        registry.get("three")


def test_check_availability():
    utils.check_availability("CoOp", ["CoOp", "MaPLe"])
    with pytest.raises(ValueError, match=r'did you mean "CoOp"\?\): use one of CoOp, MaPLe'):
        utils.check_availability("coop", ["MaPLe", "CoOp"])
    with pytest.raises(InvalidValue, match=r'TRAINER\.NAME is "coop"'):
        utils.check_availability("coop", ["CoOp"], key="TRAINER.NAME")
    with pytest.raises(ValueError, match="nothing is registered"):
        utils.check_availability("x", [])


def test_meters():
    meter = utils.AverageMeter()
    meter.update(1.0)
    meter.update(4.0, n=2)
    assert (meter.val, meter.avg, meter.count) == (4.0, 3.0, 3)
    smooth = utils.AverageMeter(ema=True)
    smooth.update(1.0)
    smooth.update(1.0)
    assert smooth.avg == pytest.approx(0.19)

    metrics = utils.MetricMeter()
    metrics.update({"loss": torch.tensor(1.23456), "acc": 50})
    metrics.update({"loss": 1.0, "acc": 100})
    assert str(metrics) == "loss 1.0000 (1.1173) acc 100.0000 (75.0000)"
    metrics.update(None)
    with pytest.raises(TypeError, match="dict"):
        metrics.update([1])


def test_logger(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    utils.setup_logger(None)
    utils.setup_logger(str(tmp_path))
    print("first")
    assert (tmp_path / "log.txt").read_text() == "first\n"  # without a flush
    utils.setup_logger(str(tmp_path))
    print("second")
    sys.stdout.close()
    later = [p for p in tmp_path.iterdir() if p.name != "log.txt"]
    assert len(later) == 1
    assert re.fullmatch(r"log\.txt-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d", later[0].name)
    assert later[0].read_text() == "second\n"
    assert (tmp_path / "log.txt").read_text() == "first\n"
    assert capsys.readouterr().out == "first\nsecond\n"
    named = tmp_path / "named.txt"
    utils.setup_logger(str(named))
    print("third")
    assert named.read_text() == "third\n"
    assert not sys.stdout.isatty()  # other attributes are those of the console


def test_files(tmp_path):
    utils.mkdir_if_missing(str(tmp_path / "a" / "b"))
    utils.mkdir_if_missing(str(tmp_path / "a" / "b"))
    (tmp_path / ".hidden").touch()
    (tmp_path / "z").touch()
    assert utils.listdir_nohidden(str(tmp_path), sort=True) == ["a", "z"]
    utils.write_json({"x": [1, 2]}, str(tmp_path / "new" / "x.json"))
    assert utils.read_json(str(tmp_path / "new" / "x.json")) == {"x": [1, 2]}
    (tmp_path / "broken.json").write_text('{"x": ')
    with pytest.raises(InvalidValue, match=r"broken\.json.*not valid JSON"):
        utils.read_json(str(tmp_path / "broken.json"))
    assert utils.check_isfile(str(tmp_path / "z"))
    with pytest.warns(UserWarning, match="nowhere"):
        assert not utils.check_isfile(str(tmp_path / "nowhere"))
    assert utils.tolist_if_not(1) == [1]
    assert utils.tolist_if_not([1]) == [1]


def test_atomic_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(str(path), "w") as f:
        f.write("half")
        f.flush()
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_read_image(tmp_path):
    grey = tmp_path / "grey.png"
    Image.new("L", (3, 2), 7).save(grey)
    image = utils.read_image(str(grey))
    assert (image.mode, image.size) == ("RGB", (3, 2))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(OSError, match=r"broken\.jpg.*replace it"):
        utils.read_image(str(broken))
    truncated = tmp_path / "short.png"
    truncated.write_bytes(grey.read_bytes()[:40])
    with pytest.raises(OSError, match=r"short\.png"):
        utils.read_image(str(truncated))
    with pytest.raises(FileNotFoundError, match=r"gone.png.*DATASET.ROOT"):
        utils.read_image(str(tmp_path / "gone.png"))


def test_seed():
    import random

    draws = []
    for _ in range(2):
        utils.set_random_seed(0)
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1]


def test_env_info():
    info = utils.collect_env_info()
    assert f"PyTorch: {torch.__version__}" in info
    assert "Python: " in info


def test_modules():
    net = nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 4)})
    assert utils.count_num_param(net) == 25
    assert utils.count_num_param(params=net["body"].parameters()) == 9
    assert utils.count_num_param(params=[{"params": list(net["head"].parameters())}]) == 16
    utils.open_specified_layers(net, "head")
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert (net["body"].training, net["head"].training) == (False, True)
    utils.open_all_layers(net)
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(ValueError, match="tail"):
        utils.open_specified_layers(net, ["tail"])


def test_pretrained_weights(tmp_path, capsys):
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    state = {"module." + k: v for k, v in source.state_dict().items()}
    torch.save({"state_dict": {**state, "extra": torch.ones(1)}}, tmp_path / "w.pth")
    utils.load_pretrained_weights(target, str(tmp_path / "w.pth"))
    assert torch.equal(source.weight, target.weight)
    assert "extra" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="INIT_WEIGHTS"):
        utils.load_pretrained_weights(nn.Linear(5, 5), str(tmp_path / "w.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UnusableCheckpoint, match="INIT_WEIGHTS"):
        utils.load_pretrained_weights(target, str(tmp_path / "list.pth"))


def test_accuracy():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.2], [0.3, 0.1, 0.2], [0.0, 0.1, 0.9]])
    labels = torch.tensor([1, 2, 1, 2])
    top1, top2, top9 = compute_accuracy(scores, labels, topk=(1, 2, 9))
    assert (top1.item(), top2.item(), top9.item()) == (50.0, 75.0, 100.0)
    assert compute_accuracy((scores, None), labels)[0].item() == 50.0


def test_small_operations():
    p = torch.tensor([[0.8, 0.2]])
    assert torch.allclose(sharpen_prob(p, 2.0), torch.tensor([[0.64, 0.04]]) / 0.68)
    assert torch.equal(create_onehot(torch.tensor([2, 0]), 3), torch.eye(3)[[2, 0]])
    assert (linear_rampup(1, 4), linear_rampup(9, 4), linear_rampup(1, 0)) == (0.25, 1.0, 1.0)
    assert sigmoid_rampup(4, 4) == 1.0
    own, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.ones_(own.weight)
    nn.init.zeros_(other.weight)
    ema_model_update(other, own, 0.9)
    assert own.weight.item() == pytest.approx(0.9)


def test_head():
    head = build_head("mlp", verbose=False, in_features=4, hidden_layers=(6, 5), dropout=0.1)
    assert head(torch.randn(3, 4)).shape == (3, head.out_features) == (3, 5)
    with pytest.raises(ValueError, match="mlp"):
        build_head("transformer")
