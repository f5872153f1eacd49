"""The data sets of this package. Importing it registers them with the engine."""

from dassl.data.datasets import DATASET_REGISTRY
from npt.datasets import mini, paper
from npt.datasets.folder import CustomFolder, CustomTest

OWN = {"CustomFolder": CustomFolder, "CustomTest": CustomTest}
DATASETS = {**paper.DATASETS, **OWN, **mini.DATASETS}


def add_to_registry() -> None:
    """Register the data sets, except under names already registered. Can be called repeatedly."""
    for name, dataset in DATASETS.items():
        if name not in DATASET_REGISTRY.registered_names():
            DATASET_REGISTRY.register(dataset)


add_to_registry()
