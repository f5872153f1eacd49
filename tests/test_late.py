"""Numbers of a device are read late, and are the same as if they were read at once."""

import math

import pytest
import torch
from trainer_kit import build, config, random_batches

from npt import late
from npt.errors import NotFinite, NPTError
from npt.finite import FiniteWatch
from npt.trainer import NPTMixin

NAMES = ["cat", "dog", "red flower", "big green ship"]


class Event:
    """Of a copy that arrives when it is waited for."""

    def __init__(self, copy, value):
        self.copy, self.value = copy, value

    def synchronize(self):
        self.copy.copy_(self.value)


@pytest.fixture
def a_gpu(monkeypatch):
    """Copies to the host take their time, and tensors of the CPU count as those of a device."""

    def to_host(value):
        copy = torch.full_like(value, math.inf)
        return copy, Event(copy, value.clone())

    def must_wait(summary):
        return isinstance(summary, dict) and any(map(torch.is_tensor, summary.values()))

    monkeypatch.setattr(late, "_to_host", to_host)
    monkeypatch.setattr(late, "must_wait", must_wait)


def trained(tmp_path, name, kind=None, *pairs):
    pairs = ("OPTIM.MAX_EPOCH", 2, "TRAIN.PRINT_FREQ", 3, "TEST.NO_TEST", True, *pairs)
    cfg = config(name, "tiny", *pairs, output=str(tmp_path))
    torch.manual_seed(3)
    trainer = build(cfg, NAMES, random_batches(len(NAMES), 4, 4), kind=kind)
    trainer.written = []
    trainer.write_scalar = lambda *x: trainer.written.append(x)
    trainer.train()
    return trainer


def lines(capsys):
    """The lines of progress, from the loss on."""
    found = [line for line in capsys.readouterr().out.splitlines() if "batch [" in line]
    return [line[line.index("loss") : line.index("eta")] for line in found]


@pytest.mark.parametrize("name, kind", [("CoOp", None), ("MaPLe", NPTMixin)])
def test_figures_are_the_same(tmp_path, capsys, request, name, kind):
    at_once = trained(tmp_path / "a", name, kind)
    printed = lines(capsys)
    request.getfixturevalue("a_gpu")
    read_late = trained(tmp_path / "b", name, kind)
    assert lines(capsys) == printed and len(printed) == 2
    assert read_late.written == at_once.written
    assert read_late._measure_course.entries() == at_once._measure_course.entries()
    assert all(isinstance(x, float) for _, x, _ in read_late.written)


def test_a_number_is_checked_when_it_has_arrived(a_gpu):
    seen, pending = [], late.Late()
    pending.add(torch.tensor([1.0]), lambda x: seen.append(x.tolist()))
    assert seen == []
    pending.add(torch.tensor([2.0, 3.0]), lambda x: seen.append(x.tolist()))
    assert seen == [[1.0]]
    pending.finish()
    pending.finish()
    assert seen == [[1.0], [2.0, 3.0]]


@pytest.mark.parametrize("last", [False, True])
def test_a_loss_that_is_not_finite_ends_the_run_a_step_later(tmp_path, a_gpu, last):
    """Before anything is saved."""
    batches = random_batches(len(NAMES), 4, 4)
    batches.images[3 if last else 1] = math.nan
    cfg = config("CoOp", "tiny", "OPTIM.MAX_EPOCH", 1, output=str(tmp_path))
    trainer = build(cfg, NAMES, batches)
    steps = []
    inner = trainer.loss
    trainer.loss = lambda *args: (steps.append(1), inner(*args))[1]
    with pytest.raises(FloatingPointError, match=f"epoch 1, batch {4 if last else 2}"):
        trainer.train()
    assert len(steps) == (4 if last else 3)
    assert not list(tmp_path.glob("**/*.pth.tar*"))


def test_terms_that_are_not_finite_are_named(tmp_path, a_gpu):
    cfg = config("CoOp", "tiny", output=str(tmp_path))
    trainer = build(cfg, NAMES, random_batches(len(NAMES), 4, 4), kind=NPTMixin)
    trainer.num_batches, trainer.batch_idx = 4, 0
    trainer.set_model_mode("train")
    data = next(iter(trainer.train_loader_x))
    trainer.forward_backward(data)
    with torch.no_grad():
        trainer.model.prompt_learner.ctx.fill_(math.nan)
    with pytest.raises(NPTError, match="loss_lc nan"):
        for _ in range(2):
            trainer._npt_late.finish()
            trainer.detect_anomaly = lambda loss: None
            trainer.forward_backward(data)


def test_a_watched_loss_may_be_a_tensor():
    watch = FiniteWatch([], scaled=False)
    watch.step("epoch 1, batch 1", {"loss": torch.tensor(1.0)}, ())
    with pytest.raises(NotFinite, match="the loss is infinite or NaN in epoch 1, batch 2"):
        watch.step("epoch 1, batch 2", {"loss": torch.tensor(math.inf)}, ())


def test_numbers_of_summaries():
    read = late.as_numbers([{"a": torch.tensor([0.1]), "b": 2}, None, {"a": torch.tensor(3)}])
    assert read == [{"a": torch.tensor(0.1).item(), "b": 2}, None, {"a": 3.0}]
    assert late.as_numbers([{"a": 1}, None]) == [{"a": 1}, None] and late.as_numbers([]) == []
