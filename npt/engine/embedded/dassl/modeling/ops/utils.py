"""Probabilities, ramps and moving averages, as semi-supervised trainers use them."""

from __future__ import annotations

import math

import torch
from torch import nn


def sharpen_prob(p: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """Probabilities (B, K) raised to `temperature` and normalised again."""
    p = p**temperature
    return p / p.sum(1, keepdim=True)


def reverse_index(data: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in reverse order of the batch."""
    return data.flip(0), label.flip(0)


def create_onehot(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Labels (B,) as float rows (B, num_classes) with a single one, on the CPU."""
    rows = nn.functional.one_hot(label.view(-1).long().cpu(), num_classes)
    return rows.float()


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """From near 0 to 1 over `rampup_length`: exp(-5 (1 - t)^2)."""
    if rampup_length <= 0:
        return 1.0
    t = min(max(current / rampup_length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


def linear_rampup(current: float, rampup_length: float) -> float:
    """From 0 to 1 over `rampup_length`, in a straight line."""
    return 1.0 if rampup_length <= 0 else min(max(current / rampup_length, 0.0), 1.0)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Move `ema_model`'s parameters to alpha of their own and 1 - alpha of `model`'s."""
    for own, other in zip(ema_model.parameters(), model.parameters(), strict=True):
        own.mul_(alpha).add_(other, alpha=1 - alpha)
