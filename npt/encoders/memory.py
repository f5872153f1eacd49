"""Estimates of the memory that a training step needs and of the memory that is free."""

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def activation_bytes(layers: int, width: int, itemsize: int, keys_per_query: float) -> float:
    """Bytes that autograd keeps for one token in all layers.

    In units of `width` values, a layer keeps its input (1), the query (1), the output of attention
    (1), the input of the MLP (1) and the hidden values of the MLP (4), and a key and a value (2)
    for every token that the token's group attends to.
    """
    return (8 + 2 * keys_per_query) * layers * width * itemsize


def pass_bytes(width: int, itemsize: int, keys_per_query: float) -> float:
    """Bytes that one token needs in a pass without gradients, which keeps one layer at a time.

    In the units of `activation_bytes`, a layer has in addition its queries, keys and values before
    they are grouped (3), and the sum of its input and what attention adds (1).
    """
    return activation_bytes(1, width, itemsize, keys_per_query) + 4 * width * itemsize


def free_bytes(device: torch.device) -> float:
    """Bytes that can still be allocated on `device`; infinity if that is unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        return min(_available_bytes(), _container_bytes())
    return float("inf")


def _available_bytes() -> float:
    """Linux's own estimate, MemAvailable."""
    return 1024 * _read_table(MEMINFO).get("MemAvailable:", float("inf"))


def _container_bytes() -> float:
    """Bytes left below the container's memory limit; its file cache counts as free."""
    for folder, limit, used, cached in (  # cgroup v2, v1
        (CGROUP, "memory.max", "memory.current", "inactive_file"),
        (
            CGROUP / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
        except (OSError, ValueError):  # no such file, or the limit is "max"
            continue
        return max(0, left + _read_table(folder / "memory.stat").get(cached, 0))
    return float("inf")


def _read_table(file: Path) -> dict[str, float]:
    """The numbers in a file of lines "<name> <number> ..."; empty if it cannot be read."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
