"""Adds the terms to what a host's model returns, or to the logits that its loss is computed of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from npt.errors import NPTError


class Output:
    """What a model returned: one value, or the values of a tuple, list or dict."""

    def __init__(self, output: Any):
        self.output = output
        if isinstance(output, dict):
            self.values = list(output.values())
        else:
            self.values = list(output) if isinstance(output, (tuple, list)) else [output]

    def loss(self) -> Tensor | None:
        """The first value, if it is a scalar with gradient."""
        first = self.values[0] if self.values else None
        scalar = isinstance(first, Tensor) and first.dim() == 0 and first.requires_grad
        return first if scalar else None

    def with_gradient(self) -> dict[int, Tensor]:
        """The tensors with gradient, by position."""
        return {
            i: x for i, x in enumerate(self.values) if isinstance(x, Tensor) and x.requires_grad
        }

    def logits(self, images: int, classes: int | None, others: Collection[int]) -> Tensor | None:
        """The first matrix of B rows that has K columns; None if the output begins with a loss.

        classes: K, if it is known
        others: numbers of columns that count as K if no matrix has K
        """
        rows = [x for x in self.values if isinstance(x, Tensor) and x.dim() == 2]
        rows = [x for x in rows if len(x) == images]
        if self.loss() is not None or not rows:
            return None
        of_classes = [x for x in rows if x.shape[1] == classes]
        of_others = [x for x in rows[:1] if classes is None or x.shape[1] in others]
        return next(iter(of_classes or of_others), None)

    def replaced(self, new: dict[int, Tensor]) -> Any:
        """The output with the values at some positions replaced."""
        values = [new.get(i, x) for i, x in enumerate(self.values)]
        if isinstance(self.output, dict):
            return type(self.output)(zip(self.output, values, strict=True))
        if hasattr(self.output, "_fields"):  # a named tuple
            return type(self.output)(*values)
        return type(self.output)(values) if isinstance(self.output, (tuple, list)) else values[0]


class Backward:
    """The gradient of the weighted terms in the trainer's backward pass, and whether it got there.

    reached: a backward pass has reached the model's output
    done: the terms have received their gradient
    factor: what the terms were multiplied by after they were added to a loss, without the
        GradScaler's factor; None if they were not added to a loss, or without `ask_factor`
    """

    def __init__(self, weighted: Tensor, scaler: Any, ask_factor: bool = True):
        """ask_factor: whether `factor` is wanted, which waits for the device"""
        # Not `weighted` itself: its hook refers to this object, and the cycle would keep its graph.
        self.one, self.scaler = torch.ones_like(weighted.detach()), scaler
        self.reached = self.done = False
        self.ask_factor = ask_factor
        self.factor: float | None = None
        self._last_pass = -1  # id of the last backward pass that reached the output

    def cancel(self) -> None:
        """Let the terms have no gradient."""
        self.done = True

    def attach(self, x: Tensor, weighted: Tensor) -> Tensor:
        """x unchanged; its backward pass also starts that of the terms."""
        return _AttachTerms.apply(x, weighted, self)

    def gradient(self) -> Tensor | None:
        """The gradient that starts the terms' backward pass; None unless this pass is the last.

        The last backward pass is the one that does not keep the graph.
        """
        self.reached = True
        this_pass, last_pass = torch._C._current_graph_task_id(), self._last_pass
        self._last_pass = this_pass
        keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
        if keeps is None and self.done and this_pass != last_pass:
            raise NPTError(
                "The trainer runs several backward passes through one forward pass of its model, "
                f"which NPT supports on torch 2.2 or newer; this is {torch.__version__}."
            )
        if self.done or (keeps is not None and keeps()):
            return None
        self.done = True
        # A GradScaler multiplies the host's loss; the terms need the same factor.
        return self.one if self.scaler is None else self.scaler.scale(self.one)

    def record(self, gradient: Tensor) -> None:
        """Gradient hook of terms that were added to a loss."""
        self.reached = self.done = True
        if not self.ask_factor:
            return
        one = torch.ones_like(gradient)
        factor = gradient / (one if self.scaler is None else self.scaler.scale(one))
        self.factor = round(float(factor), 4)


class _AttachTerms(torch.autograd.Function):
    """The identity on x; backward also passes a gradient to the weighted terms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weighted: Tensor, backward: Backward) -> Tensor:
        ctx.terms_backward = backward
        return x.clone()  # not a view, because some hosts change logits in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return grad, ctx.terms_backward.gradient(), None


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
