"""Top-k accuracy of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor],
    target: torch.Tensor,
    topk: Sequence[int] = (1,),
) -> list[torch.Tensor]:
    """Percent of samples whose label is among the k largest scores, one (1,) tensor for each k.

    `output` (B, K), or a tuple that begins with it; `target` (B,). A k above K counts as K.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    largest = min(max(topk), output.shape[1])
    ranked = output.topk(largest, dim=1).indices  # (B, largest)
    hits = ranked.eq(target.view(-1, 1))
    percent = 100.0 / target.shape[0]
    return [hits[:, :k].sum(dtype=torch.float32).view(1) * percent for k in topk]
