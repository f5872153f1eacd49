"""`Datum`, one labelled image, and `DatasetBase`, the base class of datasets."""

from __future__ import annotations

import os.path as osp
import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dassl.utils.errors import InvalidValue, MissingFile


class Datum:
    """An image file with its label, domain label and class name; all read-only.

    MissingFile (a FileNotFoundError) if the file does not exist.
    """

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""):
        if not isinstance(impath, str):
            raise TypeError(f"The image path of a Datum must be a string, not {impath!r}")
        if not osp.isfile(impath):
            raise MissingFile(
                f'There is no image at "{impath}": check DATASET.ROOT and the dataset\'s files'
            )
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname

    def __repr__(self) -> str:
        return f"Datum({self._impath!r}, {self._label}, {self._domain}, {self._classname!r})"


class DatasetBase:
    """Lists of Datum for training, for training without labels, for validation and for testing.

    The number of classes and their names are computed once, from the given lists. Replacing a list
    afterwards (`dataset._train_x = ...`) does not change them.
    """

    dataset_dir = ""  # folder under DATASET.ROOT
    domains: list[str] = []  # noqa: RUF012 - names of all domains, set by subclasses

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ):
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x or test)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x or test or [])
        self._add_missing_names()

    def _add_missing_names(self) -> None:
        """Take the names of classes without a training image from the other lists.

        `classnames` is indexed by label, so a missing name would shift all names after it.
        """
        missing = set(range(self._num_classes)) - set(self._lab2cname)
        if not missing:
            return
        for item in [*(self._val or []), *(self._test or []), *(self._train_u or [])]:
            if item.label in missing:
                self._lab2cname.setdefault(item.label, item.classname)
        self._classnames = [self._lab2cname[label] for label in sorted(self._lab2cname)]
        missing -= set(self._lab2cname)
        if missing:
            warnings.warn(
                f"The labels {sorted(missing)} of {type(self).__name__} have no image, so their "
                "class names are unknown and all later names have wrong labels: number the labels "
                "without gaps",
                stacklevel=3,
            )

    @property
    def train_x(self) -> list[Datum] | None:
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        return self._classnames

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Sequence[Datum] | None) -> int:
        """The largest label + 1. InvalidValue if the list is empty."""
        if not data_source:
            raise InvalidValue(
                "The dataset has no images, train_x and test are both empty: check DATASET.ROOT "
                "and the dataset's files"
            )
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum]) -> tuple[dict[int, str], list[str]]:
        """The mapping from label to class name, and the class names in the order of the labels."""
        names = {item.label: item.classname for item in data_source}
        mapping = {label: names[label] for label in sorted(names)}
        return mapping, list(mapping.values())

    def check_input_domains(
        self, source_domains: Sequence[str], target_domains: Sequence[str]
    ) -> None:
        """InvalidValue if this dataset does not have one of the domains."""
        wanted = {
            "DATASET.SOURCE_DOMAINS": source_domains,
            "DATASET.TARGET_DOMAINS": target_domains,
        }
        for key, names in wanted.items():
            unknown = [name for name in names if name not in self.domains]
            if unknown:
                raise InvalidValue(
                    f"{key} has unknown domains {unknown}: use {', '.join(self.domains)}"
                )

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> Any:
        """Sample `num_shots` images of every class with `random.sample`.

        The classes are sampled in the order in which their labels first appear. A class with fewer
        images keeps all of them, or with `repeat` is sampled with replacement. If `num_shots` is
        below 1, the lists are returned unchanged. Returns one list, or a list of lists if several
        are given.
        """
        if num_shots < 1:
            drawn = list(data_sources)
        else:
            print(f"Creating a {num_shots}-shot dataset")
            drawn = [self._draw(source, num_shots, repeat) for source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    def _draw(self, source: Sequence[Datum], num_shots: int, repeat: bool) -> list[Datum]:
        shots: list[Datum] = []
        for items in self.split_dataset_by_label(source).values():
            if len(items) >= num_shots:
                shots += random.sample(items, num_shots)
            elif repeat:
                shots += random.choices(items, k=num_shots)
            else:
                shots += items
        return shots

    def split_dataset_by_label(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """The images of each label, in the order in which the labels first appear."""
        groups: dict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """The images of each domain, in the order in which the domains first appear."""
        groups: dict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups
