"""Remedies for long tails, and the sampler, in every pattern of the host repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts_kit import PATTERNS

STEPS = Path(__file__).with_name("first_steps.py")
TRAINERS = [*PATTERNS, "TCP", "MMRL", "DePT"]
TAIL = ("DATASET.NUM_SHOTS", 16, "DATASET.IMBALANCE_RATIO", 0.1)
OFF = ("TRAINER.NPT.W1", 0, "TRAINER.NPT.W2", 0)
REMEDIES = ("TRAINER.NPT.CLASS_WEIGHT", "balanced", "TRAINER.NPT.LOGIT_ADJUST", 1)
SAMPLER = ("DATALOADER.TRAIN_X.SAMPLER", "ClassBalancedSampler")
REQUESTS = {
    **{("plain", name): (name, *TAIL) for name in TRAINERS},
    **{("remedied", name): (f"{name}NPT", *TAIL, *OFF, *REMEDIES) for name in TRAINERS},
    "sampled": ("CoOp", *TAIL, *SAMPLER),
    "sampled and remedied": ("CoOpNPT", *TAIL, *OFF, *REMEDIES, *SAMPLER),
    "refused": ("KgCoOp", *REMEDIES),
    "natural": ("CoOp", "DATASET.NUM_SHOTS", 8, "DATASET.IMBALANCE_TYPE", "natural"),
    "step": ("CoOp", *TAIL, "DATASET.IMBALANCE_TYPE", "step"),
    "budget": ("CoOp", *TAIL, "DATASET.IMBALANCE_TYPE", "balanced_budget"),
}


@pytest.fixture(scope="module")
def answers(python, host_clip, tmp_path_factory) -> Callable[[Any], dict[str, Any]]:
    """The first step of a request, all computed in one process."""
    folder = tmp_path_factory.mktemp("steps")
    requests = json.dumps(list(REQUESTS.values()))
    done = python(STEPS, folder, requests, HOST_CLIP=host_clip)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "answers.json").read_text())
    return dict(zip(REQUESTS, found, strict=True)).__getitem__


def by_hand(call: dict[str, Any], counts: list[int]) -> float:
    """The remedied cross-entropy of a call, in float64."""
    n, labels = np.array(counts, float), np.array(call["labels"])
    logits = np.array(call["logits"]) + np.log(n / n.sum())
    logits -= logits.max(1, keepdims=True)
    of_label = logits[np.arange(len(labels)), labels]
    losses = np.log(np.exp(logits).sum(1)) - of_label
    return float((losses * n.sum() / (len(n) * n[labels])).mean())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_host_s_loss_changes_by_what_the_remedies_change_in_its_cross_entropy(answers, trainer):
    plain, remedied = answers(("plain", trainer)), answers(("remedied", trainer))
    assert plain["counts"] == remedied["counts"] and plain["counts"][0] == 16
    assert plain["calls"]
    change = sum(
        call["share"] * (by_hand(call, plain["counts"]) - call["loss"]) for call in plain["calls"]
    )
    assert abs(change) > 0.01
    assert remedied["loss"] == pytest.approx(plain["loss"] + change, rel=1e-4)
    assert remedied["slope"] != pytest.approx(plain["slope"], rel=1e-3)


def test_the_sampler_draws_a_host_s_classes_equally_often(answers):
    sampled = answers("sampled")
    assert max(sampled["counts"]) == 16 * min(sampled["counts"])
    assert sum(sampled["drawn"]) == sum(sampled["counts"]) // 4 * 4  # whole batches of 4
    assert max(sampled["drawn"]) - min(sampled["drawn"]) <= 3
    assert answers(("plain", "CoOp"))["drawn"] != sampled["drawn"]


def test_what_the_sampler_balances_is_not_corrected_again(answers):
    assert answers("sampled and remedied")["loss"] == answers("sampled")["loss"]


def test_a_host_s_own_trainer_and_data_without_counts_are_refused_in_a_sentence(answers):
    assert "name KgCoOpNPT" in answers("refused")["error"]
    assert "Dots does not say how many images its classes have" in answers("natural")["error"]


def test_types_of_imbalance_thin_a_host_s_data(answers):
    assert answers("step")["counts"] == [16] * 4 + [1] * 4
    exponential, equal = answers(("plain", "CoOp"))["counts"], answers("budget")["counts"]
    assert sum(equal) == sum(exponential) and max(equal) - min(equal) <= 1
