"""Numbers that a device computes, read so late that no training step waits for them.

A step on a GPU is launched faster than it is computed, and reading a number waits until it is. So
the steps report scalars that are still on the device (`reported`), the embedded engine reads those
of many steps at once, where it prints (`as_numbers`), and what must be checked in every step is
copied while the next one runs (`Late`). On a CPU nothing is late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from npt import engine


class Late:
    """Checks numbers of a device once they are on the host.

    On a CPU that is at once. On a GPU they are copied while the next step runs, and checked at the
    next `add`, or by `finish`.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any, Callable[[Tensor], None]] | None = None

    def add(self, values: Tensor, check: Callable[[Tensor], None]) -> None:
        """Check the values before, and have `check` called with a copy of these on the host."""
        self.finish()
        copy, event = _to_host(values.detach())
        self._pending = (copy, event, check)
        if event is None:
            self.finish()

    def finish(self) -> None:
        """Check the values before, if they are not checked yet."""
        if self._pending is None:
            return
        (values, event, check), self._pending = self._pending, None
        if event is not None:
            event.synchronize()
        check(values)


def _to_host(value: Tensor) -> tuple[Tensor, Any]:
    """A copy on the host, and the event after which it is complete (None: at once)."""
    if not value.is_cuda:
        return value, None
    copy = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


def must_wait(summary: Any) -> bool:
    """Whether a value of a step's summary is on a device that reading it would wait for."""
    values = summary.values() if isinstance(summary, dict) else ()
    return any(isinstance(x, Tensor) and x.device.type != "cpu" for x in values)


def as_numbers(summaries: Sequence[Any]) -> list[Any]:
    """The summaries of steps with numbers in place of scalar tensors, which are read in one copy.

    What is no dict stays as it is.
    """
    places = [
        (number, name, value)
        for number, summary in enumerate(summaries)
        if isinstance(summary, dict)
        for name, value in summary.items()
        if isinstance(value, Tensor)
    ]
    found = [dict(x) if isinstance(x, dict) else x for x in summaries]
    if places:
        device = places[0][2].device
        # In float64, which holds any number of lower precision exactly.
        scalars = [x.detach().reshape(()).to(device, torch.float64) for _, _, x in places]
        for (number, name, _), x in zip(places, torch.stack(scalars).tolist(), strict=True):
            found[number][name] = x
    return found


def reported(summary: dict[str, Any]) -> dict[str, Any]:
    """What a training step returns of a summary: as it is if reading can and should be late.

    Else its numbers: on a CPU, and for an installed Dassl, which reads each of them in every step.
    """
    late = must_wait(summary) and engine.describe().name == "embedded"
    return summary if late else as_numbers([summary])[0]
