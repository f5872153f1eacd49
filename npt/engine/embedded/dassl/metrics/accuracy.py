"""Top-k accuracy of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor],
    target: torch.Tensor,
    topk: Sequence[int] = (1,),
) -> list[torch.Tensor]:
    """The percentage of samples whose label is among the k largest scores, for each k of `topk`.

    `output`: scores (B, K), or a tuple whose first element they are. `target`: labels (B,). A k
    above K means K. Returns one tensor of shape (1,) for each k.
    """
    scores = output if isinstance(output, torch.Tensor) else output[0]
    largest = min(max(topk), scores.shape[1])
    ranked = scores.topk(largest, dim=1).indices  # (B, largest)
    hits = ranked.eq(target.view(-1, 1))
    percent = 100.0 / target.shape[0]
    return [hits[:, :k].sum(dtype=torch.float32).view(1) * percent for k in topk]
