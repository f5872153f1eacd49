"""TensorBoard where it is installed. Importing it is slow, so that waits until it is needed."""

from __future__ import annotations

from typing import Any


class NoWriter:
    """Takes what a SummaryWriter takes and writes nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __getattr__(self, name: str):
        if name.startswith("add_") or name in ("flush", "close"):
            return lambda *args, **kwargs: None
        raise AttributeError(name)


def summary_writer() -> type:
    """torch's SummaryWriter, or `NoWriter` where tensorboard cannot be imported."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return NoWriter
    return SummaryWriter
