"""Rectified Adam (Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


class RAdam(torch.optim.Optimizer):
    """Adam with the adaptive step scaled by the variance rectification term.

    That term is not defined in the first steps. These use plain momentum, or change nothing with
    `degenerated_to_sgd=False`. Weight decay is decoupled from the gradient.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        degenerated_to_sgd: bool = True,
    ):
        if lr < 0 or eps < 0 or not all(0 <= b < 1 for b in betas):
            raise ValueError(
                f"RAdam needs lr >= 0, eps >= 0 and betas in [0, 1), not {lr}, {eps}, {betas}"
            )
        self.degenerated_to_sgd = degenerated_to_sgd
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad.float(), group)
        return loss

    def _update(self, p: torch.Tensor, grad: torch.Tensor, group: dict) -> None:
        beta1, beta2 = group["betas"]
        state = self.state[p]
        if not state:
            state["step"] = 0
            # The moments are float32 for parameters of any precision.
            state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
        state["step"] += 1
        t, m, v = state["step"], state["exp_avg"], state["exp_avg_sq"]
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

        # rho_inf and rho_t of the paper: the maximum length of the moving average, and at step t
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / (1 - beta2**t)
        step_size = group["lr"] / (1 - beta1**t)
        if length >= 5:  # the variance is tractable
            rectify = (length - 4) * (length - 2) * longest
            rectify /= (longest - 4) * (longest - 2) * length
            step_size *= math.sqrt(rectify * (1 - beta2**t))
            change = -step_size * m / v.sqrt().add_(group["eps"])
        elif self.degenerated_to_sgd:
            change = -step_size * m
        else:
            return
        value = p.float() * (1 - group["weight_decay"] * group["lr"]) + change
        p.copy_(value)
