"""`Datum`, one labelled image, and `DatasetBase`, lists of them."""

from __future__ import annotations

import os.path as osp
import random
import warnings
from collections import defaultdict
from collections.abc import Sequence

from dassl.utils.errors import InvalidValue, MissingFile


class Datum:
    """An image file with its label, domain label and class name; all read-only.

    FileNotFoundError where there is no such file.
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
    """Training, unlabelled, validation and test lists of Datum.

    The number of classes and their names are settled here, from the lists as they are given:
    thinning a list out afterwards (`dataset._train_x = ...`) does not change them.
    """

    dataset_dir = ""  # folder under DATASET.ROOT
    domains: list[str] = []  # noqa: RUF012 - names of all domains; subclasses assign their own

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
        self._lab2cname, self._classnames = self.get_lab2cname(train_x or test)
        self._fill_holes()

    def _fill_holes(self) -> None:
        """Name the classes without a training image after the other lists.

        Class names are indexed by label, so one that is missing would shift all after it.
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
                f"The labels {sorted(missing)} of {type(self).__name__} have no image and so no "
                "class name: number the labels without gaps, or class names will not match them",
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
        """The largest label + 1; ValueError for an empty list."""
        if not data_source:
            raise InvalidValue("A dataset needs images: train_x and test are both empty")
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum]) -> tuple[dict[int, str], list[str]]:
        """Label to class name, and the class names in order of their labels."""
        names = {item.label: item.classname for item in data_source}
        mapping = {label: names[label] for label in sorted(names)}
        return mapping, list(mapping.values())

    def check_input_domains(
        self, source_domains: Sequence[str], target_domains: Sequence[str]
    ) -> None:
        """ValueError where a domain is none of this dataset's."""
        wanted = {
            "DATASET.SOURCE_DOMAINS": source_domains,
            "DATASET.TARGET_DOMAINS": target_domains,
        }
        for key, names in wanted.items():
            unknown = [name for name in names if name not in self.domains]
            if unknown:
                raise InvalidValue(
                    f"{key} names {unknown}, but the domains are: {', '.join(self.domains)}"
                )

    def generate_fewshot_dataset(
        self, *data_sources: Sequence[Datum], num_shots: int = -1, repeat: bool = False
    ) -> list[Datum] | list[list[Datum]]:
        """`num_shots` images of every class, drawn with `random.sample`.

        The draws follow the order in which the labels first appear. A class with fewer images
        gives all it has, or with `repeat` draws with replacement. Below 1: the lists as they are.
        Several lists in, several lists out.
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
        """Label to its images, in order of first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Domain to its images, in order of first appearance."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups
