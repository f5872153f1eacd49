"""What makes a run the same run, and the watch over its numbers."""

import math
import os
from types import SimpleNamespace

import pytest
import torch

from npt import identity
from npt.errors import NotFinite, OtherRun
from npt.finite import FiniteWatch, not_finite


def item(path, label=0, name="a"):
    return SimpleNamespace(impath=path, label=label, classname=name)


def dataset(root, files=("x/1.png", "x/2.png"), **changes):
    items = [item(os.path.join(root, file)) for file in files]
    lists = {"train_x": items[:1], "train_u": None, "val": [], "test": items[1:], **changes}
    return SimpleNamespace(classnames=["a"], **lists)


def test_the_place_of_the_data_does_not_matter_and_everything_else_does():
    here = identity.data_digest(dataset("/one"))
    assert here == identity.data_digest(dataset("/two/deeper"))
    others = [
        dataset("/one", ("x/1.png", "x/3.png")),
        dataset("/one", test=[]),
        dataset("/one", train_x=[item("/one/x/1.png", label=1)]),
        dataset("/one", train_x=[item("/one/x/1.png", name="b")]),
        dataset("/one", val=[item("/one/x/2.png")], test=[]),
    ]
    assert len({here, *map(identity.data_digest, others)}) == 6


def test_differences():
    old = {"OPTIM.LR": 0.1, "OUTPUT_DIR": "a", "SEED": 1, "X.OLD": 3}
    new = {"OPTIM.LR": 0.2, "OUTPUT_DIR": "b", "SEED": 1, "X.NEW": 4}
    found = identity.differences(old, new)
    assert found == [
        "OPTIM.LR 0.1 there, 0.2 here",
        "X.NEW '(unset)' there, 4 here",
        "X.OLD 3 there, '(unset)' here",
    ]
    identity.check("D", old, {**old, "DATALOADER.NUM_WORKERS": 3})
    with pytest.raises(OtherRun, match=r"D is of a run .*OPTIM\.LR 0\.1 there.*--overwrite"):
        identity.check("D", old, new)


def test_a_key_that_an_earlier_version_lacks_has_its_default(monkeypatch):
    from npt import config

    monkeypatch.setitem(config.KEYS, "TRAINER.NPT.W_LATE", config.Key(0.0))
    assert not identity.differences({}, {"TRAINER.NPT.W_LATE": 0.0})
    assert identity.differences({}, {"TRAINER.NPT.W_LATE": 0.5})


def test_plain_values_survive_json():
    import json

    tree = {"A": (1, 2.5, None), "B": {"C": float("inf"), 3: True}}
    plain = identity.plain(tree)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert identity.flat(plain) == {"A": [1, 2.5, None], "B.C": "inf", "B.3": True}


# --------------------------------------------------------------------------- finite
def watch(scaled=False, dtype=torch.float32):
    weights = [torch.nn.Parameter(torch.ones(3, dtype=dtype)), torch.nn.Parameter(torch.ones(()))]
    return weights, FiniteWatch([torch.optim.SGD(weights, 0.1), None], scaled)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_bad_weight_gradient_or_loss_is_found(bad, dtype):
    for place in ("weight", "gradient", "loss"):
        weights, watching = watch(dtype=dtype)
        weights[0].grad = torch.zeros_like(weights[0])
        watching.step("epoch 1, batch 1", {"loss": 1.0}, ["a.png"])
        if place == "weight":
            weights[0].data[1] = bad
        if place == "gradient":
            weights[0].grad[1] = bad
        loss = bad if place == "loss" else 1.0
        files = ["a.png", "b.png", "c.png", "d.png", "e.png"]
        with pytest.raises(NotFinite, match=r"epoch 1, batch 2 \(a\.png, .*d\.png, \.\.\.\)"):
            watching.step("epoch 1, batch 2", {"loss": loss}, files)


def test_a_scaler_may_skip_steps_with_infinite_gradients():
    weights, watching = watch(scaled=True)
    weights[0].grad = torch.full_like(weights[0], math.inf)
    watching.step("epoch 1, batch 1", None, [])


def test_infinite_buffers_are_not_learned():
    state = {"mask": torch.tensor([0.0, -math.inf]), "w": torch.ones(2), "n": torch.tensor(3)}
    assert not_finite(state, {"w"}) == []
    assert not_finite({**state, "w": torch.tensor(math.inf)}, {"w"}) == ["w"]
    assert not_finite({**state, "mask": torch.tensor(math.nan)}, {"w"}) == ["mask"]
