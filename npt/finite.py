"""Checks that loss, gradients and learned weights are finite."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from npt.errors import NotFinite
from npt.late import Late

ADVICE = (
    "lower OPTIM.LR, OPTIM.MOMENTUM or the weights under TRAINER.NPT, or use a higher precision"
)


def not_finite(state: Mapping[str, Any], parameters: Collection[str]) -> list[str]:
    """The names in a state dict whose values are NaN, or, for `parameters`, infinite.

    Buffers may be infinite, as attention masks are.
    """
    found = []
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            good = value.isfinite() if name in parameters else ~value.isnan()
            if not bool(good.all()):
                found.append(name)
    return found


class FiniteWatch:
    """Checks every training step: `step` after it, `finish` before anything is saved.

    Loss, weights and gradients are reduced to two numbers, which are checked as `Late` does.
    """

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer | None], scaled: bool):
        """scaled: a GradScaler is in use, which skips steps with infinite gradients itself"""
        groups = (group for x in optimizers if x is not None for group in x.param_groups)
        self._parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        self._scaled = scaled
        self._late = Late()

    def step(self, where: str, summary: Mapping[str, Any] | None, files: Iterable[str]) -> None:
        """Check a step. NotFinite names `where`, the epoch and batch, and the batch's `files`."""
        shown = list(files)
        where = f"{where} ({', '.join(shown[:4])}{', ...' if len(shown) > 4 else ''})"
        loss = (summary or {}).get("loss")
        tensors = [p.detach() for p in self._parameters]
        if not self._scaled:
            tensors += [p.grad for p in self._parameters if p.grad is not None]

        def check(values: Tensor) -> None:
            *lost, norm = values.tolist()
            if not all(map(math.isfinite, lost)):
                raise NotFinite(f"the loss is infinite or NaN in {where}: {ADVICE}")
            if not math.isfinite(norm):
                raise NotFinite(
                    f"the learned weights or their gradients are infinite, NaN or too large after "
                    f"{where}: {ADVICE}"
                )

        if isinstance(loss, (int, float)) and not math.isfinite(loss):
            check(torch.tensor([loss, 0.0]))
        numbers = [*([loss] if isinstance(loss, Tensor) else ()), _norm(tensors)]
        device = numbers[0].device
        self._late.add(torch.stack([x.detach().to(device, torch.float64) for x in numbers]), check)

    def finish(self) -> None:
        """Check the step before, if it is not checked yet."""
        self._late.finish()


def _norm(tensors: list[Tensor]) -> Tensor:
    """The sum of the tensors' L2 norms in float32, which is infinite or NaN if a value is."""
    if not tensors:
        return torch.zeros(())
    device = tensors[0].device
    return torch.stack([x.to(device, torch.float32) for x in torch._foreach_norm(tensors)]).sum()
