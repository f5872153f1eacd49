"""The trainers against arrays that the original code of CoCoOp and MaPLe computed.

Features, logits, losses, gradients and training steps, in float32 on a small CLIP. Each file also
has the difference of float32 from float64 there, and the tests allow three times that. `pytest -s`
prints the largest deviations.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_kit import Batches, build, config

from npt.losses import unit_rows

DATA = Path(__file__).parents[1] / "data"
FILES = {
    "cocoop_ctxinit": ("CoCoOp", "TRAINER.COCOOP.N_CTX", 4, "TRAINER.COCOOP.CTX_INIT",
                       "a photo of a", "OPTIM.LR", 0.002),
    **{
        f"maple_depth{d}": ("MaPLe", "TRAINER.MAPLE.N_CTX", 2, "TRAINER.MAPLE.CTX_INIT",
                            "a photo of a", "TRAINER.MAPLE.PROMPT_DEPTH", d, "OPTIM.LR", 0.0035)
        for d in (1, 3, 9)
    },
}  # fmt: skip
FLOOR = 1e-6  # smallest tolerance, relative to the largest value of an array


def read(name):
    arrays = dict(np.load(DATA / f"{name}.npz"))
    errors = json.loads((DATA / f"{name}.err.json").read_text())
    return arrays, errors["err_f32_vs_f64_[maxabs,scale]"]


def build_trainer(name, arrays, backbone, dtype=torch.float32):
    trainer, *pairs = FILES[name]
    cfg = config(trainer, backbone, *pairs, "OPTIM.MAX_EPOCH", 3)
    images = torch.from_numpy(arrays["train.images"]).to(dtype)
    batches = Batches(images, torch.from_numpy(arrays["train.labels"]), 3)
    return build(cfg, arrays["classnames"].tolist(), batches)


def set_parameters(trainer, arrays):
    start = {k.removeprefix("param."): v for k, v in arrays.items() if k.startswith("param.")}
    trainer.model.prompt_learner.load_state_dict({k: torch.from_numpy(v) for k, v in start.items()})


def deviation(new, reference):
    """Largest difference, in units of the largest value of the reference."""
    new, reference = np.asarray(new, np.float64), np.asarray(reference, np.float64)
    assert new.shape == reference.shape
    return np.abs(new - reference).max() / max(np.abs(reference).max(), 1e-12)


def report(name, deviations):
    key = max(deviations, key=deviations.get)
    worst = f"{deviations[key]:.1e} of its size, {key}"
    print(f"\n{name}: {len(deviations)} arrays, largest deviation {worst}")


@pytest.mark.parametrize("name", FILES)
def test_forward_and_gradients(name, reference_file):
    arrays, errors = read(name)
    trainer = build_trainer(name, arrays, reference_file)
    set_parameters(trainer, arrays)
    model = trainer.model
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    new = {}
    for part in ("image", "text"):
        getattr(model, f"{part}_encoder").register_forward_hook(
            lambda m, a, out, part=part: new.update({f"{part}_features": unit_rows(out).detach()})
        )
    model.train()
    loss = model(images, labels)
    loss.backward()
    model.eval()
    with torch.no_grad():
        new["logits"] = model(images)
    new["loss"] = loss.item()
    for key, parameter in model.prompt_learner.named_parameters():
        if f"grad.{key}" in arrays:
            new[f"grad.{key}"] = parameter.grad
        else:
            assert parameter.grad is None, key
    compared = {key for key in arrays if key.startswith("grad.")}
    assert compared | {"image_features", "text_features", "logits", "loss"} == set(new)

    deviations = {key: deviation(value, arrays[key]) for key, value in new.items()}
    report(name, deviations)
    for key, found in deviations.items():
        error, size = errors[key]
        assert found <= max(3 * error / size, FLOOR), key
    assert model.logit_scale.exp().item() == pytest.approx(arrays["logit_scale_exp"], rel=1e-6)


def nine_steps(name, arrays, backbone, dtype):
    """Learning rates, losses and final parameters of three epochs in the engine's loop."""
    trainer = build_trainer(name, arrays, backbone, dtype)
    set_parameters(trainer, arrays)
    trainer.model.to(dtype)
    losses, rates = [], []
    step = trainer.forward_backward

    def recorded(batch):
        rates.append(trainer.get_current_lr())
        summary = step(batch)
        losses.append(summary["loss"])
        return summary

    trainer.forward_backward = recorded
    for trainer.epoch in range(3):
        trainer.run_epoch()
    final = {k: p.detach() for k, p in trainer.model.prompt_learner.named_parameters()}
    return rates, {"train.losses": losses, **{f"train.final.{k}": p for k, p in final.items()}}


@pytest.mark.parametrize("name", FILES)
def test_nine_training_steps(name, reference_file):
    """Rounding errors grow during training, so both are compared with float64 steps."""
    arrays, _ = read(name)
    rates, new = nine_steps(name, arrays, reference_file, torch.float32)
    exact = nine_steps(name, arrays, reference_file, torch.float64)[1]
    assert deviation(rates, arrays["train.lrs"]) < 1e-12
    assert {key for key in arrays if key.startswith("train.final.")} | {"train.losses"} == set(new)
    report(f"{name}, 9 steps", {key: deviation(value, arrays[key]) for key, value in new.items()})
    reference = max(deviation(arrays[key], value) for key, value in exact.items())
    ours = max(deviation(new[key], value) for key, value in exact.items())
    print(f"  from float64: {ours:.1e}; the reference: {reference:.1e}")
    assert reference < 2e-3
    assert ours <= 10 * reference
    for key, value in new.items():
        if key.startswith("train.final."):
            start = arrays[key.replace("train.final.", "param.")]
            moved = np.abs(arrays[key] - start).max()
            wrong = np.abs(value.numpy() - arrays[key]).max()
            assert wrong <= 0.01 * moved, key


@pytest.mark.parametrize("name", FILES)
def test_initial_parameters_equal_the_reference(name, reference_file):
    arrays, _ = read(name)
    learner = build_trainer(name, arrays, reference_file).model.prompt_learner
    start = {k.removeprefix("param."): v for k, v in arrays.items() if k.startswith("param.")}
    state = learner.state_dict()
    assert state.keys() == start.keys()
    assert all(value.shape == start[key].shape for key, value in state.items())
    assert np.array_equal(state["ctx"].numpy(), start["ctx"])
