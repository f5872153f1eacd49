"""The data sets of the paper as classes, one for each row of the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from npt.datasets import splits
from npt.datasets.base import ListedDataset, Lists, SplitDataset, warn_of_duplicates
from npt.datasets.catalog import CATALOG, Row
from npt.datasets.imagenet import ImageNet, Variant


class PaperDataset(SplitDataset):
    """The split of the literature where its file is there; else one that is made and saved."""

    row: ClassVar[Row]

    def prepare(self, cfg) -> Path:
        folder = super().prepare(cfg)
        if self.split and not (folder / self.split).is_file():
            splits.save(self.row, folder, splits.make(self.row, folder))
        return folder

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        """Nothing is written: where there is no split file, the lists are made in memory."""
        if cls.split and (folder / cls.split).is_file():
            return super().lists(folder)
        lists = splits.make(cls.row, folder)
        warn_of_duplicates(lists, folder)
        return lists


LOADERS = {"split": PaperDataset, "imagenet": ImageNet, "variant": Variant}


def _dataset(row: Row) -> type[ListedDataset]:
    values = {"row": row, "folder": row.folder, "images": row.images, "split": row.split}
    return type(row.name, (LOADERS[row.kind],), {"__doc__": f"{row.name}: see `CATALOG`."} | values)


DATASETS: dict[str, type[ListedDataset]] = {name: _dataset(row) for name, row in CATALOG.items()}
