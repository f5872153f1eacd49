"""How much memory a training step takes, and how much there is."""

from pathlib import Path

import torch

KEPT = 11  # numbers kept for backward per token, layer and unit of width: see `activation_bytes`


def activation_bytes(layers: int, width: int, itemsize: int) -> int:
    """Bytes that one token's way through the layers keeps for backward.

    In units of `width`, a layer keeps its input, queries, keys and values (and copies of those
    that other tokens' groups look at), what attention gave, the input of the MLP, and four units
    inside the MLP.
    """
    return KEPT * layers * width * itemsize


def free_bytes(device: torch.device) -> float:
    """Bytes that can still be allocated on `device`; infinity where that cannot be told."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        return min(_available(), _left_in_group())
    return float("inf")


def _available() -> float:
    """Linux's own estimate."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return float("inf")


def _left_in_group() -> float:
    """What a container's limit leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            return int(limit) - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        pass
    return float("inf")
