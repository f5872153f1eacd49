"""Clusters of classes with similar names: k-means of their frozen text features.

Example: with `size` 8, the 18 flags of MiniFlags are divided into ceil(18 / 8) = 3 clusters; one
with more than 8 flags is divided again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from npt.losses import unit_rows

ROUNDS = 100  # of Lloyd's algorithm; it usually ends after a few


def clusters_of(features: Tensor, size: int, seed: int = 0) -> list[Tensor]:
    """The rows of `features` (K, D) in clusters of at most `size`: tensors of row numbers.

    k-means with ceil(K / size) means, of the rows scaled to length 1; clusters that are too large
    are divided again. Clusters are in the order of their first rows. A seed gives the same clusters
    on every device, and the global random state is neither used nor changed.
    """
    rows = unit_rows(features.detach()).double().cpu()
    found = _divided(rows, torch.arange(len(rows)), size, torch.Generator().manual_seed(seed))
    return sorted(found, key=lambda members: int(members[0]))


def _divided(rows: Tensor, members: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    if len(members) <= size:
        return [members]
    number = math.ceil(len(members) / size)
    nearest = k_means(rows[members], number, generator)  # (K,)
    parts = [members[nearest == cluster] for cluster in range(number)]
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:  # rows that are all equal
        return list(members.split(size))
    return [found for part in parts for found in _divided(rows, part, size, generator)]


def k_means(rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """The cluster, 0 to number - 1, of each of the rows (N, D): (N,). A cluster may be empty.

    Lloyd's algorithm from the first means of k-means++ (Arthur and Vassilvitskii, 2007).
    """
    means = _first_means(rows, number, generator)
    nearest = torch.full((len(rows),), -1)
    for _ in range(ROUNDS):
        before, nearest = nearest, torch.cdist(rows, means).argmin(1)
        if torch.equal(nearest, before):
            break
        for cluster in range(number):
            if (nearest == cluster).any():
                means[cluster] = rows[nearest == cluster].mean(0)
    return nearest


def _first_means(rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Rows drawn one after the other, with chances by squared distance from those drawn before."""
    first = int(torch.randint(len(rows), (1,), generator=generator))
    means = rows[first : first + 1].clone()  # (1, D)
    while len(means) < number:
        distance = torch.cdist(rows, means).amin(1).square()  # (N,)
        chances = distance if distance.sum() > 0 else torch.ones(len(rows), dtype=rows.dtype)
        drawn = torch.multinomial(chances, 1, generator=generator)
        means = torch.cat([means, rows[drawn]])
    return means
