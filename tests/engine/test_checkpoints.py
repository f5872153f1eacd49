"""Checkpoints: their content, the order of writing, and the loading of foreign or harmful files."""

import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from dassl.optim.lr_scheduler import ConstantWarmupScheduler
from dassl.utils import load_checkpoint, resume_from_checkpoint, save_checkpoint
from dassl.utils.errors import UnusableCheckpoint
from dassl.utils.salvage import Placeholder, salvage


def make(lr=0.1):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
    return model, optimizer, ConstantWarmupScheduler(optimizer, successor, 1, 1e-5)


def state_of(model, optimizer, scheduler, epoch):
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": None,
    }


def test_layout_and_resume(tmp_path, capsys):
    model, optimizer, scheduler = make()
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    save_checkpoint(state_of(nn.DataParallel(model), optimizer, scheduler, 2), str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "model.pth.tar-2"]
    assert (tmp_path / "checkpoint").read_text().strip() == "model.pth.tar-2"
    assert f"Checkpoint saved to {tmp_path / 'model.pth.tar-2'}" in capsys.readouterr().out
    saved = load_checkpoint(str(tmp_path / "model.pth.tar-2"))
    assert list(saved["state_dict"]) == ["weight", "bias"]  # without "module."

    again, optimizer2, scheduler2 = make()
    # The model to restore may be wrapped.
    assert (
        resume_from_checkpoint(str(tmp_path), nn.DataParallel(again), optimizer2, scheduler2) == 2
    )
    assert capsys.readouterr().out.splitlines() == [
        f'Loading checkpoint from "{tmp_path / "model.pth.tar-2"}"',
        "Loaded model weights",
        "Loaded optimizer",
        "Loaded scheduler",
        "Previous epoch: 2",
    ]
    assert torch.equal(again.weight, model.weight)
    assert optimizer2.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert scheduler2.successor.optimizer is optimizer2


def test_names_and_best(tmp_path):
    state = state_of(*make(), 1)
    save_checkpoint(state, str(tmp_path), model_name="mine.pth.tar")
    assert (tmp_path / "checkpoint").read_text().strip() == "mine.pth.tar"
    save_checkpoint(state, str(tmp_path), is_best=True)
    assert sorted(os.listdir(tmp_path)) == [
        "checkpoint",
        "mine.pth.tar",
        "model-best.pth.tar",
        "model.pth.tar-1",
    ]


def test_pointer_changes_last(tmp_path, monkeypatch):
    """If the process ends at any of the renames, the pointer names a complete checkpoint."""
    state = state_of(*make(), 1)
    save_checkpoint(state, str(tmp_path))
    replaced, real = [], os.replace

    def replace(source, target):
        replaced.append(os.path.basename(target))
        raise SystemExit

    for epoch in (2, 3):
        with monkeypatch.context() as patch:
            if epoch == 2:  # ends before the model is renamed
                patch.setattr(os, "replace", replace)
            else:  # ends before the pointer is renamed
                patch.setattr(
                    os,
                    "replace",
                    lambda s, t: replace(s, t) if t.name == "checkpoint" else real(s, t),
                )
            with pytest.raises(SystemExit):
                save_checkpoint({**state, "epoch": epoch}, str(tmp_path))
        assert (tmp_path / "checkpoint").read_text().strip() == "model.pth.tar-1"
        assert resume_from_checkpoint(str(tmp_path), nn.Linear(2, 2)) == 1
    assert replaced == ["model.pth.tar-2", "checkpoint"]


def test_files_are_plain(tmp_path):
    """torch.load reads them with weights_only, including a Counter in the scheduler."""
    model, optimizer, _ = make()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    state = {**state_of(model, optimizer, scheduler, 1), "val_result": np.float64(1.5)}
    save_checkpoint(state, str(tmp_path))
    content = torch.load(tmp_path / "model.pth.tar-1", weights_only=True)
    assert content["scheduler"]["milestones"] == {1: 1, 2: 1}
    assert content["val_result"] == 1.5


def test_missing_and_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        load_checkpoint(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="None"):
        load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        resume_from_checkpoint(str(tmp_path), nn.Linear(1, 1))
    save_checkpoint(state_of(*make(), 1), str(tmp_path))
    path = tmp_path / "model.pth.tar-1"
    content = path.read_bytes()
    for damaged in (b"", b"nonsense", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(RuntimeError, match=r"model\.pth\.tar-1.*damaged"):
            load_checkpoint(str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"names the checkpoint \"model.pth.tar-1\""):
        resume_from_checkpoint(str(tmp_path), nn.Linear(2, 2))


@pytest.mark.parametrize("content", [nn.Linear(2, 2).state_dict(), [1, 2]])
def test_a_file_that_no_trainer_saved(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    (tmp_path / "checkpoint").write_text("weights.pth\n")
    with pytest.raises(UnusableCheckpoint, match=r"weights\.pth.*choose another file"):
        resume_from_checkpoint(str(tmp_path), nn.Linear(2, 2))


def upstream_state(tmp_path, monkeypatch, epochs):
    """A checkpoint as Dassl saves it, with the successor as an object that has its optimizer."""
    model, optimizer, scheduler = make()
    for _ in range(epochs):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    state = {k: v for k, v in scheduler.__dict__.items() if k != "optimizer"}
    module = types.ModuleType("only_upstream_has_this")
    module.Upstream = type("Upstream", (), {"__module__": "only_upstream_has_this"})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state["something"] = module.Upstream()
    state["something"].note = "x"
    path = tmp_path / "net"
    path.mkdir()
    content = {
        "state_dict": model.state_dict(),
        "epoch": epochs,
        "optimizer": optimizer.state_dict(),
        "scheduler": state,
        "val_result": 50.0,
    }
    torch.save(content, path / f"model.pth.tar-{epochs}")
    (path / "checkpoint").write_text(f"model.pth.tar-{epochs}\n")
    monkeypatch.delitem(sys.modules, module.__name__)
    return path, model, optimizer, scheduler


@pytest.mark.parametrize("epochs", [1, 3])
def test_upstream_checkpoint(tmp_path, monkeypatch, capsys, epochs):
    path, model, optimizer, scheduler = upstream_state(tmp_path, monkeypatch, epochs)
    file = str(path / f"model.pth.tar-{epochs}")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    checkpoint = load_checkpoint(file)
    out = capsys.readouterr().out
    assert "Left out of" in out
    assert "only_upstream_has_this.Upstream" in out or "..." in out
    assert torch.equal(checkpoint["state_dict"]["weight"], model.weight)
    assert isinstance(checkpoint["scheduler"]["successor"], Placeholder)

    again, optimizer2, scheduler2 = make()
    assert resume_from_checkpoint(str(path), again, optimizer2, scheduler2) == epochs
    assert scheduler2.successor.optimizer is optimizer2
    for _ in range(epochs, 5):
        assert optimizer2.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for o, s in ((optimizer, scheduler), (optimizer2, scheduler2)):
            o.step()
            s.step()


class Shell:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Evaluated:
    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return eval, (self.code,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [Shell, Evaluated])
def test_nothing_is_executed(tmp_path, zipped, kind):
    marker = tmp_path / "executed"
    text = f"touch {marker}" if kind is Shell else f"open({str(marker)!r}, 'w')"
    path = tmp_path / "evil"
    content = {"state_dict": {"w": torch.arange(3.0)}, "epoch": 1, "x": kind(text)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(str(path))
    assert not marker.exists()
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(3.0))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_is_executed_in_a_bare_pickle(tmp_path):
    marker = tmp_path / "executed"
    path = tmp_path / "evil"
    path.write_bytes(pickle.dumps(Shell(f"touch {marker}")))
    with pytest.raises(RuntimeError, match="damaged"):
        load_checkpoint(str(path))
    assert not marker.exists()


def test_salvage_rebuilds_what_is_harmless(tmp_path):
    from collections import OrderedDict, defaultdict

    content = {
        "half": torch.ones(2, dtype=torch.float16),
        "parameter": nn.Parameter(torch.ones(1)),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list, {"a": [1]}),
        "function": os.system,
    }
    torch.save(content, tmp_path / "f")
    loaded, replaced = salvage(str(tmp_path / "f"))
    for key in ("size", "dtype", "device", "ordered"):
        assert loaded[key] == content[key]
    assert loaded["half"].dtype == torch.float16
    assert isinstance(loaded["parameter"], nn.Parameter)
    assert "collections.defaultdict" in replaced
    assert isinstance(loaded["function"], type) and issubclass(loaded["function"], Placeholder)
