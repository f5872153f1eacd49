"""Samplers: the order in which a data loader reads its images."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from dassl.utils.errors import InvalidValue


def _group(data_source: Sequence, attribute: str) -> dict[int, list[int]]:
    """The indices of the items of each domain or label."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, item in enumerate(data_source):
        groups[getattr(item, attribute)].append(i)
    return groups


class _Ordered(Sampler):
    """A sampler that computes the order of a whole epoch at once."""

    _length: int  # number of indices in an epoch

    def _order(self) -> list[int]:
        raise NotImplementedError(f"{type(self).__name__} does not define _order()")

    def __iter__(self) -> Iterator[int]:
        return iter(self._order())

    def __len__(self) -> int:
        return self._length


class RandomDomainSampler(_Ordered):
    """Every batch has equally many images of `n_domain` random domains (0: of all domains)."""

    def __init__(self, data_source: Sequence, batch_size: int, n_domain: int):
        self.groups = _group(data_source, "domain")
        self.n_domain = n_domain if n_domain > 0 else len(self.groups)
        if self.n_domain > len(self.groups):
            raise InvalidValue(
                f"DATALOADER.TRAIN_X.N_DOMAIN is {n_domain}, but there are only "
                f"{len(self.groups)} training domains: lower it, or set it to 0 for all domains"
            )
        if batch_size % self.n_domain:
            raise InvalidValue(
                f"The batch size {batch_size} is not a multiple of N_DOMAIN = {self.n_domain}: "
                "change DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TRAIN_X.N_DOMAIN"
            )
        self.per_domain = batch_size // self.n_domain
        # The length depends on which domains are used up first, which is random. The length of one
        # random order is reported; the random state is restored after it.
        state = random.getstate()
        self._length = len(self._order())
        random.setstate(state)

    def _order(self) -> list[int]:
        remaining = {domain: list(indices) for domain, indices in self.groups.items()}
        order: list[int] = []
        while all(len(indices) >= self.per_domain for indices in remaining.values()):
            for domain in random.sample(list(remaining), self.n_domain):
                drawn = random.sample(remaining[domain], self.per_domain)
                order += drawn
                used = set(drawn)
                remaining[domain] = [i for i in remaining[domain] if i not in used]
        return order


class SeqDomainSampler(_Ordered):
    """Every batch has images of one domain; the domains alternate."""

    def __init__(self, data_source: Sequence, batch_size: int):
        self.groups = _group(data_source, "domain")
        self.batch_size = batch_size
        rounds = min(len(indices) for indices in self.groups.values()) // batch_size
        self._length = rounds * len(self.groups) * batch_size

    def _order(self) -> list[int]:
        shuffled = [random.sample(self.groups[d], len(self.groups[d])) for d in sorted(self.groups)]
        rounds = self._length // (len(self.groups) * self.batch_size)
        order: list[int] = []
        for i in range(rounds):
            for indices in shuffled:
                order += indices[i * self.batch_size : (i + 1) * self.batch_size]
        return order


class RandomClassSampler(_Ordered):
    """Every batch has `n_ins` images of each of batch_size / n_ins random classes."""

    def __init__(self, data_source: Sequence, batch_size: int, n_ins: int):
        if n_ins < 1 or batch_size % n_ins:
            raise InvalidValue(
                f"The batch size {batch_size} is not a multiple of N_INS = {n_ins}: "
                "change DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TRAIN_X.N_INS"
            )
        self.groups = _group(data_source, "label")
        self.n_ins = n_ins
        self.n_cls = batch_size // n_ins
        if self.n_cls > len(self.groups):
            raise InvalidValue(
                f"A batch of {batch_size} with N_INS = {n_ins} needs {self.n_cls} classes, "
                f"but there are only {len(self.groups)}: increase DATALOADER.TRAIN_X.N_INS"
            )
        chunks = [max(len(indices) // n_ins, 1) for indices in self.groups.values()]
        self._length = self._batches(chunks) * batch_size

    def _batches(self, chunks: list[int]) -> int:
        """The number of batches, given the number of chunks of `n_ins` images of each class.

        Each batch uses one chunk of each of the `n_cls` classes with the most chunks left.
        """
        chunks = sorted(chunks)
        batches = 0
        while len(chunks) >= self.n_cls and chunks[-self.n_cls] > 0:
            for i in range(1, self.n_cls + 1):
                chunks[-i] -= 1
            chunks.sort()
            batches += 1
        return batches

    def _order(self) -> list[int]:
        chunks: dict[int, list[list[int]]] = {}
        for label, indices in self.groups.items():
            if len(indices) < self.n_ins:
                chunks[label] = [random.choices(indices, k=self.n_ins)]
                continue
            shuffled = random.sample(indices, len(indices))
            chunks[label] = [
                shuffled[i : i + self.n_ins]
                for i in range(0, len(shuffled) - self.n_ins + 1, self.n_ins)
            ]
        order: list[int] = []
        while len(order) < self._length:
            # Use the classes with the most chunks left, ties at random, as `_batches` assumes.
            labels = random.sample(list(chunks), len(chunks))
            labels.sort(key=lambda label: -len(chunks[label]))
            for label in random.sample(labels[: self.n_cls], self.n_cls):
                order += chunks[label].pop()
        return order


def _class_balanced(cfg, source: Sequence) -> Sampler:
    from npt.host.sampling import class_balanced  # not at the top: npt imports dassl

    return class_balanced(cfg, source)


# From the config, the images, the batch size, and the keys N_DOMAIN and N_INS.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "RandomSampler": lambda cfg, source, *_: RandomSampler(source),
    "SequentialSampler": lambda cfg, source, *_: SequentialSampler(source),
    "RandomDomainSampler": lambda cfg, source, batch_size, n_domain, n_ins: RandomDomainSampler(
        source, batch_size, n_domain
    ),
    "SeqDomainSampler": lambda cfg, source, batch_size, *_: SeqDomainSampler(source, batch_size),
    "RandomClassSampler": lambda cfg, source, batch_size, n_domain, n_ins: RandomClassSampler(
        source, batch_size, n_ins
    ),
    "ClassBalancedSampler": lambda cfg, source, *_: _class_balanced(cfg, source),
}


def build_sampler(
    sampler_type: str,
    cfg=None,
    data_source: Sequence | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler:
    """Build the sampler named `sampler_type` for a list of Datum. InvalidValue if it is unknown."""
    if sampler_type not in SAMPLERS:
        raise InvalidValue(
            f'A SAMPLER under DATALOADER is "{sampler_type}", which does not exist: '
            f"use one of {', '.join(SAMPLERS)}"
        )
    return SAMPLERS[sampler_type](cfg, data_source, batch_size, n_domain, n_ins)
