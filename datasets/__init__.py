"""Our data sets; importing this package registers them with the engine."""

from dassl.data.datasets import DATASET_REGISTRY
from npt.datasets import mini, paper
from npt.datasets.folder import CustomFolder

DATASETS = {**paper.DATASETS, "CustomFolder": CustomFolder, **mini.DATASETS}


def add_to_registry() -> None:
    """Register the data sets under names that no host has taken; safe to repeat."""
    for name, dataset in DATASETS.items():
        if name not in DATASET_REGISTRY.registered_names():
            DATASET_REGISTRY.register(dataset)


add_to_registry()
