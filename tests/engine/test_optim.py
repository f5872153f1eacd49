"""Optimizers and learning-rate schedules."""

import math

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.radam import RAdam
from dassl.utils.errors import InvalidValue, UserError
from dassl.utils.torchtools import load_scheduler_state, scheduler_state


def optim_cfg(**values):
    cfg = get_cfg_default().OPTIM
    cfg.NAME = "sgd"
    for key, value in values.items():
        cfg[key] = value
    return cfg


def build(**values):
    cfg = optim_cfg(**values)
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, cfg)
    return model, optimizer, build_lr_scheduler(optimizer, cfg)


def rates(epochs=None, **values):
    _, optimizer, scheduler = build(**values)
    seen = []
    for _ in range(epochs or values["MAX_EPOCH"]):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def cosine(lr, t, length):
    return lr * (1 + math.cos(math.pi * t / length)) / 2


def test_cosine():
    assert rates(LR=0.1, MAX_EPOCH=4, LR_SCHEDULER="cosine") == pytest.approx(
        [cosine(0.1, t, 4) for t in range(4)]
    )


def test_constant_warmup_then_cosine():
    """One warm-up epoch, then the cosine from its first value, over MAX_EPOCH steps."""
    lr = 0.0035
    expected = [1e-5, lr, *(cosine(lr, t, 5) for t in (1, 2, 3))]
    found = rates(LR=lr, MAX_EPOCH=5, LR_SCHEDULER="cosine", WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    assert found == pytest.approx(expected, rel=1e-12)


def test_linear_warmup():
    found = rates(LR=0.1, MAX_EPOCH=6, LR_SCHEDULER="cosine", WARMUP_EPOCH=4, WARMUP_MIN_LR=1e-3)
    assert found == pytest.approx([1e-3, 0.025, 0.05, 0.075, 0.1, cosine(0.1, 1, 6)])


def test_without_recount_the_schedule_counts_the_epochs_of_the_warmup():
    found = rates(
        LR=0.1,
        MAX_EPOCH=4,
        LR_SCHEDULER="multi_step",
        STEPSIZE=(2, 3),
        WARMUP_EPOCH=1,
        WARMUP_TYPE="constant",
        WARMUP_RECOUNT=False,
    )
    assert found == pytest.approx([1e-5, 0.1, 0.01, 0.001])


def test_steps():
    assert rates(5, LR=1.0, LR_SCHEDULER="single_step", STEPSIZE=(2,)) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    assert rates(3, LR=1.0, LR_SCHEDULER="single_step", STEPSIZE=(-1,), MAX_EPOCH=2) == (
        pytest.approx([1, 1, 0.1])
    )
    assert rates(4, LR=1.0, LR_SCHEDULER="multi_step", STEPSIZE=(1, 3), GAMMA=0.5) == (
        pytest.approx([1, 0.5, 0.5, 0.25])
    )


@pytest.mark.parametrize("name", ["single_step", "multi_step", "cosine"])
@pytest.mark.parametrize("warmup", ["", "constant", "linear"])
@pytest.mark.parametrize("stop", range(1, 6))
def test_resumed_schedule_is_exact(name, warmup, stop, tmp_path):
    values = dict(LR=0.1, MAX_EPOCH=6, LR_SCHEDULER=name, STEPSIZE=(2, 4))
    if warmup:
        values.update(WARMUP_EPOCH=2, WARMUP_TYPE=warmup)
    straight = rates(**values)
    _, optimizer, scheduler = build(**values)
    for _ in range(stop):
        optimizer.step()
        scheduler.step()
    torch.save([optimizer.state_dict(), scheduler_state(scheduler)], tmp_path / "s")

    _, optimizer, scheduler = build(**values)
    optimizer_state, state = torch.load(tmp_path / "s", weights_only=True)  # plain values
    optimizer.load_state_dict(optimizer_state)
    load_scheduler_state(scheduler, state)
    resumed = []
    for _ in range(stop, 6):
        resumed.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert resumed == straight[stop:]  # bit for bit


def test_warmup_state_is_plain_values():
    _, _, scheduler = build(LR_SCHEDULER="cosine", WARMUP_EPOCH=2)
    state = scheduler.state_dict()
    assert isinstance(state["successor"], dict)
    scheduler.load_state_dict(state)
    assert scheduler.successor.optimizer is scheduler.optimizer


def test_host_scheduler_that_holds_another():
    """A scheduler inside a host's own scheduler is saved as plain values, too."""

    class Delayed(torch.optim.lr_scheduler.LRScheduler):
        def __init__(self, optimizer, inner):
            self.inner = inner
            super().__init__(optimizer)

        def get_lr(self):
            return [group["lr"] for group in self.optimizer.param_groups]

    def make():
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        return Delayed(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2))

    first, second = make(), make()
    first.inner.last_epoch = 7
    inner = second.inner
    load_scheduler_state(second, scheduler_state(first))
    assert second.inner is inner
    assert inner.last_epoch == 7
    assert inner.optimizer is second.optimizer


@pytest.mark.parametrize(
    ("name", "cls", "expected"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.99), "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {"betas": (0.8, 0.99), "amsgrad": True}),
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "nesterov": True, "dampening": 0}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.7, "alpha": 0.5}),
        ("radam", RAdam, {"betas": (0.8, 0.99)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.99)}),
    ],
)
def test_optimizers(name, cls, expected):
    cfg = optim_cfg(
        NAME=name,
        LR=0.01,
        WEIGHT_DECAY=0.02,
        MOMENTUM=0.7,
        SGD_NESTEROV=True,
        RMSPROP_ALPHA=0.5,
        ADAM_BETA1=0.8,
        ADAM_BETA2=0.99,
    )
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(model, cfg)
    assert type(optimizer) is cls
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.02)
    assert {key: group[key] for key in expected} == expected

    x, losses = torch.randn(32, 4), []
    y = x.sum(1, keepdim=True)
    for _ in range(60):
        loss = ((model(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_parameters_and_groups():
    model = nn.Linear(2, 2)
    assert len(build_optimizer(model.parameters(), optim_cfg()).param_groups[0]["params"]) == 2
    groups = [{"params": [model.weight], "lr": 1.0}, {"params": [model.bias]}]
    optimizer = build_optimizer(model, optim_cfg(LR=0.5), param_groups=groups)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]


def test_staged_lr():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    cfg = optim_cfg(LR=1.0, STAGED_LR=True, NEW_LAYERS=("1",))
    old, new = build_optimizer(nn.DataParallel(model), cfg).param_groups
    assert (old["lr"], new["lr"]) == (0.1, 1.0)
    assert new["params"][0] is model[1].weight
    with pytest.raises(ValueError, match=r"NEW_LAYERS.*head"):
        build_optimizer(model, optim_cfg(STAGED_LR=True, NEW_LAYERS=("head",)))
    with pytest.raises(InvalidValue, match="STAGED_LR"):
        build_optimizer(model.parameters(), cfg)


def test_radam_first_step():
    """While the variance is not tractable: plain momentum, or no change."""
    for degenerated, expected in [(True, 0.9), (False, 1.0)]:
        p = nn.Parameter(torch.ones(1))
        p.grad = torch.ones(1)
        RAdam([p], lr=0.1, degenerated_to_sgd=degenerated).step()
        assert p.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("OPTIM.NAME", {"NAME": "lion"}),
        ("OPTIM.LR_SCHEDULER", {"LR_SCHEDULER": "exponential"}),
        ("OPTIM.WARMUP_TYPE", {"WARMUP_EPOCH": 1, "WARMUP_TYPE": "sudden"}),
        ("OPTIM.WARMUP_EPOCH is 3.*OPTIM.MAX_EPOCH is 2", {"WARMUP_EPOCH": 3, "MAX_EPOCH": 2}),
        ("OPTIM.STEPSIZE", {"LR_SCHEDULER": "multi_step"}),
        ("OPTIM.STEPSIZE", {"LR_SCHEDULER": "single_step", "STEPSIZE": ()}),
        ("OPTIM.MAX_EPOCH", {"MAX_EPOCH": 0}),
        ("under OPTIM.*learning rate", {"LR": -1.0}),
        ("under OPTIM.*RAdam needs", {"NAME": "radam", "ADAM_BETA1": 1.5}),
    ],
)
def test_errors_name_the_key(key, values):
    with pytest.raises(InvalidValue, match=key):
        build(**values)


def test_an_optimizer_without_parameters_is_not_an_error_of_the_config():
    with pytest.raises(ValueError, match="empty") as error:
        build_optimizer([], optim_cfg())
    assert not isinstance(error.value, UserError)
