"""The global random generators of Python, numpy and torch: their state, kept or put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch


class RandomState(NamedTuple):
    """The state of the generators; of the GPUs only the current one, and only if it is in use."""

    python: Any
    numpy: Any
    torch: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def now(cls) -> RandomState:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the state of the generators at the end of a `with` block."""
    before = RandomState.now()
    try:
        yield
    finally:
        before.restore()
