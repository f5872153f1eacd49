"""Chooses the fastest way to an encoder's results that is verified."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any, Protocol

import torch
from torch import nn

from npt.host.calls import Call, stored
from npt.host.verification import Unsuitable, attempt, check_same, same_random_numbers


class Way(Protocol):
    """A faster computation of an encoder.

    `plan` returns what is verified once for all calls like this one, and raises Unsuitable for a
    call that is not possible; `run` returns what the host's own computation returns.
    """

    of_gradients: float | None  # the allowed deviation of gradients, if it is not the usual one

    def plan(self, call: Call) -> Hashable: ...

    def run(self, call: Call, plan: Any) -> Any: ...


class Accelerator:
    """The ways that are left for an encoder, and the states in which the first one is verified.

    what: names the encoder's results in the reason of a fallback
    """

    def __init__(self, model: nn.Module, what: str, ways: list[Way]):
        self.model, self.what, self.ways = model, what, ways
        self.verified: set[Hashable] = set()

    def __call__(self, call: Call) -> Any:
        if not self.ways:
            return call.host_s()
        state = self._state(call)
        try:
            plan = self.ways[0].plan(call)
            verified = (plan, state) in self.verified
        except Exception:  # `_first_verified` meets it again, and tries the next way
            verified = False
        return self.ways[0].run(call, plan) if verified else self._first_verified(call, state)

    def _state(self, call: Call) -> Hashable:
        """Changes when the results must be verified again."""
        if not torch.is_grad_enabled():
            return call.form()
        return (call.form(), *(id(p) for p in self.model.parameters() if p.requires_grad))

    def _first_verified(self, call: Call, state: Hashable) -> Any:
        """The results of the first way that gives the host's; else the host's own."""
        leaves = [*self.model.parameters(), *call.tensors()] if torch.is_grad_enabled() else []
        trained = list({id(x): x for x in leaves if x.requires_grad and x.is_leaf}.values())
        before = stored(call.encoder)
        reason = ""
        with same_random_numbers() as rewind:
            expected = call.host_s()
            if stored(call.encoder) != before:
                self.ways, reason = [], "its own computation changes its buffers or attributes"
            while self.ways:
                way = self.ways[0]
                try:
                    plan = attempt(way.plan, call)
                    rewind()
                    found = attempt(way.run, call, plan)
                    what = f"its {self.what}"
                    attempt(check_same, expected, found, trained, what, way.of_gradients)
                except Unsuitable as error:
                    reason = str(error)
                    self.ways, self.verified = self.ways[1:], set()
                else:
                    self.verified.add((plan, state))
                    return found
        warnings.warn(
            f"{type(self.model).__name__} is no longer accelerated where it computes its "
            f"{self.what}, and falls back to its own computation: {reason}.",
            stacklevel=2,
        )
        return expected
