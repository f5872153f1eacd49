"""Data loading that depends on the seed, the epoch and the image, and on nothing else.

The order of the images follows from (seed, epoch), the augmentation of an image from (seed, epoch,
index). So a run has the same figures with any number of workers, the global random generators are
not used, and an epoch can be continued at any batch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["Drawn", "SeededLoader", "SeededSampler", "current_seed", "mixed", "seeded"]


def current_seed() -> int:
    """A seed that follows from the state of torch's generator, which it does not change."""
    state = torch.get_rng_state().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "big")


def mixed(*numbers: int) -> int:
    """A seed of 64 bits that depends on all of the numbers."""
    text = " ".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch (CPU) inside a `with` block; their states are restored."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Drawn(int):
    """The index of an image, with the seed of the pass in which it was drawn.

    So workers that serve several passes, each with a copy of the data set, know the seed.
    """

    seed: int

    @classmethod
    def of(cls, index: int, seed: int) -> Drawn:
        drawn = cls(index)
        drawn.seed = seed
        return drawn


class SeededSampler(Sampler):
    """The order of another sampler, with its random numbers from `seed`, without the first `skip`.

    The loader sets `seed` and `skip` before each pass through the data. The indices are `Drawn`.
    """

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self.seed = 0
        self.skip = 0

    def __iter__(self) -> Iterator[int]:
        with seeded(self.seed):
            order = list(self.sampler)
        return iter([Drawn.of(index, self.seed) for index in order[self.skip :]])

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]


class SeededLoader(DataLoader):
    """A DataLoader whose order and augmentations follow from `seed` and the number of the epoch.

    An epoch begins with `start_epoch`; every further pass through the loader, within the epoch or
    without an epoch, has another order. Only a sampler that is a SeededSampler, and a data set with
    an attribute `seed`, take part; with `persistent_workers`, which serve all passes, the data set
    must take the seed from the index (`Drawn`).
    """

    def __init__(self, dataset: Dataset, *, seed: int, **kwargs: Any):
        super().__init__(dataset, generator=torch.Generator(), **kwargs)
        self.seed = seed
        self._last: _Pass | None = None
        self.epoch = 0
        self.passes = 0  # in this epoch
        self.first_batch = 0  # of the next pass

    def start_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Begin epoch `epoch` with its batch `first_batch`, both counted from 0.

        first_batch may be larger than the number of batches of a pass: then the passes before it
        are complete.
        """
        self.epoch = epoch
        self.passes, self.first_batch = divmod(first_batch, len(self)) if first_batch else (0, 0)

    def order(self) -> list[int]:
        """The order of the images in the pass that begins next. Changes nothing."""
        if isinstance(self.sampler, SeededSampler):
            self.sampler.seed = mixed(self.seed, self.epoch, self.passes)
        return list(self.sampler)

    def __iter__(self) -> Any:
        seed = mixed(self.seed, self.epoch, self.passes)
        assert self.generator is not None and self.batch_size is not None
        self.generator.manual_seed(seed)  # workers get their seeds from it
        if isinstance(self.sampler, SeededSampler):
            self.sampler.seed = seed
            self.sampler.skip = self.first_batch * self.batch_size
        if hasattr(self.dataset, "seed"):
            self.dataset.seed = seed
        left = len(self) - self.first_batch
        self.passes, self.first_batch = self.passes + 1, 0
        if self._last is not None and self._last.left > 0:
            self._iterator = None  # that pass keeps its workers: it may go on beside this one
        self._last = _Pass(super().__iter__(), left)
        return self._last


class _Pass:
    """The batches of one pass; `left` counts those that are to come."""

    def __init__(self, batches: Any, left: int):
        self.batches, self.left = batches, left

    def __iter__(self) -> _Pass:
        return self

    def __len__(self) -> int:
        return len(self.batches)

    def __next__(self) -> Any:
        try:
            batch = next(self.batches)
        except StopIteration:
            self.left = 0
            raise
        self.left -= 1
        return batch
