"""Features, logits, losses, gradients and training steps of the reference implementations.

The arrays were computed with the original CoCoOp and MaPLe in float32 on a small CLIP; each file
says how far float32 is from float64 there. Three times that is allowed. `pytest -s` prints the
largest deviations.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_kit import Batches, build, config

from npt.trainers.prompts import unit

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
FLOOR = 1e-6  # of an array's largest value, where float32 happened to be closer to float64


@pytest.fixture(params=FILES)
def golden(request, reference_file):
    name = request.param
    arrays = dict(np.load(DATA / f"{name}.npz"))
    errors = json.loads((DATA / f"{name}.err.json").read_text())
    errors = errors["err_f32_vs_f64_[maxabs,scale]"]
    trainer, *pairs = FILES[name]
    cfg = config(trainer, reference_file, *pairs, "OPTIM.MAX_EPOCH", 3, "DATALOADER.NUM_WORKERS", 0)
    batches = Batches(
        torch.from_numpy(arrays["train.images"]), torch.from_numpy(arrays["train.labels"]), 3
    )
    built = build(cfg, [str(c) for c in arrays["classnames"]], batches)
    start = {k[len("param.") :]: v for k, v in arrays.items() if k.startswith("param.")}
    learner = built.model.prompt_learner
    learner.load_state_dict({k: torch.from_numpy(v) for k, v in start.items()})
    return name, arrays, errors, built, learner


class Deviations:
    """Collects how far arrays are from the reference, in units of its largest value."""

    def __init__(self, name, errors):
        self.name, self.errors, self.worst = name, errors, {}

    def check(self, key, new, reference, allowed=None):
        new = np.asarray(new, dtype=np.float64)
        reference = np.asarray(reference, dtype=np.float64)
        assert new.shape == reference.shape, key
        scale = max(np.abs(reference).max(), 1e-12)
        deviation = np.abs(new - reference).max() / scale
        if allowed is None:
            error, of = self.errors[key]
            allowed = max(3 * error / of, FLOOR)
        self.worst[key] = deviation
        assert deviation <= allowed, f"{key}: {deviation:.1e} of its size, allowed {allowed:.1e}"

    def report(self):
        key = max(self.worst, key=self.worst.get)
        print(f"\n{self.name}: {len(self.worst)} arrays, largest deviation "
              f"{self.worst[key]:.1e} of its size ({key})")  # fmt: skip


def test_forward_and_gradients(golden):
    name, arrays, errors, trainer, learner = golden
    model, deviations = trainer.model, Deviations(name, errors)
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    seen = {}
    for part in ("image", "text"):
        encoder = getattr(model, f"{part}_encoder")
        encoder.register_forward_hook(lambda m, a, out, part=part: seen.update({part: out}))

    model.train()
    loss = model(images, labels)
    loss.backward()
    model.eval()
    with torch.no_grad():
        logits = model(images)
    deviations.check("loss", loss.item(), arrays["loss"])
    deviations.check("logits", logits, arrays["logits"])
    for part in ("image", "text"):
        deviations.check(f"{part}_features", unit(seen[part]), arrays[f"{part}_features"])
    deviations.check("logit_scale_exp", model.logit_scale.exp(), arrays["logit_scale_exp"], 1e-6)
    for key, parameter in learner.named_parameters():
        reference = arrays.get(f"grad.{key}")
        if reference is None:
            assert parameter.grad is None, key
        else:
            deviations.check(f"grad.{key}", parameter.grad, reference)
    deviations.report()


def test_nine_training_steps(golden):
    name, arrays, errors, trainer, learner = golden
    deviations = Deviations(name + " (9 steps)", errors)
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
    deviations.check("train.lrs", rates, arrays["train.lrs"], 1e-12)
    # Rounding errors grow along a trajectory; these are still far below one step's change.
    deviations.check("train.losses", losses, arrays["train.losses"], 2e-4)
    for key, parameter in learner.named_parameters():
        reference, start = arrays[f"train.final.{key}"], arrays[f"param.{key}"]
        moved = np.abs(reference - start).max()
        deviations.check(f"train.final.{key}", parameter.detach(), reference, 2e-5)
        wrong = np.abs(parameter.detach().numpy() - reference).max()
        assert wrong <= 1e-3 * moved if moved else wrong == 0, key
    deviations.report()


def test_parameters_start_as_the_reference_does(golden, reference_file):
    name, arrays, _, trainer, learner = golden
    trainer_name, *pairs = FILES[name]
    fresh = build(config(trainer_name, reference_file, *pairs), arrays["classnames"].tolist())
    learner = fresh.model.prompt_learner
    parameters = {k: v for k, v in arrays.items() if k.startswith("param.")}
    assert {f"param.{k}" for k in learner.state_dict()} == set(parameters)
    for key, value in learner.state_dict().items():
        assert value.shape == parameters[f"param.{key}"].shape
        assert value.dtype == torch.float32
    assert np.array_equal(learner.ctx.detach().numpy(), parameters["param.ctx"])
