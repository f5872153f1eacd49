"""Datasets, transforms, samplers and data loaders.

The loaders need torch, which is slow to import, so they are imported at their first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data_manager import DataManager, DatasetWrapper

__all__ = ["DataManager", "DatasetWrapper"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import data_manager

    return getattr(data_manager, name)
