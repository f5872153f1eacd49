"""Probabilities, ramps and moving averages for semi-supervised trainers."""

from __future__ import annotations

import math

import torch
from torch import nn


def sharpen_prob(p: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """Raise probabilities (B, K) to the power `temperature` and normalize each row."""
    p = p**temperature
    return p / p.sum(1, keepdim=True)


def reverse_index(data: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reverse the order of the batch in both tensors."""
    return data.flip(0), label.flip(0)


def create_onehot(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """One-hot float vectors (B, num_classes) of the labels (B,), on the CPU."""
    rows = nn.functional.one_hot(label.view(-1).long().cpu(), num_classes)
    return rows.float()


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """A ramp from about 0 to 1 over `rampup_length`: exp(-5 (1 - t)^2), t from 0 to 1."""
    if rampup_length <= 0:
        return 1.0
    t = min(max(current / rampup_length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


def linear_rampup(current: float, rampup_length: float) -> float:
    """A linear ramp from 0 to 1 over `rampup_length`."""
    return 1.0 if rampup_length <= 0 else min(max(current / rampup_length, 0.0), 1.0)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Update the moving average, in place: ema_model = alpha * ema_model + (1 - alpha) * model."""
    for average, new in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(new, alpha=1 - alpha)
