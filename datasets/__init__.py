"""Our data sets, registered with the engine under every name that a host has left free."""

from dassl.data.datasets import DATASET_REGISTRY
from npt.datasets import mini, paper
from npt.datasets.folder import CustomFolder

for _name, _dataset in {**paper.DATASETS, "CustomFolder": CustomFolder, **mini.DATASETS}.items():
    if _name not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(_dataset)
