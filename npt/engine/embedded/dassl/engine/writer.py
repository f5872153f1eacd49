"""TensorBoard, if it is installed. It is slow to import, so it is imported at the first use."""

from __future__ import annotations

from typing import Any


class NoWriter:
    """A SummaryWriter that writes nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __getattr__(self, name: str):
        if name.startswith("add_") or name in ("flush", "close"):
            return lambda *args, **kwargs: None
        raise AttributeError(name)


def summary_writer() -> type:
    """torch's SummaryWriter class, or `NoWriter` if tensorboard cannot be imported."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return NoWriter
    return SummaryWriter
