"""The classes of the paper's data sets, one for each row of the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from npt.datasets import splits
from npt.datasets.base import ListedDataset, Lists, SplitDataset, warn_of_duplicates
from npt.datasets.catalog import CATALOG, Row
from npt.datasets.imagenet import ImageNet, Variant


class PaperDataset(SplitDataset):
    """Uses the published split file if it is there; otherwise makes a split and saves it."""

    row: ClassVar[Row]

    def locate(self, cfg: Any) -> Path:
        folder = super().locate(cfg)
        if self.split and not (folder / self.split).is_file():
            splits.save(self.row, folder, splits.make(self.row, folder))
        return folder

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        """Without a split file the lists are made in memory; this method writes nothing."""
        if cls.split and (folder / cls.split).is_file():
            return super().lists(folder)
        lists = splits.make(cls.row, folder)
        warn_of_duplicates(lists, folder)
        return lists


LOADERS = {"split": PaperDataset, "imagenet": ImageNet, "variant": Variant}


def _dataset(row: Row) -> type[ListedDataset]:
    values = {
        "__doc__": f"{row.name}: see `CATALOG`.",
        "row": row,
        "folder": row.folder,
        "images": row.images,
        "split": row.split,
        "template": row.template,
    }
    return type(row.name, (LOADERS[row.kind],), values)


DATASETS: dict[str, type[ListedDataset]] = {name: _dataset(row) for name, row in CATALOG.items()}
