"""`Remedied` trains any trainer of the CoOp family with the remedies of `npt.remedies`.

Trainers compute their classification loss in code that is not ours: in the model (CoCoOp, MaPLe),
in `forward_backward` (CoOp), beside losses of their own (KgCoOp, PromptSRC), through nn's
CrossEntropyLoss. All of them end in `torch.nn.functional.cross_entropy`, which is replaced for the
duration of a training step. Only calls with the labels of the batch, and with gradient, are
changed. If a step has none, or its loss does not reach the backward pass, it ends with an error.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npt.errors import NPTError
from npt.host.steps import batch_of_step, is_of_batch, labels_of_batch
from npt.measure import Measured
from npt.remedies import NODE, Remedies, drawn_counts, remedies_on, warn_of_sampler


class Remedied(Measured):
    """A mixin for Dassl trainers: the cross-entropy of a training step has the remedies."""

    def forward_backward(self, *args: Any, **kwargs: Any) -> Any:
        with self.remedied(batch_of_step(self.host_s("forward_backward"), args, kwargs)) as seen:
            summary = super().forward_backward(*args, **kwargs)
        if seen is not None:
            seen.check(type(self).__name__)
        return summary

    @contextmanager
    def remedied(self, batch: Any) -> Iterator[_Seen | None]:
        """The cross-entropy of the batch has the remedies inside a `with` block."""
        if not self._remedies:
            yield None
            return
        seen = _Seen(self._remedies, labels_of_batch(batch, type(self).__name__))
        with seen.replacing():
            yield seen

    @cached_property
    def _remedies(self) -> Remedies:
        settings = self.cfg.TRAINER.get("NPT")
        on = remedies_on(settings)
        if not on:
            return Remedies(settings, [])
        warn_of_sampler(self.cfg, ", ".join(f"{NODE}.{x.key}" for x in on if x.shift or x.weight))
        remedies = Remedies(settings, drawn_counts(self.count_training_images(), self.cfg))
        if not remedies:
            print(f"{remedies.names} changes nothing: an epoch draws all classes equally often")
        return remedies


class _Seen:
    """The calls of `cross_entropy` in a training step."""

    _lock = threading.RLock()  # two trainings in threads of one process take turns

    def __init__(self, remedies: Remedies, labels: Tensor):
        self.remedies, self.labels = remedies, labels
        self.changed = 0  # calls
        self._inside = False  # whether such a call is running
        self.reached = False  # whether a backward pass has reached one of them

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Replace torch's `cross_entropy` inside a `with` block."""
        with self._lock:
            original = F.cross_entropy

            def cross_entropy(input: Tensor, target: Tensor, *more: Any, **named: Any) -> Tensor:
                # With a default device, for example, torch's own function comes back here.
                if self._inside or not self._is_of_batch(input, target):
                    return original(input, target, *more, **named)
                self._inside = True
                try:
                    loss = self.remedies.loss(original, input, target, *more, **named)
                finally:
                    self._inside = False
                loss.register_hook(self._reach)
                self.changed += 1
                return loss

            F.cross_entropy = cross_entropy
            try:
                yield
            finally:
                F.cross_entropy = original

    def _reach(self, gradient: Tensor) -> None:
        self.reached = True

    def _is_of_batch(self, logits: Any, target: Any) -> bool:
        """Whether these are logits of all classes, with gradient, and the labels of the batch."""
        if not (isinstance(logits, Tensor) and torch.is_grad_enabled() and logits.requires_grad):
            return False
        if logits.dim() != 2 or logits.shape[1] != self.remedies.classes:
            return False
        return is_of_batch(target, self.labels)

    def check(self, trainer: str) -> None:
        """NPTError if the step did not minimise a cross-entropy with the remedies."""
        on = self.remedies.names
        if not self.changed:
            raise NPTError(
                f"{trainer} does not call torch's cross_entropy with logits of the "
                f"{self.remedies.classes} classes and the labels of the batch, so {on} cannot act "
                "on its loss: switch it off, or use the ClassBalancedSampler."
            )
        if not self.reached:
            raise NPTError(
                f"{trainer} calls torch's cross_entropy, but its backward pass does not reach the "
                f"result, so {on} has no effect: switch it off, or minimise that loss."
            )
