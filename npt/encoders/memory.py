"""How much memory a training step takes, and how much there is."""

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def activation_bytes(layers: int, width: int, itemsize: int, keys_per_query: float) -> float:
    """Bytes that one token's way through the layers keeps for backward.

    In units of `width`, a layer keeps its input, the query, what attention gave, the input of the
    MLP, four units inside the MLP; and two for every key and value its group of tokens looks at.
    """
    return (8 + 2 * keys_per_query) * layers * width * itemsize


def free_bytes(device: torch.device) -> float:
    """Bytes that can still be allocated on `device`; infinity where that cannot be told."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        return min(_available(), _left_in_container())
    return float("inf")


def _available() -> float:
    """Linux's own estimate."""
    return 1024 * _table(MEMINFO).get("MemAvailable:", float("inf"))


def _left_in_container() -> float:
    """What a container's limit leaves; what is only cached files counts as free."""
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
        except (OSError, ValueError):  # no such file; "max"
            continue
        return max(0, left + _table(folder / "memory.stat").get(cached, 0))
    return float("inf")


def _table(file: Path) -> dict[str, float]:
    """Lines of a name and a number."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
