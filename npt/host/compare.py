"""Whether logits are a multiple of a product, and features have the same directions."""

from __future__ import annotations

import torch
from torch import Tensor

from npt.losses import unit_rows

# The largest relative deviations: of logits from a product, of the directions of features.
TOLERANCE = {torch.float64: (1e-9, 1e-7), torch.float32: (1e-5, 1e-4), torch.half: (4e-3, 1e-2)}
TOLERANCE_IN_LOWER = (3e-2, 6e-2)  # bfloat16 and below


def tolerance(*tensors: Tensor) -> tuple[float, float]:
    """Of logits and of directions, by the lowest precision of these tensors."""
    return max(TOLERANCE.get(x.dtype, TOLERANCE_IN_LOWER) for x in tensors)


# What a loss may add to the products, without a change of the features that classify: nothing, a
# number for each image (softmax does not see it), or one for each class and for the labels.
ADDED = ("", "images", "classes")


@torch.no_grad()
def distance(
    logits: Tensor, product: Tensor, labels: Tensor | None = None, added: str = ""
) -> float:
    """How far logits (B, K) are from the best multiple of a product, relative to their size.

    added: one of ADDED, which is not compared; infinite if nothing else is left to compare
    """
    y, x = (t.detach().to("cpu", torch.float64) for t in (logits, product))
    size = float(y.square().mean().sqrt())
    if added:
        kept = torch.ones_like(y)
        if added == "classes" and labels is not None and len(labels) == len(y):
            inside = labels.to("cpu", torch.long)[:, None]
            if int(inside.max()) < y.shape[1]:
                kept.scatter_(1, inside, 0.0)
        along = 1 if added == "images" else 0
        y, x = (_centred(t, kept, along) for t in (y, x))
        if y.shape[1 - along] * (y.shape[along] - 1) < 2:  # a multiple can always be found
            return float("inf")
        if float(y.square().mean().sqrt()) <= 20 * tolerance(logits, product)[0] * size:
            return float("inf")
    scale = float((x * y).sum() / x.square().sum().clamp_min(1e-300))
    if not scale > 0 or not size > 0:
        return float("inf")
    return float((y - scale * x).square().mean().sqrt()) / size


def _centred(x: Tensor, kept: Tensor, along: int) -> Tensor:
    """x (B, K) without the mean along a dimension over the entries that are kept, others 0."""
    mean = (x * kept).sum(along, True) / kept.sum(along, True).clamp_min(1)
    return (x - mean) * kept


@torch.no_grad()
def same_directions(a: Tensor, b: Tensor) -> bool:
    """Whether rows of features (..., D) have the same directions, up to rounding."""
    if a.shape[-2:] != b.shape[-2:]:
        return False
    difference = unit_rows(a) - unit_rows(b).to(a.device)
    return float(difference.norm(dim=-1).max()) <= tolerance(a, b)[1]


def leaves(x: Tensor) -> set[int]:
    """The ids of the trained tensors that a tensor depends on."""
    found, nodes = set(), [x.grad_fn] if x.grad_fn is not None else []
    if x.is_leaf and x.requires_grad:
        found.add(id(x))
    seen = set(nodes)
    while nodes:
        for node, _ in nodes.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                nodes.append(node)
                if (leaf := getattr(node, "variable", None)) is not None:
                    found.add(id(leaf))
    return found
