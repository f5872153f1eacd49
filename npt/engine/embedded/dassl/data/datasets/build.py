"""The registry of datasets."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, check_availability

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg) -> Any:
    """Build the dataset named by DATASET.NAME. InvalidValue if it is not registered."""
    names = DATASET_REGISTRY.registered_names()
    check_availability(cfg.DATASET.NAME, names, key="DATASET.NAME")
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
