"""The order in which a loader draws its images."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from dassl.utils.errors import InvalidValue


def _group(data_source: Sequence, attribute: str) -> dict[int, list[int]]:
    """Indices by domain or label."""
    groups = defaultdict(list)
    for i, item in enumerate(data_source):
        groups[getattr(item, attribute)].append(i)
    return groups


def _per_group(batch_size: int, groups: int, key: str) -> int:
    if groups < 1 or batch_size % groups:
        raise InvalidValue(
            f"The batch size {batch_size} cannot be shared out evenly by {key} = {groups}: "
            "change DATALOADER.TRAIN_X.BATCH_SIZE or that key"
        )
    return batch_size // groups


class _Ordered(Sampler):
    """A sampler that draws up its whole order at once."""

    def _order(self) -> list[int]:
        raise NotImplementedError(f"{type(self).__name__} does not define _order()")

    def __iter__(self) -> Iterator[int]:
        return iter(self._order())

    def __len__(self) -> int:
        return self._length


class RandomDomainSampler(_Ordered):
    """Every batch holds as many images of each of `n_domain` random domains (0: of all)."""

    def __init__(self, data_source: Sequence, batch_size: int, n_domain: int):
        self.groups = _group(data_source, "domain")
        self.n_domain = n_domain if n_domain > 0 else len(self.groups)
        if self.n_domain > len(self.groups):
            raise InvalidValue(
                f"N_DOMAIN is {n_domain}, but there are only {len(self.groups)} training domains"
            )
        self.per_domain = _per_group(batch_size, self.n_domain, "N_DOMAIN")
        # Which domains run out first is chance; the length announced is that of one such draw.
        state = random.getstate()
        self._length = len(self._order())
        random.setstate(state)

    def _order(self) -> list[int]:
        left = {domain: list(indices) for domain, indices in self.groups.items()}
        order: list[int] = []
        while all(len(indices) >= self.per_domain for indices in left.values()):
            for domain in random.sample(list(left), self.n_domain):
                drawn = random.sample(left[domain], self.per_domain)
                order += drawn
                taken = set(drawn)
                left[domain] = [i for i in left[domain] if i not in taken]
        return order


class SeqDomainSampler(_Ordered):
    """Every batch holds images of one domain; the domains take turns."""

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
    """Every batch holds `n_ins` images of each of batch_size / n_ins random classes."""

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
                f"but there are only {len(self.groups)}: raise DATALOADER.TRAIN_X.N_INS"
            )
        chunks = [max(len(indices) // n_ins, 1) for indices in self.groups.values()]
        self._length = self._batches(chunks) * batch_size

    def _batches(self, chunks: list[int]) -> int:
        """How many batches can be made of so many chunks a class, the fullest classes first."""
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
            # The fullest classes first, ties by chance, so that the length is always reached.
            labels = random.sample(list(chunks), len(chunks))
            labels.sort(key=lambda label: -len(chunks[label]))
            for label in random.sample(labels[: self.n_cls], self.n_cls):
                order += chunks[label].pop()
        return order


SAMPLERS = {
    "RandomSampler": lambda source, batch_size, n_domain, n_ins: RandomSampler(source),
    "SequentialSampler": lambda source, batch_size, n_domain, n_ins: SequentialSampler(source),
    "RandomDomainSampler": lambda source, batch_size, n_domain, n_ins: RandomDomainSampler(
        source, batch_size, n_domain
    ),
    "SeqDomainSampler": lambda source, batch_size, n_domain, n_ins: SeqDomainSampler(
        source, batch_size
    ),
    "RandomClassSampler": lambda source, batch_size, n_domain, n_ins: RandomClassSampler(
        source, batch_size, n_ins
    ),
}


def build_sampler(
    sampler_type: str,
    cfg=None,
    data_source: Sequence | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler:
    """The sampler of that name over a list of Datum; ValueError naming all where unknown."""
    if sampler_type not in SAMPLERS:
        raise InvalidValue(
            f'There is no sampler "{sampler_type}" (a SAMPLER key under DATALOADER): '
            f"use one of {', '.join(SAMPLERS)}"
        )
    return SAMPLERS[sampler_type](data_source, batch_size, n_domain, n_ins)
